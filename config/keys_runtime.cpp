#include "config/keys.hpp"

/// [runtime].
namespace caisson::config {
namespace {

using enum value_type;
using enum treatment;
constexpr auto rt = table::runtime;
constexpr std::string_view no_trace = "there is no tracing; events and metrics tell what happens";

// clang-format off
constexpr key rows[] = {
  {.in = rt, .name = "dialect", .type = text, .preset = "\"page\"", .choices = "kata|page", .from = family::caisson,
   .doc = "Whose defaults hold where a file says nothing. `page`: the secure-container page's (1024 MiB, sizing "
          "rule `share`); `kata`: upstream Kata's (2048 MiB, sizing rule `add`)."},
  {.in = rt, .name = "sizing_rule", .type = text, .preset = "\"add\"", .page_preset = "\"share\"",
   .choices = "add|share", .from = family::caisson,
   .doc = "`add`: memory = default_memory + the containers' limits. `share`: the limits include default_memory (at "
          "least 1 GiB, at most 256 GiB)."},
  {.in = rt, .name = "static_sandbox_resource_mgmt", .type = boolean, .preset = "false",
   .doc = "Size the sandbox at boot from the limits that are known then; later containers change nothing. An "
          "explicit resize is always honoured."},
  {.in = rt, .name = "hypervisor_name", .type = text, .preset = "\"\"", .annotation = "=",
   .doc = "Which [hypervisor.X] counts. Empty: the only one in the file."},
  {.in = rt, .name = "agent_name", .type = text, .preset = "\"kata\"", .choices = "kata", .from = family::kata_rs,
   .annotation = "=", .what = accepted, .why = "the sandbox runs Caisson's own agent, whatever the table is called",
   .doc = "Which [agent.X] counts."},
  {.in = rt, .name = "name", .type = text, .preset = "\"virt_container\"", .choices = "virt_container",
   .from = family::kata_rs, .annotation = "=", .what = accepted, .why = "there is one kind of sandbox: a VM",
   .doc = "Kind of runtime."},
  {.in = rt, .name = "create_container_timeout", .type = integer, .unit = "s", .high = 86400, .from = family::kata_go,
   .annotation = "=", .doc = "Longest time for the creation of one container. Default 60 s."},
  {.in = rt, .name = "enable_debug", .type = boolean, .preset = "false", .what = accepted, .inert = "*",
   .why = "the engine's log level is set where the engine is started", .doc = "More words from the runtime."},
  {.in = rt, .name = "log_level", .type = text, .preset = "\"info\"",
   .choices = "trace|debug|info|warn|warning|error|critical", .from = family::kata_rs, .what = accepted, .inert = "*",
   .why = "the engine's log level is set where the engine is started", .doc = "Log level of the runtime."},
  {.in = rt, .name = "enable_cpu_memory_hotplug", .type = boolean, .preset = "true", .from = family::kata_1x,
   .what = accepted, .inert = "*",
   .why = "hotplug is always there; static_sandbox_resource_mgmt says whether limits use it",
   .doc = "Memory and vCPUs may be hotplugged."},
  {.in = rt, .name = "internetworking_model", .type = text, .preset = "\"tcfilter\"",
   .choices = "tcfilter|macvtap|none|l3forwarding|bridged", .annotation = "=", .what = accepted, .inert = "none",
   .why = "a pod's interface is joined by traffic control rules (tcfilter)",
   .doc = "How the VM joins the pod's network."},
  {.in = rt, .name = "disable_guest_seccomp", .type = boolean, .preset = "true", .annotation = "=", .what = accepted,
   .inert = "*", .why = "a container's seccomp profile is applied inside the guest",
   .doc = "No seccomp inside the guest."},
  {.in = rt, .name = "guest_selinux_label", .type = text, .preset = "\"\"", .from = family::kata_go,
   .annotation = "=", .what = accepted, .why = "the guest's kernel runs without SELinux",
   .doc = "SELinux label inside the guest."},
  {.in = rt, .name = "enable_vcpus_pinning", .type = boolean, .preset = "false", .what = refused,
   .why = "vCPUs are not pinned", .doc = "Pin vCPU threads to the cpuset."},
  {.in = rt, .name = "enable_tracing", .type = boolean, .preset = "false", .what = accepted, .why = no_trace,
   .doc = "Trace the runtime."},
  {.in = rt, .name = "jaeger_endpoint", .type = text, .preset = "\"\"", .what = accepted, .why = no_trace,
   .doc = "Where traces go."},
  {.in = rt, .name = "jaeger_user", .type = text, .preset = "\"\"", .what = accepted, .why = no_trace,
   .doc = "User of the collector."},
  {.in = rt, .name = "jaeger_password", .type = text, .preset = "\"\"", .what = accepted, .why = no_trace,
   .doc = "Password of the collector."},
  {.in = rt, .name = "disable_new_netns", .type = boolean, .preset = "false", .annotation = "=", .what = refused,
   .why = "a VM never runs in the host's network namespace", .doc = "No network namespace for the VM."},
  {.in = rt, .name = "sandbox_cgroup_only", .type = boolean, .preset = "false", .annotation = "=", .what = accepted,
   .inert = "*", .why = "the caller's cgroup is used where there is one",
   .doc = "Everything of a sandbox in one cgroup."},
  {.in = rt, .name = "sandbox_bind_mounts", .type = text_list, .preset = "[]", .what = refused,
   .why = "nothing of the host is mounted into the guest", .doc = "Host directories for the guest, read-only."},
  {.in = rt, .name = "shared_mounts", .type = tables, .from = family::kata_rs, .what = refused,
   .why = "containers of a pod share no mounts", .doc = "Mounts that two containers share."},
  {.in = rt, .name = "vfio_mode", .type = text, .preset = "\"guest-kernel\"", .choices = "vfio|guest-kernel",
   .annotation = "=", .what = accepted, .why = "Caisson passes no host devices through (VFIO)",
   .doc = "What a container sees of a VFIO device."},
  {.in = rt, .name = "disable_guest_empty_dir", .type = boolean, .preset = "false", .from = family::kata_go,
   .what = accepted, .inert = "*", .why = "volumes are not made by the runtime",
   .doc = "Where Kubernetes' emptyDir lies."},
  {.in = rt, .name = "emptydir_mode", .type = text, .preset = "\"shared-fs\"",
   .choices = "shared-fs|block-encrypted|block-plain", .what = accepted, .why = "volumes are not made by the runtime",
   .doc = "How Kubernetes' emptyDir reaches the guest."},
  {.in = rt, .name = "experimental", .type = text_list, .preset = "[]", .annotation = "=", .what = refused,
   .why = "there are no experimental features to switch on", .doc = "Experimental features."},
  {.in = rt, .name = "experimental_force_guest_pull", .type = boolean, .preset = "false", .annotation = "=",
   .what = refused, .why = "the guest pulls no images", .doc = "Images are pulled inside the guest."},
  {.in = rt, .name = "enable_pprof", .type = boolean, .preset = "false", .annotation = "=", .what = accepted,
   .why = "pprof is for Go programs", .doc = "Profile the runtime."},
  {.in = rt, .name = "dan_conf", .type = text, .unit = "path", .preset = "\"/run/kata-containers/dans\"",
   .what = accepted, .inert = "*", .why = "there are no directly attached networks",
   .doc = "Directory of directly attachable networks."},
  {.in = rt, .name = "kubelet_root_dir", .type = text, .unit = "path", .preset = "\"/var/lib/kubelet\"",
   .from = family::kata_go, .what = accepted, .inert = "*", .why = "the kubelet's directory is not read",
   .doc = "Kubelet's root directory."},
  {.in = rt, .name = "pod_resource_api_sock", .type = text, .unit = "path", .preset = "\"\"", .from = family::kata_go,
   .what = refused, .why = "Caisson passes no host devices through (VFIO)",
   .doc = "Kubelet's socket for device assignment."},
  {.in = rt, .name = "keep_abnormal", .type = boolean, .preset = "false", .from = family::kata_rs, .what = accepted,
   .inert = "*", .why = "a sandbox that failed keeps its record and its logs",
   .doc = "Keep what is left of a failed sandbox."},
  {.in = rt, .name = "use_passfd_io", .type = boolean, .preset = "false", .from = family::kata_rs, .what = accepted,
   .inert = "*", .why = "the backend chooses the channel to the guest",
   .doc = "Container I/O by passed descriptors."},
  {.in = rt, .name = "passfd_listener_port", .type = integer, .preset = "1027", .from = family::kata_rs,
   .what = accepted, .inert = "*", .why = "the backend chooses the channel to the guest",
   .doc = "Port for passed descriptors."},
};
// clang-format on

} // namespace

std::span<const key> runtime_keys() {
  return rows;
}

} // namespace caisson::config
