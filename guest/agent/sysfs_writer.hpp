#pragma once

#include "guest/agent/event_loop.hpp"

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace caisson::agent {

/// What may take long in the kernel (a processor that comes online takes half a second in an emulated guest, a memory
/// block that goes offline moves all of its pages) happens in a child process, one job at a time, so that the agent's
/// loop goes on.
class sysfs_writer {
public:
  using batch = std::vector<std::pair<std::string, std::string>>;
  using milliseconds = std::chrono::milliseconds;

  explicit sysfs_writer(event_loop& loop) : loop_{loop} {}

  /// `on_done` gets 0 or the first errno; all writes of the batch are tried.
  void write(batch files, std::function<void(int)> on_done);

  /// `work` runs in the child and returns 0 or an errno. `at_most` after this call `on_done` gets ETIMEDOUT, and a job
  /// that still runs is killed: the kernel gives up what it does for a process that is to die.
  void run(std::function<int()> work, milliseconds at_most, std::function<void(int)> on_done);

  [[nodiscard]] bool busy() const noexcept { return child_ > 0 || !waiting_.empty(); }

  /// From the reaper: true when it was the writer's child.
  bool on_exit(pid_t pid, int status);

private:
  struct job {
    std::uint64_t number = 0;
    std::function<int()> work;
    std::function<void(int)> on_done; // empty: answered
    std::optional<event_loop::timer_id> timer;
  };
  void add(job next);
  void start_next();
  void too_late(std::uint64_t number);

  event_loop& loop_;
  std::deque<job> waiting_;
  job running_;
  std::uint64_t last_number_ = 0;
  pid_t child_ = 0;
};

} // namespace caisson::agent
