#include <deque>
#include <utility>

#include "frontends/grpc/door_context.hpp"

namespace caisson::door {
namespace {

// Events for one watcher. A watcher that is slower than the events loses some and is told how many.
class watch_call final : public grpc::ServerWriteReactor<v1::Event> {
public:
  static constexpr std::size_t most_waiting = 4096;

  explicit watch_call(std::shared_ptr<door_context> door) : running_{door}, door_{std::move(door)} {}

  static watch_call* start(const std::shared_ptr<door_context>& door, const v1::WatchEvents& request) {
    auto self = std::make_shared<watch_call>(door);
    self->self_ = self;
    auto* raw = self.get();
    raw->subscription_ = door->service.watch(
        request, [self](const v1::Event& e) { self->take(e); },
        [self, follow = request.follow()] {
          if (!follow)
            self->end();
        });
    return raw;
  }

  void OnWriteDone(bool ok) override {
    std::lock_guard hold{mutex_};
    writing_ = false;
    if (!ok)
      finish();
    else
      pump();
  }

  void OnCancel() override {
    std::lock_guard hold{mutex_};
    finish();
  }

  void OnDone() override {
    auto last = std::move(self_);
    subscription_.reset();
  }

private:
  void take(const v1::Event& e) {
    std::lock_guard hold{mutex_};
    if (finished_ || ending_)
      return;
    if (waiting_.size() >= most_waiting) {
      ++dropped_;
      return;
    }
    if (dropped_ > 0) {
      v1::Event lagged;
      lagged.set_type("lagged");
      lagged.set_seq(e.seq());
      lagged.set_unix_ms(e.unix_ms());
      lagged.set_lagged(std::exchange(dropped_, 0));
      waiting_.push_back(std::move(lagged));
    }
    waiting_.push_back(e);
    pump();
  }

  void end() {
    std::lock_guard hold{mutex_};
    ending_ = true;
    pump();
  }

  void pump() {
    if (writing_ || finished_)
      return;
    if (!waiting_.empty()) {
      writing_ = true;
      current_ = std::move(waiting_.front());
      waiting_.pop_front();
      StartWrite(&current_);
    } else if (ending_) {
      finish();
    }
  }

  void finish() {
    if (!std::exchange(finished_, true))
      Finish(grpc::Status::OK);
  }

  activity running_;
  std::shared_ptr<door_context> door_;
  std::mutex mutex_;
  std::deque<v1::Event> waiting_;
  v1::Event current_;
  std::uint64_t dropped_ = 0;
  bool writing_ = false, ending_ = false, finished_ = false;
  std::unique_ptr<engine::event_subscription> subscription_;
  std::shared_ptr<watch_call> self_;
};

} // namespace

grpc::ServerWriteReactor<v1::Event>* make_watch_call(std::shared_ptr<door_context> door,
                                                     const v1::WatchEvents& request) {
  return watch_call::start(door, request);
}

} // namespace caisson::door
