#pragma once

/// Between EVENTS and a door's callback: a bounded queue that is emptied on the reactor's thread, a few events a turn.

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "actors/events/event_sink.hpp"
#include "engine/service.hpp"
#include "messages/local.hpp"

namespace caisson::engine {

class event_feed : public std::enable_shared_from_this<event_feed> {
public:
  event_feed(executor& runs_on, std::function<void(const v1::Event&)> on_event)
      : runs_on_{runs_on}, queue_{std::make_shared<event_queue>()}, on_event_{std::move(on_event)} {}

  /// Once, right after construction.
  std::shared_ptr<event_sink> sink();
  /// Runs `work` on the same thread when everything that is queued now has been delivered.
  void after_delivery(std::function<void()> work);
  /// Its end closes the feed: no callback runs when the destructor has returned (called from inside a callback: after
  /// it).
  std::unique_ptr<event_subscription> subscription(std::function<void()> on_end);
  void close();

private:
  void drain();

  executor& runs_on_;
  std::shared_ptr<event_queue> queue_;
  std::function<void(const v1::Event&)> on_event_;
  std::recursive_mutex delivering_;
  std::atomic<bool> closed_{false};
};

} // namespace caisson::engine
