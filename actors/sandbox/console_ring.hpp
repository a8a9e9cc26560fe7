#pragma once

/// The last bytes of a guest's serial console. Bounded, whatever the guest writes; read in turns that leave room for
/// others (the pipe's fairness). Lives on the executor of its opener; text() and tail() may be called from any thread.

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "messages/local.hpp"

namespace caisson::sandbox {

class console_ring : public std::enable_shared_from_this<console_ring> {
public:
  static constexpr std::size_t limit_bytes = 64 * 1024;

  explicit console_ring(pipe_opener& opener) : opener_{opener} {}

  void open(const std::string& endpoint);
  void close();

  /// Everything that is kept, escaped line by line.
  std::string text() const;

  /// The last `lines` lines that are not empty, escaped, each at most 240 bytes.
  std::vector<std::string> tail(std::size_t lines) const;

private:
  void append(std::span<const std::byte> bytes);

  pipe_opener& opener_;
  std::unique_ptr<byte_pipe> pipe_;
  bool closed_ = false;
  mutable std::mutex mutex_;
  std::string ring_;
};

} // namespace caisson::sandbox
