#pragma once

/// A short-lived program run to its end or to a deadline, its output read.

#include <chrono>
#include <functional>
#include <string>
#include <vector>

namespace caisson::qemu {

struct child_result {
  bool started = false;
  bool in_time = false;  ///< ended, or `enough` said so, before the deadline
  int exit_status = -1;  ///< -1: killed
  std::string output;    ///< stdout and stderr, at most 64 KiB
  std::string why_not_started;
};

/// Runs argv[0] (a path) with stdin from /dev/null. Ends early, by SIGKILL, when `enough(output)` is true.
child_result run_child(const std::vector<std::string>& argv, std::chrono::milliseconds time,
                       const std::function<bool(const std::string&)>& enough = {});

} // namespace caisson::qemu
