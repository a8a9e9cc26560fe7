#pragma once

/// VMM processes: found, told apart, ended and reaped.

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

namespace caisson::qemu {

/// Pid and start time together name one process for ever.
struct process {
  pid_t pid = 0;
  std::uint64_t start_ticks = 0;  ///< field 22 of /proc/PID/stat
};

struct process_stat {
  std::string command;
  char state = 0;
  pid_t session = 0;
  std::uint64_t start_ticks = 0;
  bool exiting = false;  ///< it has begun to end: its descriptors may be closed already
};

/// Nothing where there is no such process.
std::optional<process_stat> read_stat(pid_t pid);

/// The VMM of this domain: its pid file's process where that one really carries the domain's name on its command line,
/// else the one that /proc shows. Zombies do not count.
std::optional<process> find_vmm(const std::string& pid_file, std::string_view domain_name);

/// Ends the process by pidfd: SIGTERM and `grace`, then SIGKILL (at once where it is stopped); reaps it where it is
/// ours. True when it is gone, false when it still was there at the deadline.
bool end_process(const process& victim, std::chrono::milliseconds grace, std::chrono::steady_clock::time_point deadline);

/// Makes this process adopt the daemonized VMMs and reaps those, and only those: libvirt waits for its own children
/// itself. Adopted ones live in a session of their own.
class reaper {
public:
  /// Becomes child subreaper and blocks SIGCHLD in this thread; call before any other thread starts.
  static void become_subreaper();

  /// After SIGCHLD. Thread safe.
  void reap();
  /// "was killed by signal 9 (Killed)", "exited with status 1"; "" where this process did not reap it.
  std::string how_it_ended(pid_t pid) const;

private:
  mutable std::mutex mutex_;
  std::map<pid_t, std::string> ended_;  ///< the last few
};

} // namespace caisson::qemu
