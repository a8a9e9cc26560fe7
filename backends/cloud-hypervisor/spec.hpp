#pragma once

/// From a VmSpec to what Cloud Hypervisor is told. Pure.
///
/// What a VM gets beside what its spec says: a serial line on a socket (the console), a vsock on a socket (the agent),
/// a panic device, and a balloon where free page reporting is asked for. What QEMU alone has (machine types, bridges,
/// root ports) has no meaning here.

#include <cstdint>
#include <string>
#include <variant>

#include "backends/cloud-hypervisor/requests.hpp"
#include "messages/backend.pb.h"

namespace caisson::cloud_hypervisor {

/// sun_path without its terminating zero.
inline constexpr std::size_t longest_socket_path_bytes = 107;
/// Where the guest's agent listens (guest/agent).
inline constexpr std::uint32_t agent_port = 1024;
inline constexpr std::uint32_t most_vcpus = 254;

/// `code` is a row's name of messages/error.hpp.
struct problem {
  std::string code;
  std::string text;
};

/// In VmSpec.run_directory.
std::string api_socket(const std::string& run_directory);
std::string vsock_socket(const std::string& run_directory);
std::string console_socket(const std::string& run_directory);

v1::VmChannels channels_of(const v1::VmSpec& spec);

/// Memory beyond boot that the VM can ever get, as the VMM must be told: whole blocks, and for ACPI one block more than
/// can be used, since the VMM rounds the region's begin up and its size down. 0: none.
std::uint64_t hotplug_region_bytes(const v1::VmSpec& spec);
/// What may be asked for in all, beyond boot.
std::uint64_t most_plugged_bytes(const v1::VmSpec& spec);

/// The body of vm.create, or what of the spec this VMM cannot carry.
std::variant<vm_config, problem> config_of(const v1::VmSpec& spec);

disk_config disk_of(const v1::VmDisk& disk);
net_config net_of(const v1::VmNet& net);

/// [a-z0-9-], 1 to 32 bytes.
bool valid_id(const std::string& id);

} // namespace caisson::cloud_hypervisor
