#include "guest/agent/event_loop.hpp"

#include "guest/agent/report.hpp"

#include <sys/epoll.h>
#include <sys/timerfd.h>

#include <array>
#include <cerrno>

namespace caisson::agent {

event_loop::event_loop()
    : epoll_{epoll_create1(EPOLL_CLOEXEC)}, timer_{timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)} {
  if (!epoll_ || !timer_)
    fatal("cannot make an event loop", errno);
  watch(timer_.get(), EPOLLIN, [this](std::uint32_t) { run_timers(); });
}

bool event_loop::watch(int fd, std::uint32_t events, handler on_event) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0)
    return false;
  handlers_[fd] = std::make_shared<handler>(std::move(on_event));
  return true;
}

void event_loop::change(int fd, std::uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event);
}

void event_loop::forget(int fd) {
  if (handlers_.erase(fd) > 0)
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

event_loop::timer_id event_loop::after(milliseconds delay, std::function<void()> on_time) {
  const auto id = next_timer_++;
  timers_.emplace(std::pair{clock::now() + delay, id}, std::move(on_time));
  return id;
}

void event_loop::cancel(timer_id timer) {
  std::erase_if(timers_, [&](const auto& entry) { return entry.first.second == timer; });
}

void event_loop::arm() {
  const auto wanted = timers_.empty() ? clock::time_point{} : timers_.begin()->first.first;
  if (wanted == armed_for_)
    return;
  armed_for_ = wanted;
  itimerspec when{};
  const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(wanted.time_since_epoch()).count();
  when.it_value.tv_sec = ns / 1'000'000'000;
  when.it_value.tv_nsec = ns % 1'000'000'000;
  timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &when, nullptr);
}

void event_loop::run_timers() {
  std::uint64_t expirations = 0;
  [[maybe_unused]] const auto n = ::read(timer_.get(), &expirations, sizeof expirations);
  armed_for_ = {};
  while (!timers_.empty() && timers_.begin()->first.first <= clock::now()) {
    auto node = timers_.extract(timers_.begin());
    node.mapped()();
  }
}

void event_loop::run() {
  running_ = true;
  std::array<epoll_event, 32> events;
  while (running_) {
    if (before_sleep_)
      before_sleep_();
    if (!running_)
      return;
    arm();
    const int n = epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), -1);
    if (n < 0 && errno != EINTR)
      fatal("epoll_wait failed", errno);
    for (int i = 0; i < n && running_; ++i) {
      const auto it = handlers_.find(events[static_cast<std::size_t>(i)].data.fd);
      if (it == handlers_.end())
        continue;
      const auto keep = it->second;  // the handler may forget itself
      (*keep)(events[static_cast<std::size_t>(i)].events);
    }
  }
}

} // namespace caisson::agent
