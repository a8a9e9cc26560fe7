#include "actors/events/event_sink.hpp"

#include <utility>

#include <fmt/format.h>

namespace caisson {

v1::Event lagged_event(std::uint64_t count, std::uint64_t last_seq, std::string text) {
  v1::Event e;
  e.set_seq(last_seq);
  e.set_unix_ms(
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch()).count());
  e.set_type("lagged");
  e.set_lagged(count);
  e.set_text(std::move(text));
  return e;
}

bool event_queue::offer(const v1::Event& e) {
  std::function<void()> wake;
  {
    std::lock_guard hold{mutex_};
    if (closed_)
      return false;
    const bool was_empty = queue_.empty() && lost_ == 0;
    // What was lost is told before anything newer, so both must fit.
    if (queue_.size() + (lost_ != 0 ? 2 : 1) > limit_) {
      ++lost_;
      lost_seq_ = e.seq();
      return true;
    }
    if (lost_ != 0)
      queue_.push_back(lag_locked());
    queue_.push_back(e);
    if (was_empty)
      wake = wake_;
  }
  changed_.notify_one();
  if (wake)
    wake();
  return true;
}

std::size_t event_queue::room() const {
  std::lock_guard hold{mutex_};
  return closed_ ? limit_ : room_locked();
}

void event_queue::when_room(std::function<void()> tell) {
  {
    std::lock_guard hold{mutex_};
    if (!closed_ && room_locked() < limit_ / 2) {
      room_ = std::move(tell);
      return;
    }
  }
  tell();
}

void event_queue::on_wake(std::function<void()> wake) {
  std::lock_guard hold{mutex_};
  wake_ = std::move(wake);
}

std::optional<v1::Event> event_queue::take(std::chrono::milliseconds at_most) {
  std::optional<v1::Event> taken;
  std::function<void()> tell;
  {
    std::unique_lock hold{mutex_};
    changed_.wait_for(hold, at_most, [&] { return closed_ || !queue_.empty() || lost_ != 0; });
    if (closed_)
      return std::nullopt;
    taken = next_locked();
    if (room_ && room_locked() >= limit_ / 2)
      tell = std::exchange(room_, nullptr);
  }
  if (tell)
    tell();
  return taken;
}

void event_queue::close() {
  std::function<void()> wake, tell;
  {
    std::lock_guard hold{mutex_};
    if (std::exchange(closed_, true))
      return;
    queue_.clear();
    wake = wake_;
    tell = std::exchange(room_, nullptr);
  }
  changed_.notify_all();
  if (wake)
    wake();
  if (tell)
    tell();
}

bool event_queue::closed() const {
  std::lock_guard hold{mutex_};
  return closed_;
}

std::optional<v1::Event> event_queue::next_locked() {
  if (queue_.empty())
    return lost_ != 0 ? std::optional{lag_locked()} : std::nullopt;
  auto e = std::move(queue_.front());
  queue_.pop_front();
  return e;
}

v1::Event event_queue::lag_locked() {
  auto count = std::exchange(lost_, 0);
  return lagged_event(count, lost_seq_,
                      fmt::format("{} events were lost because their reader was slow; they can be read again from number {}",
                                  count, lost_seq_ - count + 1));
}

} // namespace caisson
