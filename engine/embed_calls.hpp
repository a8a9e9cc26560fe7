#pragma once

/// Callbacks of an embedding program: each runs at most once, none runs after its owner has closed the door, what they
/// throw goes no further, and a thread that is inside one is known.

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace caisson::embedding {

/// True on a thread that is inside a callback of any engine.
bool inside_callback() noexcept;

/// Runs a callback; tells `complain` what it throws.
void run_callback(const std::function<void()>& callback, const std::function<void(const std::string&)>& complain) noexcept;

/// Counts who is inside. close() keeps others from entering; wait() returns when nobody but this thread is inside.
class gate {
public:
  bool enter() {
    std::lock_guard hold{mutex_};
    if (closed_)
      return false;
    inside_.push_back(std::this_thread::get_id());
    return true;
  }

  void leave() {
    std::lock_guard hold{mutex_};
    inside_.erase(std::find(inside_.begin(), inside_.end(), std::this_thread::get_id()));
    left_.notify_all();
  }

  void close() {
    std::lock_guard hold{mutex_};
    closed_ = true;
  }

  void wait() {
    std::unique_lock hold{mutex_};
    left_.wait(hold, [&] {
      return std::all_of(inside_.begin(), inside_.end(), [](auto id) { return id == std::this_thread::get_id(); });
    });
  }

private:
  std::mutex mutex_;
  std::condition_variable left_;
  std::vector<std::thread::id> inside_;
  bool closed_ = false;
};

/// Calls that are under way. Each has an ending for the case that its owner goes first.
class open_calls {
public:
  using complain_function = std::function<void(const std::string&)>;
  explicit open_calls(complain_function complain) : complain_(std::move(complain)) {}

  /// 0: closed; the caller ends the call by himself.
  std::uint64_t begin(std::function<void()> cancel) {
    std::lock_guard hold{mutex_};
    if (closed_)
      return 0;
    cancels_.emplace(++last_, std::move(cancel));
    return last_;
  }

  /// Runs `ending` unless the call has ended already.
  void finish(std::uint64_t call, const std::function<void()>& ending) {
    std::function<void()> unused;  // destroyed outside the lock: it owns what the caller has captured
    if (!gate_.enter())
      return;
    bool mine = false;
    {
      std::lock_guard hold{mutex_};
      if (auto at = cancels_.find(call); at != cancels_.end()) {
        unused = std::move(at->second);
        cancels_.erase(at);
        mine = true;
      }
    }
    if (mine)
      run_callback(ending, complain_);
    gate_.leave();
  }

  /// Ends all that are under way; when it returns, nothing runs and nothing will.
  void close() {
    std::map<std::uint64_t, std::function<void()>> rest;
    gate_.close();
    {
      std::lock_guard hold{mutex_};
      closed_ = true;
      rest.swap(cancels_);
    }
    for (auto& [call, cancel] : rest)
      run_callback(cancel, complain_);
    gate_.wait();
  }

private:
  complain_function complain_;
  gate gate_;
  std::mutex mutex_;
  std::map<std::uint64_t, std::function<void()>> cancels_;
  std::uint64_t last_ = 0;
  bool closed_ = false;
};

} // namespace caisson::embedding
