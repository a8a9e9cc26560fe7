#include <array>
#include <charconv>

#include "backends/cloud-hypervisor/http_reply.hpp"
#include "backends/cloud-hypervisor/requests.hpp"

namespace caisson::cloud_hypervisor {
namespace {

constexpr std::size_t small_body = 51'200;
constexpr std::size_t large_body = 4 << 20;

// clang-format off
constexpr std::array facts{
    version_facts{.major = 42, .name = "v42 to v45", .errors_are_arrays = false, .pending_vcpu_removal_is_429 = false,
                  .boot_of_paused_resumes = true, .second_net_remove_kills = true, .most_request_body_bytes = small_body},
    version_facts{.major = 46, .name = "v46", .errors_are_arrays = false, .boot_of_paused_resumes = true,
                  .second_net_remove_kills = true, .most_request_body_bytes = small_body},
    version_facts{.major = 47, .name = "v47 to v51", .boot_of_paused_resumes = true, .second_net_remove_kills = true,
                  .most_request_body_bytes = small_body},
    version_facts{.major = 52, .name = "v52", .no_shutdown_option = true, .actual_size_counts_virtio_mem = true,
                  .second_net_remove_kills = true, .most_request_body_bytes = small_body},
    version_facts{.major = 53, .name = "v53", .no_shutdown_option = true, .actual_size_counts_virtio_mem = true,
                  .missing_vm_is_404 = true, .virtio_mem_below_boot_is_error = true, .removes_stale_socket = true,
                  .second_remove_is_error = true, .most_request_body_bytes = small_body},
    version_facts{.major = 54, .name = "v54", .no_shutdown_option = true, .actual_size_counts_virtio_mem = true,
                  .missing_vm_is_404 = true, .virtio_mem_below_boot_is_error = true, .removes_stale_socket = true,
                  .unknown_device_is_404 = true, .invalid_config_is_400 = true, .lets_vcpus_go = false,
                  .most_request_body_bytes = large_body},
};
// clang-format on
static_assert(facts.front().major == oldest_major && facts.back().major == newest_known_major);

// "53.0-246-gae44c29" is a build of what becomes v54: so many commits after v53.0 (git describe). It says so to vmm.ping.
bool after_a_release(std::string_view minor) {
  if (!minor.starts_with(".0-"))
    return false;
  minor.remove_prefix(3);
  const auto digits = minor.find_first_not_of("0123456789");
  return digits != std::string_view::npos && digits > 0 && minor.substr(digits).starts_with("-g");
}

// -1: no number.
int read_major(std::string_view text) {
  if (text.starts_with("cloud-hypervisor "))
    text.remove_prefix(17);
  if (text.starts_with('v'))
    text.remove_prefix(1);
  int major = -1;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), major);
  const auto rest = text.substr(static_cast<std::size_t>(end - text.data()));
  if (error != std::errc{} || major < 0 || !rest.starts_with('.'))
    return -1;
  return after_a_release(rest) ? major + 1 : major;
}

} // namespace

version_verdict judge_version(std::string_view version) {
  const auto shown = "Cloud Hypervisor " + escaped_text(version, 80);
  const auto work = "use v" + std::to_string(oldest_major) + " or later (v" + std::to_string(newest_known_major) +
                    " is the newest that is known)";
  const int major = read_major(version);
  if (major < 0)
    return {nullptr, shown + ": expected a version such as 53.0.0; " + work, {}};
  if (major < oldest_major)
    return {nullptr,
            shown + ": it is too old: a vsock client that closes early takes this VMM down with its VM; " + work,
            {}};
  version_verdict out;
  for (const auto& each : facts)
    if (each.major <= major)
      out.facts = &each;
  if (major > newest_known_major)
    out.warning = shown + " is newer than what is known; it is treated as v" + std::to_string(newest_known_major);
  return out;
}

} // namespace caisson::cloud_hypervisor
