#include "backends/qemu/worker_pool.hpp"

#include <chrono>
#include <thread>

namespace caisson::qemu {
namespace {
constexpr std::chrono::seconds idle_time{10};
}

worker_pool::~worker_pool() {
  std::deque<std::function<void()>> dropped;
  std::map<std::string, std::deque<std::function<void()>>> dropped_queues;
  std::unique_lock lock{mutex_};
  stop_ = true;
  dropped.swap(jobs_);
  dropped_queues.swap(queues_);
  wake_.notify_all();
  ended_.wait(lock, [this] { return threads_ == 0; });
}

void worker_pool::run(std::function<void()> job) {
  std::lock_guard lock{mutex_};
  if (stop_)
    return;
  jobs_.push_back(std::move(job));
  if (jobs_.size() <= idle_ || threads_ == max_threads_) {
    wake_.notify_one();
    return;
  }
  ++threads_;
  std::thread{[this] { work(); }}.detach();
}

void worker_pool::run_in_order(const std::string& key, std::function<void()> job) {
  {
    std::lock_guard lock{mutex_};
    if (stop_)
      return;
    auto [queue, first] = queues_.try_emplace(key);
    queue->second.push_back(std::move(job));
    if (!first)
      return;
  }
  run([this, key] { run_next_of(key); });
}

void worker_pool::run_next_of(const std::string& key) {
  std::function<void()> job;
  {
    std::lock_guard lock{mutex_};
    auto queue = queues_.find(key);
    if (queue == queues_.end() || queue->second.empty())
      return;
    job = std::move(queue->second.front());
    queue->second.pop_front();
  }
  job();
  job = nullptr;
  {
    std::lock_guard lock{mutex_};
    auto queue = queues_.find(key);
    if (queue == queues_.end())
      return;
    if (queue->second.empty()) {
      queues_.erase(queue);
      return;
    }
  }
  run([this, key] { run_next_of(key); });
}

void worker_pool::work() {
  std::unique_lock lock{mutex_};
  for (;;) {
    ++idle_;
    bool woken = wake_.wait_for(lock, idle_time, [this] { return stop_ || !jobs_.empty(); });
    --idle_;
    if (!woken || stop_)
      break;
    auto job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    job();
    job = nullptr;
    lock.lock();
  }
  --threads_;
  ended_.notify_all();
}

} // namespace caisson::qemu
