#pragma once

/// The backend's side of backends/host/wire.hpp: what the main() of a caisson-backend-NAME written in C++ stands on.
/// No CAF, no libvirt.
///
///     int main(int argc, char** argv) {
///       std::string error;
///       auto where = caisson::host::parse_arguments(argc, argv, error);
///       if (!where) { std::cerr << error << '\n'; return 2; }
///       my_driver driver{*where};
///       _exit(caisson::host::serve(caisson::host::protocol_fd, driver));  // do not wait for stalled threads
///     }

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "messages/backend.pb.h"

#include "backends/host/wire.hpp"

namespace caisson::host {

/// The four directories that the engine lends. All exist, 0700.
struct arguments {
  std::string state_directory; ///< on disk
  std::string run_directory;   ///< on a tmpfs
  std::string cache_directory; ///< shared by all engines of a user
  std::string log_directory;
};

/// Nothing where the command line is not what the engine gives; `error` then says what was expected.
std::optional<arguments> parse_arguments(int argc, const char* const* argv, std::string& error);

/// Sends what nobody asked for. Thread safe, never blocks; a no-operation once serve() has returned. May be kept.
class emitter {
public:
  virtual ~emitter() = default;
  /// To the listener of that VM. Never dropped as long as the engine reads.
  virtual void event(v1::VmEvent event) = 0;
  /// One line for the engine's log, cut at max_log_line_bytes. At most 200 lines in any 5 s; the number of those that
  /// were left out is told by a line of its own.
  virtual void log_line(std::string_view line) = 0;
};

/// Answers one call. Callable from any thread, at once or later, also after serve() has returned (a no-operation then).
/// The first answer counts, later ones are dropped; `id` is filled in. When the last copy goes away unused, the call is
/// answered with the error `internal`: none stays open by an oversight.
using answer_function = std::function<void(v1::BackendAnswer)>;

/// What a backend implements.
class driver {
public:
  virtual ~driver() = default;

  /// Once, on serve()'s thread, before any submit. Returns what the process is (contract_version may stay 0: it is
  /// filled in); it is sent to the engine at once, so a slow library is opened later. `out` lives as long as it is
  /// kept.
  virtual v1::BackendReady start(std::shared_ptr<emitter> out) = 0;

  /// On serve()'s thread, a call after another, in the order of arrival. MUST return at once (microseconds): the work
  /// is done on the driver's own threads, so that a stalled verb delays neither `inspect` and `destroy` of the same VM
  /// nor anything of another VM. Exactly one verb is set, deadline_ms is never 0.
  virtual void submit(v1::BackendCall call, answer_function answer) = 0;
};

/// Speaks on `fd` (taken over) until the engine's end is closed or breaks the wire's rules. Returns the exit status for
/// the process: 0 after an orderly end, 1 otherwise. The caller then leaves by _exit(): VMs live on, verbs that are
/// under way are abandoned, and the next process reads back what became of them.
int serve(int fd, driver& driver);

/// Short forms for drivers. `code` is the name of a row of messages/error.hpp: "backend_refused", "vmm_died", ...
v1::BackendAnswer failure(std::string_view code, std::string text);
v1::BackendAnswer success(v1::VmObserved observed);
v1::BackendAnswer success(v1::Capabilities capabilities);
v1::BackendAnswer success(v1::VmList list);

} // namespace caisson::host
