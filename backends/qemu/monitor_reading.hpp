#pragma once

/// What QEMU's monitor answers, read. Pure.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "messages/backend.pb.h"

namespace caisson::qemu {

struct memory_devices {
  std::vector<v1::Dimm> dimms;
  bool virtio_mem = false;
  std::uint64_t virtio_mem_size_bytes = 0;       ///< what the guest has taken
  std::uint64_t virtio_mem_requested_bytes = 0;
};

// Each throws failure (backend_refused) with QEMU's own words for an error answer, (internal) for what does not parse.
memory_devices read_memory_devices(const std::string& query_memory_devices);
std::uint64_t read_boot_bytes(const std::string& query_memory_size_summary);
/// 0 where the machine plugs none.
std::uint32_t read_plugged_vcpus(const std::string& query_hotpluggable_cpus);
/// Names of the vCPUs that can be unplugged, the one that was plugged last in the machine's order first.
std::vector<std::string> read_removable_vcpus(const std::string& query_hotpluggable_cpus);
/// Throws what QEMU said where it did not take a command.
void read_taken(const std::string& answer, const char* command);

/// query-pci: where the guest sees each device that has a name, "0000:BB:DD.F". What stands behind a root port has none as
/// long as nobody has numbered the buses.
std::map<std::string, std::string> read_pci_addresses(const std::string& answer);

} // namespace caisson::qemu
