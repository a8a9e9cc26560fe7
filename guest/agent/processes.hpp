#pragma once

#include "guest/agent/event_loop.hpp"
#include "guest/agent/unique_fd.hpp"
#include "guest/protocol/guest_session.hpp"

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

namespace caisson::agent {

/// The commands that the host has started, each in a session and process group of its own, with pipes or a terminal.
///
/// The end of a command. Its exit is reported after its output: everything that stood in its pipes when it ended is
/// delivered, however slowly the host reads. What a child that it left behind writes later is delivered for `linger`
/// more; then the streams end, the exit is reported, and the pipes are emptied into nothing, so that the child is
/// neither blocked nor killed.
///
/// When the host goes (or another comes) the commands run on: standard input ends, output goes into nothing, a terminal
/// hangs up.
class processes {
public:
  processes(event_loop& loop, guest_protocol::guest_session& session) : loop_{loop}, session_{session} {}

  /// Where commands run from now on (spawn.hpp).
  void run_in(std::string cgroup) { cgroup_ = std::move(cgroup); }

  std::variant<v1::ExecStarted, v1::AgentFailure> start(const v1::ExecStart& request);
  std::optional<v1::AgentFailure> signal(const v1::ExecSignal& request);
  std::optional<v1::AgentFailure> resize(const v1::ExecResize& request);

  // From the session.
  void on_data(std::uint32_t stream, std::span<const std::byte> bytes);
  void on_eof(std::uint32_t stream);
  void on_writable(std::uint32_t stream);
  void on_stopped(std::uint32_t stream);

  /// From the reaper: true when the process was a command of ours. `status` is waitpid's.
  bool on_exit(pid_t pid, int status);

  /// The connection is over.
  void detach_all();

private:
  static constexpr std::chrono::milliseconds linger{200};
  static constexpr std::size_t orphans_max = 256;

  struct output {
    unique_fd fd;
    std::uint32_t stream = 0;
    bool watched = false;
    bool done = false;
    std::size_t due = 0; // bytes that were in the pipe when the process ended
  };

  struct process {
    std::uint64_t id = 0;
    pid_t pid = 0;
    bool terminal = false;
    unique_fd in;
    std::uint32_t in_stream = 0;
    bool in_watched = false;
    bool in_eof = false;
    std::vector<std::byte> in_buffer;
    std::array<output, 2> outputs; // standard output, standard error
    bool exited = false;
    int status = 0;
    std::optional<event_loop::timer_id> linger_timer;
  };

  process* find(std::uint64_t id);
  process* find_by_stream(std::uint32_t stream);
  void watch_output(process& p, std::size_t which);
  void unwatch(output& o);
  void read_output(std::uint64_t id, std::size_t which);
  void end_output(process& p, output& o);
  void write_input(process& p);
  void close_input(process& p);
  void settle(std::uint64_t id);
  void drain_into_nothing(unique_fd fd);

  event_loop& loop_;
  guest_protocol::guest_session& session_;
  std::string cgroup_;
  std::uint64_t next_id_ = 1;
  std::map<std::uint64_t, process> processes_;
  std::unordered_map<std::uint32_t, std::uint64_t> by_stream_;
  std::unordered_map<int, unique_fd> orphans_;
};

} // namespace caisson::agent
