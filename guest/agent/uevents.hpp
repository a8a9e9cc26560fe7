#pragma once

#include "guest/agent/event_loop.hpp"
#include "guest/agent/unique_fd.hpp"

#include <functional>
#include <string>
#include <string_view>

namespace caisson::agent {

/// The kernel's news about devices that come, go or change.
class uevents {
public:
  struct event {
    std::string_view
        action; ///< "add", "online", ...; "lost" when the kernel had more news than room: look at everything
    std::string_view subsystem; ///< "memory", "cpu", "virtio-ports", ...
  };

  /// Opens the socket at once, so that nothing is missed; events are told from the loop.
  uevents(event_loop& loop, std::function<void(const event&)> on_event);

private:
  void read_all();

  unique_fd socket_;
  std::function<void(const event&)> on_event_;
};

} // namespace caisson::agent
