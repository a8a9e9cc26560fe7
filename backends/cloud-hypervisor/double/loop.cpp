#include "backends/cloud-hypervisor/double/loop.hpp"

#include <utility>
#include <vector>

namespace caisson::cloud_hypervisor::api_double {

void loop::watch(int fd, short events, std::function<void(short)> on_event) {
  watched_[fd] = {events, false, ++last_, std::move(on_event)};
}

void loop::change(int fd, short events) {
  if (const auto it = watched_.find(fd); it != watched_.end())
    it->second.events = events;
}

void loop::set_aside(int fd, bool aside) {
  if (const auto it = watched_.find(fd); it != watched_.end())
    it->second.aside = aside;
}

backends::simulated::timeline::time loop::now() const {
  return std::chrono::steady_clock::now() - start_;
}

int loop::run() {
  std::vector<pollfd> polled;
  std::vector<std::uint64_t> numbers;
  while (!stopped_) {
    time.run_until(now());
    if (stopped_)
      break;
    polled.clear();
    numbers.clear();
    for (const auto& [fd, e] : watched_) {
      if (e.aside)
        continue;
      polled.push_back({fd, e.events, 0});
      numbers.push_back(e.number);
    }
    timespec limit{};
    const auto next = time.next();
    if (next) {
      const auto left = std::max(*next - now(), std::chrono::nanoseconds{0});
      limit.tv_sec = static_cast<time_t>(left.count() / 1'000'000'000);
      limit.tv_nsec = static_cast<long>(left.count() % 1'000'000'000);
    }
    if (::ppoll(polled.data(), polled.size(), next ? &limit : nullptr, nullptr) < 0)
      continue; // interrupted
    time.run_until(now());
    for (std::size_t i = 0; i < polled.size() && !stopped_; ++i) {
      if (polled[i].revents == 0)
        continue;
      const auto it = watched_.find(polled[i].fd);
      if (it == watched_.end() || it->second.number != numbers[i] || it->second.aside)
        continue;
      const auto call = it->second.on_event; // it may forget itself
      call(polled[i].revents);
    }
  }
  return *stopped_;
}

} // namespace caisson::cloud_hypervisor::api_double
