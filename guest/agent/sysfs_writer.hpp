#pragma once

#include <sys/types.h>

#include <deque>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace caisson::agent {

/// Writes to /sys that may take long (a processor that comes online takes half a second in an emulated guest) happen in
/// a child process, one batch at a time, so that the agent's loop goes on.
class sysfs_writer {
public:
  using batch = std::vector<std::pair<std::string, std::string>>;

  /// `on_done` gets 0 or the first errno; all writes of the batch are tried.
  void write(batch files, std::function<void(int)> on_done);

  [[nodiscard]] bool busy() const noexcept { return child_ > 0 || !waiting_.empty(); }

  /// From the reaper: true when it was the writer's child.
  bool on_exit(pid_t pid, int status);

private:
  struct job {
    batch files;
    std::function<void(int)> on_done;
  };
  void start_next();

  std::deque<job> waiting_;
  std::function<void(int)> on_done_;
  pid_t child_ = 0;
};

} // namespace caisson::agent
