#include "config/keys.hpp"

/// [runtime.caisson].
namespace caisson::config {
namespace {

using enum value_type;
constexpr auto own = table::runtime_caisson;
constexpr auto from_us = family::caisson;

// clang-format off
constexpr key rows[] = {
  {.in = own, .name = "memory_autosize", .type = boolean, .preset = "false", .from = from_us, .annotation = "=",
   .doc = "The sandbox's memory follows its load between floor and ceiling. An explicit `resize --memory SIZE` ends that, "
          "`resize --memory auto` begins it again."},
  {.in = own, .name = "memory_autosize_floor", .type = integer, .unit = "MiB", .preset = "0", .high = 16777216,
   .from = from_us, .annotation = "=", .doc = "Never below it. 0: what the sandbox booted with."},
  {.in = own, .name = "memory_autosize_ceiling", .type = integer, .unit = "MiB", .preset = "0", .high = 16777216,
   .from = from_us, .annotation = "=", .doc = "Never above it. 0: default_maxmemory."},
  {.in = own, .name = "memory_autosize_step", .type = integer, .unit = "MiB", .preset = "128", .low = 2,
   .high = 1048576, .from = from_us, .annotation = "=",
   .doc = "The least change. One growth is at most four of them, or the headroom where that is more."},
  {.in = own, .name = "memory_autosize_headroom", .type = integer, .unit = "MiB", .preset = "128", .low = 16,
   .high = 1048576, .from = from_us, .annotation = "=",
   .doc = "What shall be available in the guest: below it the sandbox grows at once, above it and two steps it gives "
          "back after the cool-down."},
  {.in = own, .name = "memory_autosize_cool_down", .type = integer, .unit = "s", .preset = "30", .low = 1,
   .high = 86400, .from = from_us, .annotation = "=",
   .doc = "How long there has to be too much before some is given back."},
  {.in = own, .name = "free_page_reporting", .type = boolean, .preset = "true", .from = from_us, .annotation = "=",
   .doc = "Pages that the guest frees go back to the host by themselves, where the hypervisor can."},
  {.in = own, .name = "host_reserve_mib", .type = integer, .unit = "MiB", .preset = "256", .high = 16777216,
   .from = from_us,
   .doc = "Of what the host has available so much is promised to no sandbox: creating or growing one is refused before."},
  {.in = own, .name = "overcommit", .type = number, .preset = "1", .low = 1, .high = 16, .from = from_us,
   .doc = "How much more than the host has may be promised to its sandboxes. 1: nothing."},
};
// clang-format on

} // namespace

std::span<const key> caisson_keys() {
  return rows;
}

} // namespace caisson::config
