#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "backends/cloud-hypervisor/double/json_reader.hpp"
#include "backends/cloud-hypervisor/double/profile.hpp"

namespace caisson::cloud_hypervisor::api_double {

/// Hands out addresses from the top of a range down, as the VMM's allocator does.
class address_range {
public:
  address_range(std::uint64_t base, std::uint64_t end) : base_{base} { taken_[end] = 0; }
  [[nodiscard]] std::optional<std::uint64_t> allocate(std::uint64_t size, std::uint64_t align);
  void free(std::uint64_t address) { taken_.erase(address); }

private:
  std::uint64_t base_;
  std::map<std::uint64_t, std::uint64_t> taken_; ///< start -> size; the end is there with size 0
};

/// The devices of one booted VM: identifiers, PCI addresses, BARs. What vm.info shows as `device_tree`.
class device_tree {
public:
  /// `segments`: of PCI, between which the addresses above the RAM are shared out.
  device_tree(std::set<std::string> boot_ids, std::uint16_t segments, std::uint64_t ram_end, profile p);

  struct node {
    std::string id, type; ///< type: "block", "net"... as removal errors name it
    std::uint16_t segment = 0;
    std::uint8_t pci_device = 0; ///< asked for, or 0; then where it is
    bool pci = false, removing = false, bridged = true;
    bool taken_up = true; ///< by the guest
    std::uint64_t bar = 0, region = 0, region_size = 0;
    bool wide = true; ///< the BAR is above 4 GiB
  };

  /// "_disk" -> "_disk3": one counter for all kinds; a number is used up even when the device then fails.
  std::string next_name(const std::string& prefix);

  /// A device without PCI ("__serial").
  void add_plain(const std::string& id);
  /// Keeps a place that a device asks for from those that take any.
  void reserve_slot(const node& for_it);
  /// Takes the region of a pmem device; add_pci follows, once its turn has come.
  bool reserve_region(node& of, std::uint64_t size);
  /// Gives it a PCI address and a BAR. False: no PCI slot is free.
  bool add_pci(node n);
  /// The one PCI device that is no virtio device: two bytes in a BAR of its own.
  bool add_pvpanic();
  void remove(const std::string& id);

  [[nodiscard]] node* find(const std::string& id);
  [[nodiscard]] bool knows(const std::string& id) const { return nodes_.contains(id) || is_bridge(id); }
  [[nodiscard]] const std::map<std::string, node>& nodes() const noexcept { return nodes_; }
  [[nodiscard]] json shown() const;
  [[nodiscard]] static std::string bdf(const node& n);

private:
  std::optional<std::uint8_t> free_slot(std::uint16_t bus_number) const;
  [[nodiscard]] bool is_bridge(const std::string& id) const;

  std::map<std::string, node> nodes_;
  std::set<std::string> boot_ids_;
  profile profile_;
  std::uint64_t names_ = 0;
  struct bus {
    address_range low, high;
    std::set<std::uint8_t> slots, reserved;
  };
  std::vector<bus> segments_;
};

} // namespace caisson::cloud_hypervisor::api_double
