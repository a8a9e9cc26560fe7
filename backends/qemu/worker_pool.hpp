#pragma once

/// Threads for calls that block. Grows with the work up to a cap, shrinks when idle.

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>

namespace caisson::qemu {

class worker_pool {
public:
  explicit worker_pool(std::size_t max_threads) : max_threads_(max_threads) {}
  /// Waits for the jobs that run; those that wait are dropped (destroyed unrun).
  ~worker_pool();
  worker_pool(const worker_pool&) = delete;
  worker_pool& operator=(const worker_pool&) = delete;

  /// Thread safe, never blocks. Jobs must not throw.
  void run(std::function<void()> job);
  /// As run(), but jobs of one key run one after another in the order of their arrival.
  void run_in_order(const std::string& key, std::function<void()> job);

private:
  void work();
  void run_next_of(const std::string& key);

  const std::size_t max_threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable ended_;
  std::deque<std::function<void()>> jobs_;
  std::map<std::string, std::deque<std::function<void()>>> queues_;  ///< a key is here as long as one of its jobs runs
  std::size_t threads_ = 0;
  std::size_t idle_ = 0;
  bool stop_ = false;
};

} // namespace caisson::qemu
