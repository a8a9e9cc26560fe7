#include "messages/error.hpp"

#include <array>

#include <caf/all.hpp>

#include "messages/inspect.hpp"

namespace caisson {
namespace {

using enum actor_kind;

constexpr auto count = static_cast<std::size_t>(ec::count_);

// Exit codes: 2 usage or configuration, 125 the engine could not do it. gRPC codes: google/rpc/code.proto.
constexpr std::array<error_row, count> rows{{
    {ec::none, "none", us, false, 0, 0},
    {ec::invalid_argument, "invalid_argument", caller, false, 2, 3},
    {ec::out_of_range, "out_of_range", caller, false, 2, 11},
    {ec::not_found, "not_found", caller, false, 125, 5},
    {ec::already_exists, "already_exists", caller, false, 125, 6},
    {ec::configuration, "configuration", caller, false, 2, 3},
    {ec::unsupported, "unsupported", caller, false, 125, 12},
    {ec::not_running, "not_running", state, false, 125, 9},
    {ec::busy, "busy", state, true, 125, 9},
    {ec::conflict, "conflict", state, true, 125, 10},
    {ec::cancelled, "cancelled", state, false, 125, 1},
    {ec::backend_refused, "backend_refused", guest_or_vmm, false, 125, 9},
    {ec::backend_lost, "backend_lost", guest_or_vmm, true, 125, 14},
    {ec::outcome_unknown, "outcome_unknown", guest_or_vmm, true, 125, 14},
    {ec::vmm_died, "vmm_died", guest_or_vmm, false, 125, 10},
    {ec::guest_unresponsive, "guest_unresponsive", guest_or_vmm, true, 125, 4},
    {ec::guest_refused, "guest_refused", guest_or_vmm, true, 125, 9},
    {ec::guest_protocol, "guest_protocol", guest_or_vmm, false, 125, 15},
    {ec::boot_failed, "boot_failed", guest_or_vmm, false, 125, 9},
    {ec::deadline_exceeded, "deadline_exceeded", guest_or_vmm, true, 125, 4},
    {ec::host_missing, "host_missing", host, false, 125, 9},
    {ec::host_denied, "host_denied", host, false, 125, 7},
    {ec::host_resources, "host_resources", host, true, 125, 8},
    {ec::host_io, "host_io", host, true, 125, 15},
    {ec::journal, "journal", host, true, 125, 15},
    {ec::internal, "internal", us, false, 125, 13},
}};

constexpr bool in_order() {
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (static_cast<std::size_t>(rows[i].code) != i)
      return false;
  return true;
}
static_assert(in_order(), "a row a code, in the order of the enum");

const caf::atom_value category = caf::atom("caisson");

v1::Error* detail(const caf::error& from, v1::Error& storage) {
  if (from.category() != category || from.context().size() != 1 || !from.context().match_elements<v1::Error>())
    return nullptr;
  storage = from.context().get_as<v1::Error>(0);
  return &storage;
}

} // namespace

const error_row& row(ec code) noexcept {
  auto at = static_cast<std::size_t>(code);
  return at < rows.size() ? rows[at] : rows.back();
}

const error_row* row_by_name(std::string_view name) noexcept {
  for (const auto& r : rows)
    if (r.name == name)
      return &r;
  return nullptr;
}

std::string to_string(ec code) {
  return std::string{row(code).name};
}

v1::Error error_message(ec code, std::string text) {
  const auto& r = row(code);
  v1::Error e;
  e.set_code(std::string{r.name});
  e.set_text(std::move(text));
  e.set_retryable(r.retryable);
  e.set_exit_code(r.exit_code);
  return e;
}

caf::error make_error(ec code, std::string text) {
  return caf::error{static_cast<std::uint8_t>(code), category, caf::make_message(error_message(code, std::move(text)))};
}

caf::error make_error(ec code, std::string text, std::vector<std::string> console_tail) {
  auto e = error_message(code, std::move(text));
  for (auto& line : console_tail)
    e.add_console_tail(std::move(line));
  return caf::error{static_cast<std::uint8_t>(code), category, caf::make_message(std::move(e))};
}

caf::error make_error(const v1::Error& from) {
  const auto* r = row_by_name(from.code());
  auto code = r ? r->code : ec::internal;
  return caf::error{static_cast<std::uint8_t>(code), category, caf::make_message(v1::Error{from})};
}

ec code_of(const caf::error& from) {
  if (!from)
    return ec::none;
  if (from.category() == category)
    return static_cast<ec>(from.code());
  if (from == caf::sec::request_timeout)
    return ec::deadline_exceeded;
  if (from == caf::sec::request_receiver_down || from.category() == caf::atom("exit"))
    return ec::backend_lost;
  return ec::internal;
}

v1::Error to_proto(const caf::error& from, std::string_view doing) {
  v1::Error e;
  if (!from)
    return e;
  if (detail(from, e))
    return e;
  auto code = code_of(from);
  std::string what{doing.empty() ? std::string_view{"the request"} : doing};
  switch (code) {
  case ec::deadline_exceeded: return error_message(code, what + ": no answer within its time");
  case ec::backend_lost: return error_message(code, what + ": the part of the engine that does it has ended");
  default: return error_message(ec::internal, what + ": " + caf::to_string(from));
  }
}

std::string text_of(const caf::error& from) {
  return to_proto(from).text();
}

} // namespace caisson
