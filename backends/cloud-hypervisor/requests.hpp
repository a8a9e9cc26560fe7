#pragma once

/// Every request that we send to Cloud Hypervisor, and what we know of its versions. Pure.
///
/// What leaves is checked against our own schema of the subset that we use (request_schema.hpp): the server ignores
/// unknown keys silently, so that a typing error of ours would be a device or a size that is missing.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace caisson::cloud_hypervisor {

enum class hotplug_method { acpi, virtio_mem };
enum class console_mode { off, null, tty, pty, file, socket };

/// `id` may be empty everywhere: the VMM chooses one ("_disk0"). Ids that begin with "__" are the VMM's own.
struct disk_config {
  std::string id;
  std::string path;
  bool read_only = false;
};

struct net_config {
  std::string id;
  std::string tap; ///< not sent: a descriptor of it goes with vm.add-net
  std::string mac; ///< empty: the VMM chooses
  std::uint32_t queues = 2; ///< even, two a descriptor
};

/// virtio-fs; needs shared memory. Its daemon must listen before the boot: without, the VMM blocks for a minute.
struct share_config {
  std::string id;
  std::string tag;
  std::string socket;
};

struct balloon_config {
  std::uint64_t size_bytes = 0;
  bool deflate_on_oom = true;
  bool free_page_reporting = false;
};

struct serial_config {
  console_mode mode = console_mode::off; ///< the VMM's default is the terminal of the process: always said
  std::string path;                      ///< of the file or the socket; the console has no socket
};

struct vsock_config {
  std::uint32_t cid = 3;
  std::string socket;
};

/// What vm.create takes of a VM. Sizes in bytes, as the API has them.
struct vm_config {
  std::uint32_t boot_vcpus = 1;
  std::uint32_t max_vcpus = 1;
  std::uint64_t memory_bytes = 0;
  std::uint64_t hotplug_bytes = 0;    ///< beyond memory_bytes; 0: none
  std::uint64_t hotplugged_bytes = 0; ///< of these at boot, virtio-mem only
  hotplug_method method = hotplug_method::virtio_mem;
  bool shared = false;
  bool hugepages = false;
  bool prefault = false;
  std::string firmware; ///< alone, or
  std::string kernel;
  std::string command_line;
  std::string initramfs;
  std::vector<disk_config> disks;
  std::vector<net_config> nets; ///< not in vm.create, which takes no descriptors: add_net() each before the boot
  std::vector<share_config> shares;
  std::string entropy_source; ///< empty: the VMM's default, /dev/urandom
  std::optional<balloon_config> balloon;
  serial_config serial;
  serial_config console;
  std::optional<vsock_config> vsock;
  bool pvpanic = false;
  bool watchdog = false;
};

struct request {
  std::string method; ///< "GET", "PUT"
  std::string path;   ///< "/api/v1/vm.boot"
  std::string body;   ///< JSON; empty for those that take none (the server refuses even {})

  std::string_view verb() const; ///< "vm.boot"
};

namespace requests {

request ping();
request shutdown_vmm();
request info();
request counters();
request create(const vm_config& vm);
request boot();
request pause();
request resume();
request shutdown_vm();
request remove_vm(); ///< vm.delete
request power_button();
// One field a request: the VMM applies several one after another and leaves the first ones in force when a later fails.
request resize_ram(std::uint64_t total_bytes); ///< boot + plugged
request resize_vcpus(std::uint32_t count);
request resize_balloon(std::uint64_t bytes);
request add_disk(const disk_config& disk);
request add_net(const net_config& net); ///< with the tap's descriptors in api_client::call: without, the VMM makes a tap
request add_share(const share_config& share);
request remove_device(const std::string& id);

} // namespace requests

/// Empty, or where our own schema forbids it: "memory.size: expected an integer from 1 to ..., got ...".
std::string violation(const request& what);

/// How releases differ, as far as a client sees it. One row holds from its `major` to the next row's.
struct version_facts {
  int major = 0;
  std::string_view name;                       ///< for people: "v53", "v47 to v51"
  bool errors_are_arrays = true;               ///< v47; before: plain text
  bool pending_vcpu_removal_is_429 = true;     ///< v46; before: 500
  bool boot_of_paused_resumes = false;         ///< up to v51
  bool no_shutdown_option = false;             ///< --no-shutdown, v52
  bool actual_size_counts_virtio_mem = false;  ///< v52: memory_actual_size has what the guest has plugged
  bool missing_vm_is_404 = false;              ///< v53; before: 500
  bool virtio_mem_below_boot_is_error = false; ///< v53; before: silently accepted
  bool removes_stale_socket = false;           ///< v53; before: the process ends with "address in use"
  bool second_remove_is_error = false;         ///< v53 only: remove-device of what is leaving is 500
  bool second_net_remove_kills = false;        ///< up to v52 (seen with v51.1): of a net that is leaving it ends the VMM
  bool unknown_device_is_404 = false;          ///< v54; before: 500
  bool invalid_config_is_400 = false;          ///< v54 (409 for ids that are not unique); before: 500
  /// v54 (a build before its release): false. The guest acknowledges a removal before it ejects the vCPU, as ACPI has it, and
  /// this VMM then takes the eject for unasked: the removal is pending for ever, and no other number is taken any more.
  bool lets_vcpus_go = true;
  std::size_t most_request_body_bytes = 0;
};

inline constexpr int oldest_major = 42; ///< before it a vsock client that closes early takes the VMM down
inline constexpr int newest_known_major = 54;

struct version_verdict {
  const version_facts* facts = nullptr; ///< null: refused
  std::string refusal;                  ///< why, and which versions work
  std::string warning;                  ///< newer than what is known: treated as the newest known
};

/// `version` as vmm.ping or --version say it: "53.0.0", "v53.0.0", "v54.0-12-gabc", "cloud-hypervisor v51.1.0".
version_verdict judge_version(std::string_view version);

} // namespace caisson::cloud_hypervisor
