#pragma once

/// Where a subscriber takes its events. No CAF in here.

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>

#include "messages/sandbox.pb.h"

namespace caisson {

/// What EVENTS needs of a subscriber. Thread safe; nothing in it blocks or calls back into the engine.
class event_sink {
public:
  virtual ~event_sink() = default;

  /// Called in the order of seq. False: the subscriber is gone for good and is forgotten.
  virtual bool offer(const v1::Event& e) = 0;

  /// How many old events it may be offered now (of one that is gone: more than 1, so that offer() can say so). Live ones
  /// come without asking.
  virtual std::size_t room() const = 0;

  /// Calls `tell` once, from any thread, when there is room again or the subscriber is gone; at once where that is so now.
  virtual void when_room(std::function<void()> tell) = 0;
};

/// The sink that doors use: a bounded queue between EVENTS and one reader thread or executor. A reader who lets it run
/// full loses the events that come meanwhile and gets, in their place, one event of type "lagged" with their count; its
/// seq is that of the last one lost, so that he can read them again from the journal.
class event_queue final : public event_sink {
public:
  explicit event_queue(std::size_t limit = 1'024) : limit_(limit < 2 ? 2 : limit) {}

  bool offer(const v1::Event& e) override;
  std::size_t room() const override;
  void when_room(std::function<void()> tell) override;

  /// `wake` runs, from the offering or closing thread, each time the queue stops being empty, and at close(). Set once,
  /// before the queue is given away; must not block, and must bear to be called a last time after the reader has gone.
  /// A reader that blocks in take() needs none.
  void on_wake(std::function<void()> wake);

  /// The next event, waiting at most so long. nullopt: none came, or the queue is closed.
  std::optional<v1::Event> take(std::chrono::milliseconds at_most);

  /// The reader goes: offer() is refused from now on, what is queued is dropped, take() returns.
  void close();
  bool closed() const;

private:
  std::optional<v1::Event> next_locked();
  std::size_t room_locked() const { return lost_ != 0 ? 0 : limit_ - queue_.size(); }
  v1::Event lag_locked();

  const std::size_t limit_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<v1::Event> queue_;
  std::uint64_t lost_ = 0;        // all of them belong behind the queue's last event
  std::uint64_t lost_seq_ = 0;  // of the last one
  bool closed_ = false;
  std::function<void()> wake_;
  std::function<void()> room_;
};

/// The event that stands for `count` events that a reader does not get, the last of them `last_seq`.
v1::Event lagged_event(std::uint64_t count, std::uint64_t last_seq, std::string text);

} // namespace caisson
