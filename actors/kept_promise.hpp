#pragma once

/// A response promise that is always kept: where it goes out of life unanswered (its actor was killed, a path forgot
/// it) the asker gets an error instead of silence.

#include <caf/all.hpp>

#include <memory>
#include <string>
#include <utility>

#include "messages/error.hpp"

namespace caisson {

template <class T> class kept_promise {
public:
  kept_promise() = default;
  explicit kept_promise(caf::typed_response_promise<T> p) : promise_(std::move(p)) {}
  kept_promise(kept_promise&& other) noexcept : promise_(std::exchange(other.promise_, {})) {}
  kept_promise& operator=(kept_promise&& other) noexcept {
    if (this != &other) {
      fail(ec::internal, "this request was replaced by another before it was answered");
      promise_ = std::exchange(other.promise_, {});
    }
    return *this;
  }
  ~kept_promise() { fail(ec::not_running, "the part of the engine that was asked has ended"); }

  bool pending() const { return promise_.pending(); }

  /// Answers once; later calls do nothing.
  void deliver(T value) {
    if (promise_.pending())
      promise_.deliver(std::move(value));
  }
  void deliver(caf::error why) {
    if (promise_.pending())
      promise_.deliver(std::move(why));
  }
  void fail(ec code, std::string text) {
    if (promise_.pending())
      promise_.deliver(make_error(code, std::move(text)));
  }

private:
  caf::typed_response_promise<T> promise_;
};

/// For the callbacks of a request: they share it, and where they are dropped unanswered the asker hears of it.
template <class T> std::shared_ptr<kept_promise<T>> keep(caf::typed_response_promise<T> promise) {
  return std::make_shared<kept_promise<T>>(std::move(promise));
}

} // namespace caisson
