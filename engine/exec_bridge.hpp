#pragma once

/// Between a door's exec and the guest link: the door has its session at once, the link comes later or never.

#include <memory>
#include <mutex>
#include <vector>

#include "actors/guest_agent/guest_link.hpp"
#include "engine/service.hpp"

namespace caisson::engine {

class exec_bridge : public std::enable_shared_from_this<exec_bridge> {
public:
  explicit exec_bridge(exec_events events) : events_{std::move(events)} {}

  /// The link is there: the command is started on it.
  void start(guest_link& link, v1::ExecStart what);
  /// It will never be.
  void fail(const v1::Error& why);

  /// Runs now or when the command is there; dropped after its end.
  void with_exec(std::function<void(guest_exec&)> work);
  void hang_up();

private:
  void end(outcome<v1::ExecExited> how);

  std::mutex mutex_;
  exec_events events_;
  std::shared_ptr<guest_exec> exec_;
  std::vector<std::function<void(guest_exec&)>> early_;
  bool ended_ = false, hung_up_ = false;
};

/// What the door holds.
std::shared_ptr<exec_session> session_of(std::shared_ptr<exec_bridge> bridge);

} // namespace caisson::engine
