#include "config/keys.hpp"

/// [factory] and [hypervisor.X.factory], and the tables of Kata 1.x: [proxy.kata], [shim.kata], [netmon].
namespace caisson::config {
namespace {

using enum value_type;
using enum treatment;
constexpr std::string_view no_template = "there are no VM templates yet";
constexpr std::string_view no_cache = "VMs are not made ahead";
constexpr std::string_view gone = "there is no such process: the engine itself does this work";

// clang-format off
constexpr key rows[] = {
  {.in = table::factory, .name = "enable_template", .type = boolean, .preset = "false", .what = refused,
   .why = no_template, .doc = "Start sandboxes as clones of a template."},
  {.in = table::factory, .name = "template_path", .type = text, .unit = "path", .preset = "\"/run/vc/vm/template\"",
   .what = accepted, .inert = "*", .why = no_template, .doc = "Where the template lies."},
  {.in = table::factory, .name = "vm_cache_number", .type = integer, .preset = "0", .high = 1000,
   .from = family::kata_go, .what = refused, .why = no_cache, .doc = "How many VMs are kept ready."},
  {.in = table::factory, .name = "vm_cache_endpoint", .type = text, .unit = "path",
   .preset = "\"/var/run/kata-containers/cache.sock\"", .from = family::kata_go, .what = accepted, .inert = "*",
   .why = no_cache, .doc = "Socket of the VM cache."},
  {.in = table::hypervisor_factory, .name = "enable_template", .type = boolean, .preset = "false",
   .from = family::kata_rs, .what = refused, .why = no_template, .doc = "Start sandboxes as clones of a template."},
  {.in = table::hypervisor_factory, .name = "template_path", .type = text, .unit = "path",
   .preset = "\"/run/vc/vm/template\"", .from = family::kata_rs, .what = accepted, .inert = "*", .why = no_template,
   .doc = "Where the template lies."},

  {.in = table::proxy, .name = "path", .type = text, .unit = "path", .preset = "\"\"", .from = family::kata_1x,
   .what = accepted, .inert = "*", .why = gone, .doc = "Program of Kata 1.x' proxy."},
  {.in = table::proxy, .name = "enable_debug", .type = boolean, .preset = "false", .from = family::kata_1x,
   .what = accepted, .inert = "*", .why = gone, .doc = "More words from the proxy."},
  {.in = table::shim, .name = "path", .type = text, .unit = "path", .preset = "\"\"", .from = family::kata_1x,
   .what = accepted, .inert = "*", .why = gone, .doc = "Program of Kata 1.x' shim."},
  {.in = table::shim, .name = "enable_debug", .type = boolean, .preset = "false", .from = family::kata_1x,
   .what = accepted, .inert = "*", .why = gone, .doc = "More words from the shim."},
  {.in = table::shim, .name = "enable_tracing", .type = boolean, .preset = "false", .from = family::kata_1x,
   .what = accepted, .inert = "*", .why = gone, .doc = "Trace the shim."},
  {.in = table::netmon, .name = "enable_netmon", .type = boolean, .preset = "false", .from = family::kata_1x,
   .what = accepted, .why = gone, .doc = "Watch the pod's network namespace."},
  {.in = table::netmon, .name = "path", .type = text, .unit = "path", .preset = "\"\"", .from = family::kata_1x,
   .what = accepted, .inert = "*", .why = gone, .doc = "Program of the network monitor."},
  {.in = table::netmon, .name = "enable_debug", .type = boolean, .preset = "false", .from = family::kata_1x,
   .what = accepted, .inert = "*", .why = gone, .doc = "More words from the network monitor."},
};
// clang-format on

} // namespace

std::span<const key> other_keys() {
  return rows;
}

} // namespace caisson::config
