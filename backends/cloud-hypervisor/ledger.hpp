#pragma once

/// What one VM has, kept by us because the VMM cannot be asked for all of it. Pure.
///
/// - ACPI memory: vm.info tells the size that was asked for last, which after a refused shrink is not what is there.
/// Only
///   growth that the VMM has answered counts here; one whose answer was lost is settled by the next vm.info.
/// - vCPUs: vm.info tells the number asked for last, also while the guest has not let the others go. A request for the
///   same number is answered with 429 until it has, and 204 then: that is how the truth is read.
/// - Devices: vm.info lists those that the VM has, but not which of them are leaving.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "backends/cloud-hypervisor/reply.hpp"
#include "messages/backend.pb.h"

namespace caisson::cloud_hypervisor {

inline constexpr std::uint64_t mib = std::uint64_t{1} << 20;
inline constexpr std::uint64_t dimm_block_bytes = 128 * mib;
inline constexpr std::uint32_t dimm_slots = 8; ///< growths in the life of a VM: none is ever free again
inline constexpr std::uint64_t virtio_mem_granule_bytes = 2 * mib;

struct plugged_dimm {
  std::string id;
  std::uint64_t size_bytes = 0;
};

struct held_device {
  std::string id;
  std::string kind; ///< "disk", "net", "share"
  bool leaving = false;
  std::string address;     ///< "0000:00:05.0"; empty where the VMM does not tell
  std::string source = {}; ///< image, socket, or tap: of that the VMM knows but a descriptor
};

struct ledger {
  std::uint64_t boot_bytes = 0;
  std::vector<plugged_dimm> dimms;
  std::optional<plugged_dimm> asked_dimm; ///< sent, not answered
  std::uint64_t virtio_mem_requested_bytes = 0;
  std::uint64_t virtio_mem_plugged_bytes = 0;
  std::uint32_t vcpus_present = 0;
  std::uint32_t vcpus_asked = 0; ///< below vcpus_present: the guest has not let the others go yet
  std::vector<held_device> devices;
  std::optional<held_device> asked_device; ///< the last one that was sent; of no meaning once it is in `devices`
  v1::VmState state = v1::VM_STATE_CREATED;

  std::uint64_t dimm_bytes() const;
  std::uint64_t acpi_total_bytes() const { return boot_bytes + dimm_bytes(); }
  bool has_dimm(const std::string& id) const;
  held_device* device(const std::string& id);
  bool vcpus_leaving() const { return vcpus_asked < vcpus_present; }

  /// The DIMM that was asked for is there.
  void dimm_plugged();
  /// The device that was asked for is there.
  void device_added(const std::string& address);
  /// From a vm.info that was asked for after everything else had been answered. `actual_counts`: memory_actual_size has
  /// virtio-mem in it.
  void settle(const info_reply& info, bool actual_counts);
  /// A device that vm.info lists no more has left.
  void device_left(const std::string& id);
};

/// Of the spec: what the VM has when it has booted.
ledger ledger_at_boot(const v1::VmSpec& spec);

} // namespace caisson::cloud_hypervisor
