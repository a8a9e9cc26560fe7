#pragma once

#include "guest/agent/unique_fd.hpp"

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <unordered_map>

namespace caisson::agent {

/// The agent's one thread: an epoll of descriptors and a timerfd for everything that has a time. Sleeps when nothing
/// happens. A handler may watch, change and forget any descriptor, its own too.
class event_loop {
public:
  using handler = std::function<void(std::uint32_t events)>;
  using timer_id = std::uint64_t;
  using milliseconds = std::chrono::milliseconds;

  event_loop();

  /// `events` are EPOLLIN, EPOLLOUT, ... False: the descriptor cannot be watched.
  bool watch(int fd, std::uint32_t events, handler on_event);
  void change(int fd, std::uint32_t events);
  void forget(int fd);

  /// Calls `on_time` once.
  timer_id after(milliseconds delay, std::function<void()> on_time);
  void cancel(timer_id timer);

  /// Called before each sleep: the place to send what the handlers have queued.
  void before_sleep(std::function<void()> action) { before_sleep_ = std::move(action); }

  void run();
  void stop() { running_ = false; }

private:
  using clock = std::chrono::steady_clock;
  void arm();
  void run_timers();

  unique_fd epoll_, timer_;
  bool running_ = false;
  timer_id next_timer_ = 1;
  std::unordered_map<int, std::shared_ptr<handler>> handlers_;
  std::map<std::pair<clock::time_point, timer_id>, std::function<void()>> timers_;
  clock::time_point armed_for_{};
  std::function<void()> before_sleep_;
};

} // namespace caisson::agent
