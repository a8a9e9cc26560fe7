#include "engine/event_feed.hpp"

namespace caisson::engine {
namespace {

constexpr int events_a_turn = 64;

class handle final : public event_subscription {
public:
  handle(std::shared_ptr<event_feed> feed, std::function<void()> on_end)
      : feed_{std::move(feed)}, on_end_{std::move(on_end)} {}
  ~handle() override {
    feed_->close();
    on_end_();
  }

private:
  std::shared_ptr<event_feed> feed_;
  std::function<void()> on_end_;
};

} // namespace

std::shared_ptr<event_sink> event_feed::sink() {
  queue_->on_wake([weak = weak_from_this()] {
    if (auto self = weak.lock())
      self->runs_on_.post([self] { self->drain(); });
  });
  return queue_;
}

void event_feed::drain() {
  std::lock_guard lock{delivering_};
  for (int n = 0; n < events_a_turn; ++n) {
    if (closed_)
      return;
    auto event = queue_->take(std::chrono::milliseconds{0});
    if (!event)
      return;
    on_event_(*event);
  }
  runs_on_.post([self = shared_from_this()] { self->drain(); });
}

void event_feed::after_delivery(std::function<void()> work) {
  // The drains that are due were posted before this one; a long backlog posts itself again, so wait until it is empty.
  runs_on_.post([self = shared_from_this(), work = std::move(work)] {
    std::lock_guard lock{self->delivering_};
    while (!self->closed_) {
      auto event = self->queue_->take(std::chrono::milliseconds{0});
      if (!event)
        break;
      self->on_event_(*event);
    }
    if (!self->closed_)
      work();
  });
}

void event_feed::close() {
  closed_ = true;
  queue_->close();
  std::lock_guard wait_for_a_running_callback{delivering_};
}

std::unique_ptr<event_subscription> event_feed::subscription(std::function<void()> on_end) {
  return std::make_unique<handle>(shared_from_this(), std::move(on_end));
}

} // namespace caisson::engine
