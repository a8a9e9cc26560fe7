#pragma once

/// The engine's end of backends/host/wire.hpp for tests: one backend process, blocking calls with a time limit.

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "backends/host/wire.hpp"
#include "messages/backend.pb.h"

namespace caisson::tests {

class backend_client {
public:
  using milliseconds = std::chrono::milliseconds;

  /// Starts `program --state D/state --run D/run --cache CACHE --log D/log`; makes the directories.
  backend_client(const std::string& program, const std::string& directory, const std::string& cache);
  ~backend_client();
  backend_client(const backend_client&) = delete;

  /// Sends; the answer is picked up by wait_answer().
  std::uint64_t send(v1::BackendCall call);
  /// Nothing when none comes in time.
  std::optional<v1::BackendAnswer> wait_answer(std::uint64_t id, milliseconds limit);
  std::optional<v1::BackendAnswer> ask(v1::BackendCall call, milliseconds limit = milliseconds{60'000});
  /// Reads until `done`; false when the time is over.
  bool wait(milliseconds limit, const std::function<bool()>& done);
  bool wait_event(v1::VmEvent::Kind kind, milliseconds limit);

  void kill9();
  pid_t pid() const { return pid_; }

  std::vector<v1::VmEvent> events;
  std::vector<std::string> log;
  std::optional<v1::BackendReady> ready;

private:
  bool read_some(milliseconds limit);

  pid_t pid_ = -1;
  int fd_ = -1;
  std::uint64_t next_id_ = 1;
  host::frame_reader reader_;
  std::map<std::uint64_t, v1::BackendAnswer> answers_;
};

} // namespace caisson::tests
