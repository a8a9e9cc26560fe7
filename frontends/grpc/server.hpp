#pragma once

/// The local door: the services of doors.proto over engine/service.hpp, on a Unix socket that only its owner may open.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <variant>

#include "engine/service.hpp"

namespace caisson::door {

struct server_options {
  std::string socket;                        ///< path; its directory exists, is 0700 and ours
  std::function<void(std::string_view)> log; ///< one line; may be empty
  std::function<void()> on_shut_down;        ///< Engine.ShutDown was called and answered; must not block
  std::function<void()> on_idle;             ///< the last running call has ended; must not block
};

class server {
public:
  /// Serves from its return on. The service has to outlive the server. Error: host_io (the socket cannot be made).
  static std::variant<std::unique_ptr<server>, v1::Error> start(engine::service& service, server_options options);

  virtual ~server() = default; ///< stop() with no grace

  /// Takes no more calls, waits for running ones at most `grace`, then cancels them: their processes are hung up, the
  /// sandboxes that streams own are removed (waited for, at most 30 s).
  virtual void stop(std::chrono::milliseconds grace) = 0;

  virtual std::uint32_t active_calls() const = 0;
  virtual std::chrono::steady_clock::time_point last_activity() const = 0; ///< a call's beginning or end
};

} // namespace caisson::door
