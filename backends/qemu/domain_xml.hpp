#pragma once

/// From a VmSpec to libvirt's documents and back. Pure: no libvirt, no file is looked at.
///
/// Where things stand on bus 0 of the guest's PCI tree (every address explicit, so that none moves between versions):
///
/// | slot        | what                                                                 |
/// | 0x01        | virtio-serial (port `caisson.agent.0`)                               |
/// | 0x02        | virtio-rng                                                           |
/// | 0x03        | virtio-mem                                                           |
/// | 0x04        | balloon that only reports free pages (VmSpec.free_page_reporting)    |
/// | 0x05 - 0x07 | root ports of the spec's disks, nets and shares, eight functions a slot |
/// | 0x08 - 0x0f | root ports with a bridge (PCI Express to PCI) behind each            |
/// | 0x10 - 0x1e | free root ports, eight functions a slot                              |
///
/// The VM's own devices use up none of the free root ports: all of VmSpec.free_root_ports are free for hotplug.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "backends/qemu/device_xml.hpp"
#include "messages/backend.pb.h"

namespace caisson::qemu {

inline constexpr std::uint64_t mib = 1024 * 1024;
inline constexpr std::uint64_t dimm_block_bytes = 128 * mib;
inline constexpr std::uint32_t max_dimm_slots = 256;
inline constexpr std::uint64_t virtio_mem_granule_bytes = 2 * mib;
inline constexpr std::uint32_t max_bridges = 8;
inline constexpr std::uint32_t max_free_root_ports = 15 * 8;
/// sun_path without its terminating zero.
inline constexpr std::size_t max_socket_path_bytes = 107;
/// libvirt's name of the one virtio-mem device; `ua-` marks an alias that the user has chosen and that stays.
inline constexpr std::string_view virtio_mem_alias = "ua-virtio-mem";

std::string domain_name(std::string_view sandbox_id);
/// "" where the domain is none of ours.
std::string sandbox_of_domain(std::string_view domain_name);
/// Of one sandbox of one state directory; the same always.
std::string domain_uuid(std::string_view state_directory, std::string_view sandbox_id);
std::string agent_socket(std::string_view run_directory);
std::string console_socket(std::string_view run_directory);
/// The VM's own, writable copy of the firmware's variable store.
std::string firmware_variables(std::string_view run_directory);

/// What the domain document remembers of the VM, for a process that finds it later.
struct domain_notes {
  std::string sandbox_id;
  std::string state_directory;
  std::string run_directory;
  std::string spec_digest;  ///< tells the same spec from another one
};

/// Stable over processes of one build.
std::string spec_digest(const v1::VmSpec& spec);

/// Throws failure (invalid_argument, out_of_range, unsupported) where the spec cannot be carried: control characters or
/// broken UTF-8 in a name or path, a socket path over 107 bytes, more bridges, ports, slots than there is room for.
/// `foreign_daemon`: the domain is for a libvirt daemon, which would otherwise run the VMM as another user.
std::string domain_xml(const v1::VmSpec& spec, std::string_view state_directory, bool foreign_daemon);

/// Device document of one DIMM; `id` has been checked by check_device_id().
std::string dimm_xml(const v1::Dimm& dimm);
std::string dimm_alias(std::string_view id);
/// "" where the alias is not a DIMM of ours.
std::string dimm_of_alias(std::string_view alias);
/// Throws failure (invalid_argument): [A-Za-z0-9_-], 1 to 64 bytes.
void check_device_id(std::string_view id);

/// From a live domain document: the virtio-mem device as libvirt wants it back with another requested size. Throws
/// failure (unsupported) where the VM has none.
std::string virtio_mem_request_xml(const std::string& live_domain_xml, std::uint64_t requested_bytes);

/// What a live domain document says.
struct domain_reading {
  domain_notes notes;
  std::string accelerator;  ///< "kvm", "tcg"
  std::uint64_t boot_bytes = 0;
  std::uint32_t vcpus = 0;
  std::uint32_t max_vcpus = 0;
  std::vector<v1::Dimm> dimms;
  bool virtio_mem = false;
  std::uint64_t virtio_mem_size_bytes = 0;       ///< of the device: what can be requested at most
  std::uint64_t virtio_mem_requested_bytes = 0;
  std::uint64_t virtio_mem_current_bytes = 0;
  std::string emulator;
  std::vector<device_reading> devices;
};

/// Throws failure (internal) for what is not a domain document.
domain_reading read_domain_xml(const std::string& xml);

} // namespace caisson::qemu
