#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backends/cloud-hypervisor/double/model.hpp"

namespace caisson::cloud_hypervisor::api_double {

/// The requests of one connection, read as the API's HTTP library reads them: in pieces of at most 1024 bytes, by
/// Content-Length alone, and after a mistake wherever its state happened to be. Its quirks are the purpose; no library
/// has them.
class http_input {
public:
  explicit http_input(std::size_t body_limit_bytes) : limit_{body_limit_bytes} {}

  /// Where the next bytes go. Never 0 long.
  [[nodiscard]] char* space() noexcept { return buffer_.data() + kept_; }
  [[nodiscard]] std::size_t room() const noexcept { return buffer_.size() - kept_; }

  struct result {
    std::vector<request> requests;
    std::string interim;                ///< to be sent at once (100 Continue)
    std::optional<std::string> mistake; ///< everything read so far that was not answered is dropped
  };
  /// `count` bytes have been put into space(), with `descriptors` beside them.
  result take(std::size_t count, const std::vector<int>& descriptors);

private:
  enum class phase { request_line, headers, body };
  struct mistake {
    std::string text;
  };

  bool read_request_line(std::size_t& at, std::size_t end);
  bool read_header(std::size_t& at, std::size_t end, std::string& interim, bool& ready);
  bool read_body(std::size_t& at, std::size_t end);
  void header(std::string_view line);
  void keep(std::size_t from, std::size_t end);

  std::size_t limit_;
  std::array<char, 1024> buffer_{};
  std::size_t kept_ = 0;
  phase phase_ = phase::request_line;
  request pending_;
  std::string version_;
  std::uint32_t length_ = 0, missing_ = 0;
  bool expect_ = false;
  std::string body_;
  std::vector<int> descriptors_;
};

/// A reply as the API writes it.
[[nodiscard]] std::string wire_text(const reply& r);
/// The reply to a request that could not be read; it comes from the HTTP library itself.
[[nodiscard]] std::string mistake_text(const std::string& what);
/// What a connection is told for which there is no place.
[[nodiscard]] std::string_view full_text();

} // namespace caisson::cloud_hypervisor::api_double
