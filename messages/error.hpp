#pragma once

/// What can go wrong, and who can mend it. One row a code in error.cpp: name, who can act, whether the same request may
/// succeed later unchanged, exit status of a command line, gRPC code. Everything that fails in Caisson ends as one of
/// these with a sentence that names the thing, where it stands, what was expected and how to mend it.

#include <caf/error.hpp>
#include <caf/fwd.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "messages/error.pb.h"

namespace caisson {

enum class ec : std::uint8_t {
  none = 0,
  // the caller can mend it
  invalid_argument,
  out_of_range,
  not_found,
  already_exists,
  configuration,
  unsupported,
  // the sandbox's state is in the way; later or after another command it may work
  not_running,
  busy,
  conflict,
  cancelled,
  // the VMM or the guest did not do it
  backend_refused,
  backend_lost,
  outcome_unknown,
  vmm_died,
  guest_unresponsive,
  guest_refused,
  guest_protocol,
  boot_failed,
  deadline_exceeded,
  // the host's operator can mend it
  host_missing,
  host_denied,
  host_resources,
  host_io,
  journal,
  // a fault of ours
  internal,
  count_
};

enum class actor_kind : std::uint8_t { caller, state, guest_or_vmm, host, us };

struct error_row {
  ec code;
  std::string_view name;
  actor_kind who;
  bool retryable;
  int exit_code;
  int grpc_code;
};

/// Never fails: an unknown value gives the row of `internal`.
const error_row& row(ec code) noexcept;

/// The row with this name; nullptr where there is none.
const error_row* row_by_name(std::string_view name) noexcept;

std::string to_string(ec code);

/// An error that crosses actors: code and sentence (and, for a failed boot, the console's last lines).
caf::error make_error(ec code, std::string text);
caf::error make_error(ec code, std::string text, std::vector<std::string> console_tail);
caf::error make_error(const v1::Error& from);

/// Translates any caf::error, CAF's own included (a request timeout becomes deadline_exceeded, a dead receiver
/// backend_lost); `doing` says what was being done and is only used for those.
v1::Error to_proto(const caf::error& from, std::string_view doing = {});

v1::Error error_message(ec code, std::string text);

/// The sentence alone.
std::string text_of(const caf::error& from);

/// The code of an error made here; for CAF's own errors the translation that to_proto() makes.
ec code_of(const caf::error& from);

} // namespace caisson
