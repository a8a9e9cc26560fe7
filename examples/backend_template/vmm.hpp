#pragma once

/// The part that knows the hypervisor: here the toy of toy_vmm.cpp. Replace this file and vmm.cpp by what drives yours;
/// driver.cpp, which knows the contract, mostly stays.

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace backend_template {

using deadline = std::chrono::steady_clock::time_point;

/// How this folder fails. `code` is the name of a row of messages/error.hpp.
struct failure : std::runtime_error {
  failure(std::string row, const std::string& text) : std::runtime_error(text), code(std::move(row)) {}
  std::string code;
};

/// Pid and start time together name one process for ever, also for the next process of this backend.
struct process {
  pid_t pid = 0;
  std::uint64_t start_ticks = 0;
};

/// Nothing where there is no such process (any more), or it is a zombie. `state` is the letter of /proc/PID/stat.
std::optional<process> look_at(pid_t pid, char* state = nullptr);
inline bool lives(const process& p) {
  auto now = p.pid > 0 ? look_at(p.pid) : std::nullopt;
  return now && now->start_ticks == p.start_ticks;
}

/// Starts a program in a session of its own with nothing of ours open; throws failure (host_missing, host_io).
process start(const std::vector<std::string>& command_line);
/// SIGKILL by pidfd, waits until it is gone. False: it still is there at the deadline.
bool end(const process& victim, deadline until);
/// Blocks until it is gone, and says how it ended.
std::string wait_for_end(const process& p);

/// Who listens on this socket; nothing where nobody does.
std::optional<process> listener_of(const std::string& socket_path);

struct vmm_status {
  bool paused = false;
  std::uint64_t boot_bytes = 0, plugged_bytes = 0;
  std::uint32_t vcpus = 0, max_vcpus = 0;
  struct device {
    std::string kind, id, source;
  };
  std::vector<device> devices;
};

/// One request, one reply. Throws failure: `backend_refused` with the VMM's words, `outcome_unknown` where it has not
/// answered by the deadline (it may still do it), `backend_lost` where nobody listens.
std::string ask(const std::string& socket_path, const std::string& line, deadline until);
vmm_status ask_status(const std::string& socket_path, deadline until);
/// A descriptor on which every news from now on arrives; throws as ask() does.
int begin_watch(const std::string& socket_path, deadline until);
/// Calls `heard` with each line of news, until the VMM has gone; closes the descriptor. Blocks.
void watch(int fd, const std::function<void(const std::string& line)>& heard);

} // namespace backend_template
