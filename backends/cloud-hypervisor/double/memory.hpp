#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>

#include "backends/cloud-hypervisor/double/failure.hpp"
#include "backends/cloud-hypervisor/double/json_reader.hpp"
#include "backends/cloud-hypervisor/double/knobs.hpp"
#include "backends/cloud-hypervisor/double/profile.hpp"

namespace caisson::cloud_hypervisor::api_double {

/// The memory of one booted VM as the VMM keeps it: boot memory, ACPI slots, virtio-mem regions. Says what a resize
/// does; does nothing to the guest.
class memory_ledger {
public:
  struct region {
    std::uint64_t size = 0, requested = 0; ///< bytes
    bool hugepages = false;
  };

  /// From the `memory` of a VM's configuration.
  static std::variant<memory_ledger, failure> make(const json& memory, profile p, const knobs& k);

  /// vm.resize desired_ram. On success `grown` is the size of the DIMM that appears (0: none).
  outcome resize(std::uint64_t desired, std::uint64_t& grown);
  outcome resize_zone(const std::string& id, std::uint64_t zone_size, std::uint64_t desired);

  [[nodiscard]] bool acpi() const noexcept { return acpi_; }
  [[nodiscard]] std::uint64_t boot_bytes() const noexcept { return boot_; }
  [[nodiscard]] std::uint64_t hotplug_bytes() const noexcept { return hotplug_; }
  [[nodiscard]] std::uint64_t end_of_ram() const noexcept { return end_of_ram_ + 1; } ///< what may be plugged included
  [[nodiscard]] std::uint32_t slots_used() const noexcept { return slots_; }
  [[nodiscard]] const std::map<std::string, region>& regions() const noexcept { return regions_; }

private:
  outcome grow(std::uint64_t bytes);
  outcome request(const std::string& id, std::uint64_t bytes);

  profile profile_{};
  std::uint32_t mmap_fails_ = 0;
  bool acpi_ = true, zones_ = false;
  std::uint64_t boot_ = 0, current_ = 0, hotplug_ = 0, last_ = 0, end_of_ram_ = 0;
  std::uint32_t slots_ = 0;
  std::map<std::string, region> regions_;
};

/// Sum of a configuration's memory and zones, hot-plugged virtio-mem included, in bytes.
[[nodiscard]] std::uint64_t total_size(const json& memory);
[[nodiscard]] std::uint64_t hotplugged_size(const json& memory);

} // namespace caisson::cloud_hypervisor::api_double
