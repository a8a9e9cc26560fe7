#pragma once

/// The engine as its doors see it: one handler table in protobuf types, no CAF. include/caisson/engine.hpp (std types) and
/// every frontend stand on this. Thread safe; completions run on a thread of the engine and must not block.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <variant>

#include "messages/doors.pb.h"
#include "messages/error.pb.h"
#include "messages/sandbox.pb.h"

namespace caisson::engine {

struct options {
  std::string state_directory;      ///< "": $XDG_STATE_HOME/caisson, for root /var/lib/caisson
  std::string run_directory;        ///< "": $XDG_RUNTIME_DIR/caisson/H, for root /run/caisson/H (ARCHITECTURE.md)
  std::string cache_directory;      ///< "": $CAISSON_CACHE_DIR, else $XDG_CACHE_HOME/caisson, for root /var/cache/caisson
  std::string guest_directory;      ///< "": $CAISSON_GUEST_DIR, else beside the programs (find_guest())
  std::string program_directory;    ///< "": the directory of the running program, else libexec of the installation
  std::uint32_t worker_threads = 2;
  std::function<void(std::string_view)> log;  ///< one line; empty: nothing is logged. Never stdout or stderr by itself
};

/// Directories after defaults, checked or made (0700, not writable by others, socket paths short enough).
struct directories {
  std::string state, run, cache, logs, programs;
  std::string socket;  ///< of the local door: RUN/engine.sock
};

/// Works out the directories without making them. `error` is set where a given one cannot be used.
directories resolve_directories(const options& o, v1::Error* error);

/// The value, or the error with code and text.
template <class T> using outcome = std::variant<T, v1::Error>;
template <class T> using done = std::function<void(outcome<T>)>;

/// One running process in a guest, seen from a door. Thread safe. Destroying it hangs up: the process gets SIGHUP.
class exec_session {
public:
  virtual ~exec_session() = default;
  /// Takes at most 32 KiB; `taken` runs when more may be written (the guest has granted credit).
  virtual void write_stdin(std::string bytes, std::function<void()> taken) = 0;
  virtual void close_stdin() = 0;
  virtual void resize(std::uint32_t rows, std::uint32_t columns) = 0;
  virtual void signal(int number) = 0;
  /// Grants the guest credit for output that the door has passed on. Without it a stream stands still.
  virtual void consumed_stdout(std::size_t bytes) = 0;
  virtual void consumed_stderr(std::size_t bytes) = 0;
};

struct exec_events {
  std::function<void()> on_started;
  std::function<void(std::string_view)> on_stdout;
  std::function<void(std::string_view)> on_stderr;
  std::function<void(outcome<v1::ExecExited>)> on_end;  ///< last call, always
};

class event_subscription {
public:
  virtual ~event_subscription() = default;  ///< ends it
};

class service {
public:
  virtual ~service() = default;  ///< detaches: sandboxes run on and are found by the next engine

  virtual void create(v1::CreateSandbox, done<v1::SandboxStatus>) = 0;
  virtual void get(v1::GetSandbox, done<v1::SandboxStatus>) = 0;
  virtual void list(v1::ListSandboxes, done<v1::SandboxList>) = 0;
  virtual void stop(v1::StopSandbox, done<v1::SandboxStatus>) = 0;
  virtual void remove(v1::RemoveSandbox, done<v1::SandboxStatus>) = 0;
  virtual void pause(v1::PauseSandbox, done<v1::SandboxStatus>) = 0;
  virtual void resume(v1::ResumeSandbox, done<v1::SandboxStatus>) = 0;
  virtual void resize(v1::ResizeSandbox, done<v1::Operation>) = 0;
  virtual void get_operation(v1::GetOperation, done<v1::Operation>) = 0;
  virtual void wait_operation(v1::WaitOperation, done<v1::Operation>) = 0;
  virtual void cancel_operation(v1::CancelOperation, done<v1::Operation>) = 0;
  virtual void console(v1::ConsoleRequest, done<v1::ConsoleText>) = 0;
  virtual void status(v1::GetEngine, done<v1::EngineStatus>) = 0;

  /// What a sandbox of this configuration would get on this host: the configuration resolved, then the backend asked
  /// (`describe_backend`, with Caisson's own guest for the accelerator's probe). Nothing is kept but the probe's cache.
  virtual void describe(v1::DescribeHost, done<v1::Capabilities>) = 0;

  /// Starts a process. `events.on_end` comes exactly once, also where it could not be started.
  virtual std::shared_ptr<exec_session> exec(v1::ExecRequest, exec_events events) = 0;

  /// Old events from `from_seq` (0: none), then live ones, without a gap. `on_event` runs on one thread at a time;
  /// `passed_on(n)` of the returned object is not needed: a reader that is slow gets a "lagged" event instead.
  /// on_caught_up runs once, when the old events have been delivered.
  virtual std::unique_ptr<event_subscription> watch(v1::WatchEvents, std::function<void(const v1::Event&)> on_event,
                                                    std::function<void()> on_caught_up) = 0;

  /// Sandboxes that exist in any state but REMOVED; for ending an engine that nobody needs.
  virtual std::uint32_t sandbox_count() const = 0;
};

/// Takes the state directory's lock, starts the actors, finds the sandboxes that live. Blocks until that is done
/// (bounded: each sandbox's recovery goes on behind). Errors: configuration, host_*, busy (another engine has the directory).
outcome<std::unique_ptr<service>> open(options o);

} // namespace caisson::engine
