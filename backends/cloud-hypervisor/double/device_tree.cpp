#include "backends/cloud-hypervisor/double/device_tree.hpp"

#include <cstdio>
#include <utility>

namespace caisson::cloud_hypervisor::api_double {
namespace {

constexpr std::uint64_t mib = 1u << 20;
constexpr std::uint64_t bar_size = 512u << 10;
constexpr std::uint64_t low_base = 0xC000'0000, low_end = 0xE800'0000;
constexpr std::uint64_t address_space = std::uint64_t{1} << 46; // 46 physical address bits
constexpr std::uint64_t platform_area = mib;                   // at its end
constexpr std::uint64_t pvpanic_bar_size = 2, pvpanic_bar_align = 16;
constexpr std::uint64_t wide_align = 16 * bar_size, region_align = 2 * mib;
constexpr std::uint8_t pci_slots = 32;

const std::string bridge_prefix = "_virtio-pci-";

} // namespace

std::optional<std::uint64_t> address_range::allocate(std::uint64_t size, std::uint64_t align) {
  const auto up = [align](std::uint64_t a) { return (a + align - 1) / align * align; };
  for (auto it = taken_.rbegin(); it != taken_.rend(); ++it) {
    const auto below = std::next(it);
    const auto floor = up(below == taken_.rend() ? base_ : below->first + below->second);
    if (it->first < floor || it->first - floor < size)
      continue;
    const auto address = up(it->first - (size + align - 1));
    taken_[address] = size;
    return address;
  }
  return std::nullopt;
}

device_tree::device_tree(std::set<std::string> boot_ids, std::uint16_t segments, std::uint64_t ram_end, profile p)
    : boot_ids_{std::move(boot_ids)}, profile_{p} {
  const auto parts = [segments, p](std::uint64_t base, std::uint64_t end, std::uint64_t align) {
    const auto size = (end - base) / (align * segments) * align;
    std::vector<address_range> out;
    for (std::uint16_t i = 0; i < segments; ++i)
      // Since v52 the last one has what the division leaves.
      out.emplace_back(base + i * size, i + 1 == segments && p > profile::v51_1 ? end : base + (i + 1) * size);
    return out;
  };
  const auto low = parts(low_base, low_end, 4u << 10);
  const auto high = parts(ram_end, address_space - platform_area, std::uint64_t{4} << 30);
  for (std::uint16_t i = 0; i < segments; ++i)
    segments_.push_back({low[i], high[i], {}, {}});
}

std::optional<std::uint8_t> device_tree::free_slot(std::uint16_t bus_number) const {
  // Slot 0 is the host bridge's; since v54 that is on the first bus alone.
  for (std::uint8_t slot = bus_number > 0 && profile_ == profile::head ? 0 : 1; slot < pci_slots; ++slot)
    if (!segments_[bus_number].slots.contains(slot) && !segments_[bus_number].reserved.contains(slot))
      return slot;
  return std::nullopt;
}

std::string device_tree::next_name(const std::string& prefix) {
  for (;;) {
    auto name = prefix + std::to_string(names_++);
    if (!boot_ids_.contains(name) && !nodes_.contains(name))
      return name;
  }
}

void device_tree::add_plain(const std::string& id) {
  nodes_[id].id = id;
}

bool device_tree::reserve_region(node& of, std::uint64_t size) {
  const auto address = segments_[of.segment].high.allocate(size, region_align);
  if (!address)
    return false;
  of.region = *address;
  of.region_size = size;
  return true;
}

bool device_tree::add_pci(node n) {
  auto& s = segments_[n.segment];
  const auto slot = n.pci_device == 0                  ? free_slot(n.segment)
                    : !s.slots.contains(n.pci_device) ? std::optional{n.pci_device}
                                                       : std::nullopt;
  const auto address = !slot    ? std::nullopt
                       : n.wide ? s.high.allocate(bar_size, profile_ == profile::v51_1 ? bar_size : wide_align)
                                : s.low.allocate(bar_size, bar_size);
  if (!address)
    return false;
  s.slots.insert(*slot);
  n.pci = true;
  n.pci_device = *slot;
  n.bar = *address;
  auto id = n.id;
  nodes_[id] = std::move(n);
  return true;
}

void device_tree::reserve_slot(const node& for_it) {
  if (for_it.pci_device != 0)
    segments_[for_it.segment].reserved.insert(for_it.pci_device);
}

bool device_tree::add_pvpanic() {
  const auto slot = free_slot(0);
  const auto address = slot ? segments_[0].low.allocate(pvpanic_bar_size, pvpanic_bar_align) : std::nullopt;
  if (!address)
    return false;
  segments_[0].slots.insert(*slot);
  auto& n = nodes_["__pvpanic"];
  n.id = "__pvpanic";
  n.pci = true;
  n.bridged = n.wide = false;
  n.pci_device = *slot;
  n.bar = *address;
  return true;
}

void device_tree::remove(const std::string& id) {
  const auto it = nodes_.find(id);
  if (it == nodes_.end())
    return;
  const auto& n = it->second;
  auto& s = segments_[n.segment];
  s.slots.erase(n.pci_device);
  s.reserved.erase(n.pci_device);
  (n.wide ? s.high : s.low).free(n.bar);
  if (n.region_size != 0)
    s.high.free(n.region);
  nodes_.erase(it);
}

device_tree::node* device_tree::find(const std::string& id) {
  const auto it = nodes_.find(is_bridge(id) ? id.substr(bridge_prefix.size()) : id);
  return it == nodes_.end() ? nullptr : &it->second;
}

bool device_tree::is_bridge(const std::string& id) const {
  return id.starts_with(bridge_prefix) && nodes_.contains(id.substr(bridge_prefix.size()));
}

std::string device_tree::bdf(const node& n) {
  char text[16];
  std::snprintf(text, sizeof text, "%04x:00:%02x.0", n.segment, n.pci_device);
  return text;
}

json device_tree::shown() const {
  json out = json::object();
  for (const auto& [id, n] : nodes_) {
    const bool nulls = profile_ == profile::v51_1;
    json own{{"id", id}, {"resources", json::array()}};
    if (nulls)
      own["parent"] = nullptr;
    if (n.region_size != 0)
      own["resources"].push_back(json{{"MmioAddressRange", json{{"base", n.region}, {"size", n.region_size}}}});
    if (n.pci) {
      json bar{{"index", 0},
               {"base", n.bar},
               {"size", n.bridged ? bar_size : pvpanic_bar_size},
               {"type_", n.wide ? "Mmio64" : "Mmio32"},
               {"prefetchable", false}};
      json resource = json::object();
      resource["PciBar"] = std::move(bar);
      if (n.bridged) {
        const auto bridge = bridge_prefix + id;
        own["parent"] = bridge;
        out[bridge] = json{{"id", bridge}, {"resources", json::array()}};
        out[bridge]["resources"].push_back(std::move(resource));
        if (nulls)
          out[bridge]["parent"] = nullptr;
        out[bridge]["children"] = json::array({id});
        out[bridge]["pci_bdf"] = bdf(n);
      } else {
        own["resources"].push_back(std::move(resource));
      }
    }
    own["children"] = json::array();
    if (n.pci && !n.bridged)
      own["pci_bdf"] = bdf(n);
    else if (nulls)
      own["pci_bdf"] = nullptr;
    out[id] = std::move(own);
  }
  return out;
}

} // namespace caisson::cloud_hypervisor::api_double
