#include "config/keys.hpp"

/// [agent.kata] and [agent.kata.mem_agent].
namespace caisson::config {
namespace {

using enum value_type;
using enum treatment;
constexpr auto ag = table::agent;
constexpr auto mem = table::mem_agent;
constexpr std::int64_t no_bound = 9223372036854775807;
constexpr std::string_view own_agent = "Caisson's own agent has no such thing";
constexpr std::string_view no_trace = "there is no tracing; events and metrics tell what happens";
constexpr std::string_view no_mem_agent = "memory comes back by resizing the sandbox";

// clang-format off
constexpr key rows[] = {
  {.in = ag, .name = "enable_debug", .type = boolean, .preset = "false", .what = accepted, .inert = "*",
   .why = "the agent says what there is to say either way", .doc = "More words from the agent."},
  {.in = ag, .name = "enable_tracing", .type = boolean, .preset = "false", .annotation = "=", .what = accepted,
   .why = no_trace, .doc = "Trace the agent's calls."},
  {.in = ag, .name = "log_level", .type = text, .preset = "\"info\"",
   .choices = "trace|debug|info|warn|warning|error|critical", .from = family::kata_rs, .what = accepted, .inert = "*",
   .why = "the agent says what there is to say either way", .doc = "Log level of the agent."},
  {.in = ag, .name = "trace_mode", .type = text, .preset = "\"\"", .from = family::kata_1x, .what = accepted,
   .inert = "dynamic|static", .why = no_trace, .doc = "How the agent is traced."},
  {.in = ag, .name = "trace_type", .type = text, .preset = "\"\"", .from = family::kata_1x, .what = accepted,
   .inert = "isolated|collated", .why = no_trace, .doc = "What of the agent is traced."},
  {.in = ag, .name = "kernel_modules", .type = text_list, .preset = "[]", .annotation = "=", .what = refused,
   .why = "Caisson's own guest loads exactly the modules that it was built with",
   .doc = "Kernel modules for the guest."},
  {.in = ag, .name = "debug_console_enabled", .type = boolean, .preset = "false", .what = accepted, .inert = "true",
   .why = "`caisson exec` and `caisson console` are always there", .doc = "A debug console in the guest."},
  {.in = ag, .name = "boot_timeout_ms", .type = integer, .unit = "ms", .low = 1000, .high = 3600000,
   .from = family::caisson,
   .doc = "Longest time from the VM's start to the agent's first answer. Wins over the three below; default 60000."},
  {.in = ag, .name = "dial_timeout", .type = integer, .unit = "s", .high = 3600, .from = family::kata_go,
   .doc = "Longest time from the VM's start to the agent's first answer. Under 60 s it is raised to 60 s, which is "
          "reported."},
  {.in = ag, .name = "reconnect_timeout_ms", .type = integer, .unit = "ms", .high = 3600000, .from = family::kata_rs,
   .doc = "The Rust runtime's name of `dial_timeout`, in milliseconds. Under 60000 it is raised, which is reported."},
  {.in = ag, .name = "dial_timeout_ms", .type = integer, .unit = "ms", .preset = "10", .high = 3600000,
   .from = family::kata_rs, .what = accepted, .inert = "*",
   .why = "nobody polls: the guest's channel announces itself", .doc = "Pause between two attempts."},
  {.in = ag, .name = "create_container_timeout", .type = integer, .unit = "s", .high = 86400, .from = family::kata_rs,
   .doc = "Longest time for the creation of one container. Default 60 s."},
  {.in = ag, .name = "cdh_api_timeout", .type = integer, .unit = "s", .preset = "50", .from = family::kata_go,
   .what = accepted, .inert = "*", .why = own_agent, .doc = "Patience with the confidential data hub."},
  {.in = ag, .name = "cdh_api_timeout_ms", .type = integer, .unit = "ms", .preset = "50000", .from = family::kata_rs,
   .what = accepted, .inert = "*", .why = own_agent, .doc = "Patience with the confidential data hub."},
  {.in = ag, .name = "launch_process_timeout", .type = integer, .unit = "s", .preset = "6", .from = family::kata_go,
   .what = accepted, .inert = "*", .why = own_agent, .doc = "Patience with the agent's helpers."},
  {.in = ag, .name = "visible_cdi_devices", .type = boolean, .preset = "false", .from = family::kata_go,
   .what = refused, .why = "Caisson passes no devices through", .doc = "Containers see the CDI devices' names."},
  {.in = ag, .name = "container_pipe_size", .type = integer, .unit = "bytes", .preset = "0", .from = family::kata_rs,
   .annotation = "=", .what = accepted, .inert = "1", .why = "streams have credit, not a fixed size",
   .doc = "Size of a container's pipes."},
  {.in = ag, .name = "server_port", .type = integer, .preset = "1024", .from = family::kata_rs, .what = accepted,
   .inert = "*", .why = "the backend chooses the channel to the guest", .doc = "vsock port of the agent."},
  {.in = ag, .name = "log_port", .type = integer, .preset = "1025", .from = family::kata_rs, .what = accepted,
   .inert = "*", .why = "the backend chooses the channel to the guest", .doc = "vsock port of the agent's log."},
  {.in = ag, .name = "passfd_listener_port", .type = integer, .preset = "0", .from = family::kata_rs,
   .what = accepted, .inert = "*", .why = "the backend chooses the channel to the guest",
   .doc = "vsock port for passed descriptors."},
  {.in = ag, .name = "request_timeout_ms", .type = integer, .unit = "ms", .preset = "30000", .from = family::kata_rs,
   .what = accepted, .inert = "*", .why = "every request carries its own deadline",
   .doc = "Patience with a call to the agent."},
  {.in = ag, .name = "health_check_request_timeout_ms", .type = integer, .unit = "ms", .preset = "90000",
   .from = family::kata_rs, .what = accepted, .inert = "*", .why = "nobody polls the agent",
   .doc = "Patience with a health check."},
  {.in = ag, .name = "policy", .type = text, .preset = "\"\"", .annotation = "=", .what = refused,
   .why = "Caisson's agent enforces no policy of its own; one that was asked for must not be missing in silence",
   .doc = "Policy of the agent, base64."},

  {.in = mem, .name = "mem_agent_enable", .type = boolean, .preset = "false", .from = family::kata_rs,
   .what = accepted, .why = no_mem_agent, .doc = "Reclaim memory inside the guest. The keys below are its details."},
  {.in = mem, .name = "memcg_disable", .type = boolean, .preset = "false", .from = family::kata_rs, .what = accepted,
   .inert = "*", .why = no_mem_agent, .doc = "No reclaim by memory cgroups."},
  {.in = mem, .name = "memcg_swap", .type = boolean, .preset = "false", .from = family::kata_rs, .what = accepted,
   .inert = "*", .why = no_mem_agent, .doc = "Reclaim may swap."},
  {.in = mem, .name = "memcg_swappiness_max", .type = integer, .preset = "50", .high = 200, .from = family::kata_rs,
   .what = accepted, .inert = "*", .why = no_mem_agent, .doc = "Highest swappiness."},
  {.in = mem, .name = "memcg_period_secs", .type = integer, .unit = "s", .preset = "600", .high = no_bound,
   .from = family::kata_rs, .what = accepted, .inert = "*", .why = no_mem_agent, .doc = "Time between two looks."},
  {.in = mem, .name = "memcg_period_psi_percent_limit", .type = integer, .unit = "%", .preset = "1", .high = 100,
   .from = family::kata_rs, .what = accepted, .inert = "*", .why = no_mem_agent,
   .doc = "Pressure that stops a look."},
  {.in = mem, .name = "memcg_eviction_psi_percent_limit", .type = integer, .unit = "%", .preset = "1", .high = 100,
   .from = family::kata_rs, .what = accepted, .inert = "*", .why = no_mem_agent,
   .doc = "Pressure that stops an eviction."},
  {.in = mem, .name = "memcg_eviction_run_aging_count_min", .type = integer, .preset = "3", .high = no_bound,
   .from = family::kata_rs, .what = accepted, .inert = "*", .why = no_mem_agent, .doc = "Looks before an eviction."},
  {.in = mem, .name = "compact_disable", .type = boolean, .preset = "false", .from = family::kata_rs,
   .what = accepted, .inert = "*", .why = no_mem_agent, .doc = "No compaction."},
  {.in = mem, .name = "compact_period_secs", .type = integer, .unit = "s", .preset = "600", .high = no_bound,
   .from = family::kata_rs, .what = accepted, .inert = "*", .why = no_mem_agent,
   .doc = "Time between two compactions."},
  {.in = mem, .name = "compact_period_psi_percent_limit", .type = integer, .unit = "%", .preset = "1", .high = 100,
   .from = family::kata_rs, .what = accepted, .inert = "*", .why = no_mem_agent,
   .doc = "Pressure that defers a compaction."},
  {.in = mem, .name = "compact_psi_percent_limit", .type = integer, .unit = "%", .preset = "5", .high = 100,
   .from = family::kata_rs, .what = accepted, .inert = "*", .why = no_mem_agent,
   .doc = "Pressure that stops a compaction."},
  {.in = mem, .name = "compact_sec_max", .type = integer, .unit = "s", .preset = "300", .high = no_bound,
   .from = family::kata_rs, .what = accepted, .inert = "*", .why = no_mem_agent, .doc = "Longest compaction."},
  {.in = mem, .name = "compact_order", .type = integer, .preset = "9", .high = 255, .from = family::kata_rs,
   .what = accepted, .inert = "*", .why = no_mem_agent, .doc = "Order that compaction aims at."},
  {.in = mem, .name = "compact_threshold", .type = integer, .preset = "1024", .high = no_bound,
   .from = family::kata_rs, .what = accepted, .inert = "*", .why = no_mem_agent,
   .doc = "Free blocks that make a compaction worth while."},
  {.in = mem, .name = "compact_force_times", .type = integer, .preset = "9223372036854775807", .high = no_bound,
   .from = family::kata_rs, .what = accepted, .inert = "*", .why = no_mem_agent,
   .doc = "Looks before a forced compaction."},
};
// clang-format on

} // namespace

std::span<const key> agent_keys() {
  return rows;
}

} // namespace caisson::config
