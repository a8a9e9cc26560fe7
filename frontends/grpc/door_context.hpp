#pragma once

/// What the calls of one server share.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include <grpcpp/support/server_callback.h>

#include "frontends/grpc/server.hpp"

namespace caisson::door {

class door_context {
public:
  door_context(engine::service& s, server_options o) : service{s}, options{std::move(o)} {}

  engine::service& service;
  const server_options options;

  void log(std::string_view line) const {
    if (options.log)
      options.log(line);
  }

  void begin() {
    std::lock_guard hold{mutex_};
    ++active_;
    last_ = std::chrono::steady_clock::now();
  }

  void end() {
    bool idle = false;
    {
      std::lock_guard hold{mutex_};
      last_ = std::chrono::steady_clock::now();
      idle = --active_ == 0;
      changed_.notify_all();
    }
    if (idle && options.on_idle)
      options.on_idle();
  }

  std::uint32_t active() const {
    std::lock_guard hold{mutex_};
    return active_;
  }

  std::chrono::steady_clock::time_point last() const {
    std::lock_guard hold{mutex_};
    return last_;
  }

  bool wait_idle(std::chrono::milliseconds at_most) {
    std::unique_lock hold{mutex_};
    return changed_.wait_for(hold, at_most, [this] { return active_ == 0; });
  }

private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::uint32_t active_ = 0;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

/// Counted as running for as long as it lives; work that goes on behind a finished call holds one too.
class activity {
public:
  explicit activity(std::shared_ptr<door_context> door) : door_{std::move(door)} { door_->begin(); }
  ~activity() { door_->end(); }
  activity(const activity&) = delete;
  activity& operator=(const activity&) = delete;

private:
  std::shared_ptr<door_context> door_;
};

/// Removes a sandbox whose owner is gone; `then` runs once with the reason where it could not be removed, "" else.
void remove_orphan(const std::shared_ptr<door_context>& door, std::string sandbox,
                   std::function<void(std::string)> then);

grpc::ServerBidiReactor<v1::ExecInput, v1::ExecOutput>* make_exec_call(std::shared_ptr<door_context> door,
                                                                       grpc::CallbackServerContext& context);
grpc::ServerWriteReactor<v1::Event>* make_watch_call(std::shared_ptr<door_context> door,
                                                     const v1::WatchEvents& request);

} // namespace caisson::door
