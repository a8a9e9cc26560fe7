#pragma once

/// The one thread of an engine that waits for sockets, timers and child processes (Boost.Asio, hidden in core.hpp).
/// Everything that happens is a callback on that thread; whoever is called must not block. Actors are told by
/// caf::anon_send. Without events the thread sleeps: there is no tick.
///
/// Life. The destructor ends everything that is still open: pipes get on_closed(operation_canceled), open() answers
/// null, timers and on_exit callbacks are dropped; then it joins the thread (it is destroyed on any thread but its
/// own). Handles (pipes, timers, children) may outlive the reactor and are inert then. Functions posted after that are
/// dropped.

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "messages/local.hpp"

namespace caisson::reactor {

class core;
class timer_state;

/// Bytes that one pipe is read for before the others get their turn.
inline constexpr std::size_t read_turn_bytes = 64 * 1024;
/// A pipe whose peer takes nothing is closed (no_buffer_space) when this much is queued in it.
inline constexpr std::size_t most_queued_bytes = 16u << 20;
/// sun_path holds 108 bytes with its final zero.
inline constexpr std::size_t longest_socket_path_bytes = 107;

/// A timer that runs once. Thread safe.
class timer {
public:
  timer() = default;
  explicit timer(std::shared_ptr<timer_state> state) : state_(std::move(state)) {}
  timer(timer&&) noexcept = default;
  timer& operator=(timer&& other) noexcept;
  ~timer() { cancel(); }
  /// Called on the reactor's thread, the function does not run afterwards; from another thread it may be running now.
  void cancel();

private:
  std::shared_ptr<timer_state> state_;
};

/// What to start and with which descriptors. Everything else is closed in the child, its session is its own, its
/// signals have their defaults.
struct program {
  std::string path;
  std::vector<std::string> arguments;   ///< without the program's own name
  std::vector<std::string> environment; ///< "NAME=value", in addition to this process's own
  std::vector<std::pair<int, int>>
      descriptors; ///< ours (borrowed during start), the child's; 0, 1, 2 default to /dev/null
  std::vector<std::string> without{};   ///< names of variables of this process that the child does not get
  /// Of the child, 0777 at most; without one it has this process's own. With one /bin/sh sets it and then becomes the
  /// program: where that cannot be started, the child exits with 126 or 127 and says why on its descriptor 2.
  std::optional<unsigned> umask{};
};

struct exit_status {
  bool known = false; ///< false: no child of this program, or something else in it has reaped it
  bool signalled = false;
  int code = 0; ///< exit status, or the signal
  /// "exited with status 3", "was killed by signal 9 (Killed)"
  std::string text() const;
};

/// A process that start() has made. Thread safe. Dropping it neither kills nor forgets the process: it is reaped.
class child {
public:
  child(pid_t pid, int pidfd);
  ~child();
  child(const child&) = delete;
  child& operator=(const child&) = delete;

  pid_t pid() const { return pid_; }
  /// Field 22 of /proc/PID/stat: with the pid it names one process for ever. 0: it was gone already.
  std::uint64_t start_ticks() const { return start_ticks_; }
  /// By pidfd, so that it never hits another process. False: it has ended.
  bool kill(int signal) const;
  /// Blocks the caller (never the reactor's thread) until the process has ended. False: still there.
  bool await_exit(std::chrono::milliseconds at_most) const;

private:
  pid_t pid_;
  int pidfd_;
  std::uint64_t start_ticks_ = 0;
};

/// Field 22 of /proc/PID/stat, 0 where there is no such process.
std::uint64_t start_ticks_of(pid_t pid);

class reactor final : public executor, public pipe_opener {
public:
  /// `log` hears what callbacks throw, one line each, on the reactor's thread; such an exception ends nothing else.
  explicit reactor(std::function<void(std::string_view)> log = {});
  ~reactor() override;

  void post(std::function<void()> work) override;
  bool on_thread() const;
  const std::shared_ptr<core>& shared_core() const { return core_; } ///< for the other files of this folder

  /// "unix:PATH" connects, once. "hybrid-vsock:PATH:PORT" connects, sends "CONNECT PORT\n" and waits for "OK ...\n", again and
  /// again until something in the guest listens there; it ends when the VMM is gone, when the same endpoint is opened once
  /// more, or after five minutes. Thread safe.
  void open(const std::string& endpoint,
            std::function<void(std::unique_ptr<byte_pipe>, std::string error)> done) override;
  executor& runs_on() override { return *this; }

  /// A connected stream socket becomes a pipe; the descriptor is taken over. On the reactor's thread. on_closed's code
  /// is empty when the peer has closed in good order.
  std::unique_ptr<byte_pipe> adopt(int fd);

  /// Runs `work` once, after that time. Thread safe.
  [[nodiscard]] timer after(std::chrono::milliseconds delay, std::function<void()> work);

  /// posix_spawn; `on_exit` runs once on the reactor's thread. Thread safe. Null and `error` where it cannot be
  /// started.
  std::shared_ptr<child> start(const program& what, std::function<void(exit_status)> on_exit, std::string& error);

  /// The same for a process that somebody else has started, named by pid and start ticks; on_exit's status is unknown
  /// then. Null: there is no such process (any more).
  std::shared_ptr<child> watch(pid_t pid, std::uint64_t start_ticks, std::function<void(exit_status)> on_exit);

private:
  std::shared_ptr<core> core_;
  std::thread thread_;
};

} // namespace caisson::reactor
