#pragma once

/// Caisson as a library: sandboxes (lightweight virtual machines) kept by your own program. C++20, std types only.
///
/// The engine installs no signal handler, writes nothing to stdout or stderr, calls no exit(), and has no global state:
/// several engines with a state directory each work in one program. VMMs are child processes of a helper; they outlive the
/// engine, and the next engine over the same state directory finds them.
///
/// Everything is asynchronous with a completion callback, which runs on a thread of the engine and must not block; each
/// call has a blocking twin that returns when the answer is there (called inside a callback it is refused, since it would
/// wait for itself). Every call is answered, within its time; those that are under way when the engine is destroyed are
/// answered with the error `cancelled` before its destructor returns, and no callback runs after that. What a callback
/// throws is caught and logged. All members are thread safe.

#if defined(__GNUC__)
#define CAISSON_API __attribute__((visibility("default")))
#else
#define CAISSON_API
#endif

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace caisson {
inline namespace abi0 {

/// Of the library that is running, e.g. "0.1.0".
CAISSON_API std::string_view version() noexcept;

/// Why something could not be done. `code` is one of the names in docs/errors.md ("out_of_range", "not_found", ...).
struct error {
  std::string code;
  std::string text;            ///< names the thing, where it stands, what was expected and how to mend it
  bool retryable = false;      ///< the same call may succeed later, unchanged
  std::vector<std::string> console_tail;  ///< last console lines where they explain a failed boot
};

/// A value or an error.
template <class T> class result {
public:
  result(T value) : state_(std::move(value)) {}
  result(error why) : state_(std::move(why)) {}
  bool ok() const noexcept { return state_.index() == 0; }
  explicit operator bool() const noexcept { return ok(); }
  T& value() & { check(); return std::get<0>(state_); }
  const T& value() const& { check(); return std::get<0>(state_); }
  T&& value() && { check(); return std::get<0>(std::move(state_)); }
  const error& why() const { return std::get<1>(state_); }

private:
  void check() const {
    if (!ok())
      throw std::runtime_error("caisson: " + std::get<1>(state_).text);
  }
  std::variant<T, error> state_;
};

struct engine_options {
  std::string state_directory;    ///< "": $XDG_STATE_HOME/caisson, for root /var/lib/caisson
  std::string run_directory;      ///< "": worked out from the state directory; must be on a tmpfs to be fast
  std::string cache_directory;    ///< "": $XDG_CACHE_HOME/caisson, for root /var/cache/caisson
  std::string guest_directory;    ///< "": the guest that came with the installation
  std::string program_directory;  ///< "": where the installation keeps caisson-backend-*
  std::function<void(std::string_view)> log;  ///< one line; empty: nothing is logged
};

enum class sandbox_state { creating, running, paused, stopping, stopped, failed, removed, recovering };
CAISSON_API std::string_view to_string(sandbox_state) noexcept;

struct memory_figures {
  std::uint64_t boot_bytes = 0;     ///< at start
  std::uint64_t plugged_bytes = 0;  ///< what the VMM says it has added
  std::uint64_t guest_bytes = 0;    ///< what the guest says it has
  std::uint64_t target_bytes = 0;   ///< what was asked of boot + plugged
  std::uint64_t max_bytes = 0;
  std::uint64_t host_bytes = 0;     ///< what the host really pays (PSS of the VMM); 0: unknown
  std::uint64_t promised_bytes = 0; ///< what the host keeps for it: the largest of target and plugged, and the VMM's overhead
  bool follows_load = false;        ///< automatic memory is in force
};

struct vcpu_figures {
  std::uint32_t target = 0, online = 0, plugged = 0, max = 0;
  std::uint32_t target_milli = 0;   ///< thousandths; `target` is this rounded up
  std::uint32_t quota_milli = 0;    ///< CPU quota of the workload in the guest, as the guest shows it; 0: none
};

struct adaptation {
  std::string key, asked, used, why, where;
};

struct sandbox_status {
  std::string id, name;
  sandbox_state state = sandbox_state::creating;
  memory_figures memory;
  vcpu_figures vcpus;
  std::int64_t vmm_pid = 0;
  std::string hypervisor, accelerator, architecture, stop_reason;
  std::vector<adaptation> adaptations;
};

struct sandbox_options {
  std::string name;                     ///< "" picks one
  std::string config_path;              ///< a Kata-style configuration.toml; "" takes the search order
  std::map<std::string, std::string> annotations;
  std::uint64_t memory_bytes = 0;       ///< boot size; 0 takes the configuration's
  std::uint32_t vcpus = 0;              ///< 0 takes the configuration's
  std::string hypervisor;               ///< "" takes the configuration's
  std::string architecture;             ///< "x86_64", "aarch64"; "" takes the configuration's
};

enum class operation_state { planned, running, converged, partly, failed, cancelled };
CAISSON_API std::string_view to_string(operation_state) noexcept;

/// A resize that can be read again for as long as its sandbox lives.
struct operation {
  std::string id, sandbox_id;
  operation_state state = operation_state::running;
  std::uint64_t memory_asked_bytes = 0, memory_target_bytes = 0;
  memory_figures memory;                ///< last read back
  vcpu_figures vcpus;
  std::string why;                      ///< of partly, failed, cancelled
  std::vector<std::string> plan;        ///< the steps, for a person
  bool ended() const noexcept { return state != operation_state::running; }
};

struct resize_request {
  std::uint64_t memory_bytes = 0;  ///< target of boot + plugged; 0 leaves it alone
  std::uint32_t vcpus = 0;         ///< target of online vCPUs; 0 leaves them alone
  bool dry_run = false;
  std::uint32_t vcpus_milli = 0;   ///< instead of `vcpus`: thousandths; 1500 is 2 vCPUs and a quota of 1.5
  bool follow_load = false;        ///< memory may follow the load from this target (0: what there is) on; an explicit
                                   ///< target without it ends that
};

struct exec_request {
  std::vector<std::string> argv;
  std::vector<std::string> environment;  ///< NAME=value
  std::string working_directory;
  std::string stdin_bytes;
};

/// Output is collected up to `exec_output_limit_bytes` a stream; what is over is counted.
inline constexpr std::size_t exec_output_limit_bytes = 4u << 20;

struct exec_result {
  int exit_code = 0;               ///< 126, 127, 128+n as a shell gives
  std::string out, err;
  std::uint64_t dropped_bytes = 0; ///< output over the limit
};

struct event {
  std::uint64_t seq = 0;
  std::int64_t unix_ms = 0;
  std::string type, sandbox_id, sandbox_name, text;
  std::uint64_t lagged = 0;        ///< so many events were dropped for this slow subscriber
};

/// Keeps a subscription alive; its end ends it (inside its own callback too). No callback runs after the destructor has
/// returned. It may outlive its engine, and is quiet then.
class CAISSON_API subscription {
public:
  virtual ~subscription() = default;
};

class CAISSON_API engine {
public:
  /// Blocks until the state directory is locked and its living sandboxes are found.
  static result<std::unique_ptr<engine>> open(engine_options options);
  ~engine();  ///< detaches; sandboxes run on. Not from inside a callback
  engine(const engine&) = delete;
  engine& operator=(const engine&) = delete;

  template <class T> using done = std::function<void(result<T>)>;

  void create(sandbox_options options, done<sandbox_status> then);
  void get(std::string sandbox, done<sandbox_status> then);
  void list(done<std::vector<sandbox_status>> then);
  void resize(std::string sandbox, resize_request request, done<operation> then);           ///< answers at once
  void wait(std::string operation_id, std::chrono::milliseconds at_most, done<operation> then);
  void exec(std::string sandbox, exec_request request, done<exec_result> then);
  void stop(std::string sandbox, done<sandbox_status> then);
  void remove(std::string sandbox, bool force, done<sandbox_status> then);

  result<sandbox_status> create(sandbox_options options);
  result<sandbox_status> get(std::string sandbox);
  result<std::vector<sandbox_status>> list();
  result<operation> resize(std::string sandbox, resize_request request);  ///< blocks until the operation has ended
  result<exec_result> exec(std::string sandbox, exec_request request);
  result<sandbox_status> stop(std::string sandbox);
  result<sandbox_status> remove(std::string sandbox, bool force = false);

  /// Events from `from_seq` on (0: from now). `on_event` runs on a thread of the engine, one call at a time; one that is
  /// slow gets an event with `lagged` set in place of those that it has missed.
  std::unique_ptr<subscription> subscribe(std::uint64_t from_seq, std::function<void(const event&)> on_event);

private:
  class impl;
  explicit engine(std::unique_ptr<impl>);
  std::unique_ptr<impl> impl_;
};

} // namespace abi0
} // namespace caisson
