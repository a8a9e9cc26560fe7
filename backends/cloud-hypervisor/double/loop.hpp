#pragma once

#include <poll.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>

#include "backends/simulated/timeline.hpp"

namespace caisson::cloud_hypervisor::api_double {

/// One thread's poll(2): descriptors and a timeline that follows the real clock. Everything in the double runs here.
class loop {
public:
  backends::simulated::timeline time;

  /// `on_event` gets poll's revents. The descriptor stays the caller's; forget it before closing it.
  void watch(int fd, short events, std::function<void(short)> on_event);
  void change(int fd, short events);
  /// Not looked at, not even for its end, until it is taken up again.
  void set_aside(int fd, bool aside);
  void forget(int fd) { watched_.erase(fd); }

  void stop(int exit_code) { stopped_ = exit_code; }
  [[nodiscard]] bool stopped() const noexcept { return stopped_.has_value(); }
  /// Until stop; its exit code.
  int run();

private:
  struct entry {
    short events = 0;
    bool aside = false;
    std::uint64_t number = 0; ///< a descriptor that was closed and opened again is another one
    std::function<void(short)> on_event;
  };
  [[nodiscard]] backends::simulated::timeline::time now() const;

  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::map<int, entry> watched_;
  std::uint64_t last_ = 0;
  std::optional<int> stopped_;
};

} // namespace caisson::cloud_hypervisor::api_double
