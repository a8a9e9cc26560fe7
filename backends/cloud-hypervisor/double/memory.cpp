#include "backends/cloud-hypervisor/double/memory.hpp"

#include <cstdlib>
#include <vector>

namespace caisson::cloud_hypervisor::api_double {
namespace {

constexpr std::uint64_t dimm_multiple = 128u << 20, virtio_mem_align = 128u << 20, virtio_mem_block = 2u << 20;
constexpr std::uint64_t low_ram_end = 3ull << 30, high_ram_start = 4ull << 30;
constexpr std::uint64_t unmappable = 1ull << 47; // the VMM aborts where the host has no such address space
constexpr std::uint32_t slots = 8;

failure memory_failure(std::vector<std::string> tail) {
  tail.insert(tail.begin(), "Memory manager error");
  return fail(std::move(tail));
}

std::string hex(std::uint64_t n) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(n));
  return text;
}

std::uint64_t number(const json& of, const char* name) {
  const auto it = of.find(name);
  return it == of.end() ? 0 : it->get<std::uint64_t>();
}

/// The last address of `bytes` of boot memory: 3 GiB stay below the hole, the rest goes above 4 GiB.
std::uint64_t last_address(std::uint64_t bytes) {
  return (bytes <= low_ram_end ? bytes : high_ram_start + (bytes - low_ram_end)) - 1;
}

std::uint64_t next_start(std::uint64_t last, bool hotplug) {
  if (last < low_ram_end)
    return high_ram_start;
  return (hotplug ? last | (dimm_multiple - 1) : last) + 1;
}

} // namespace

std::uint64_t total_size(const json& memory) {
  auto sum = number(memory, "size") + number(memory, "hotplugged_size");
  if (memory.contains("zones"))
    for (const auto& z : memory["zones"])
      sum += number(z, "size") + number(z, "hotplugged_size");
  return sum;
}

std::uint64_t hotplugged_size(const json& memory) {
  auto sum = number(memory, "hotplugged_size");
  if (memory.contains("zones"))
    for (const auto& z : memory["zones"])
      sum += number(z, "hotplugged_size");
  return sum;
}

std::variant<memory_ledger, failure> memory_ledger::make(const json& memory, profile p, const knobs& k) {
  memory_ledger m;
  m.profile_ = p;
  m.mmap_fails_ = k.mmap_fails;
  m.acpi_ = memory["hotplug_method"] == "Acpi";
  m.zones_ = number(memory, "size") == 0;
  const auto invalid = memory_failure({"Memory configuration is not valid"});
  json zones = json::array();
  if (m.zones_) {
    if (!memory.contains("zones") || memory["zones"].empty())
      return memory_failure({"No memory zones found"});
    zones = memory["zones"];
    for (const auto& z : zones) {
      m.boot_ += number(z, "size");
      if (z.contains("hotplug_size") && m.acpi_)
        return memory_failure({"Invalid hotplug method associated with memory zones resizing capability"});
      if (z.contains("hotplugged_size") &&
          (!z.contains("hotplug_size") || number(z, "hotplugged_size") > number(z, "hotplug_size") || m.acpi_))
        return invalid;
    }
  } else {
    if (memory.contains("zones"))
      return invalid;
    if (memory.contains("hotplugged_size") && (!memory.contains("hotplug_size") ||
                                               number(memory, "hotplugged_size") > number(memory, "hotplug_size") ||
                                               m.acpi_))
      return invalid;
    m.boot_ = number(memory, "size");
    auto zone = memory;
    zone["id"] = "mem0";
    zones.push_back(zone);
  }
  m.current_ = m.boot_;
  m.hotplug_ = number(memory, "hotplug_size");
  for (const auto& z : zones) {
    std::uint64_t align = 4096;
    if (z.value("hugepages", false)) {
      if (!k.hugetlbfs)
        return memory_failure({"Failed to stat filesystem", os_error(ENOENT)});
      align = z.contains("hugepage_size") ? number(z, "hugepage_size") : 2u << 20;
    }
    if (number(z, "size") % align != 0)
      return memory_failure({"Memory size is misaligned with default page size or its hugepage size"});
    if (number(z, "size") >= unmappable || number(z, "hotplug_size") >= unmappable)
      std::abort();
  }
  m.last_ = last_address(m.boot_);
  auto start = next_start(m.last_, memory.contains("hotplug_size"));
  for (const auto& z : zones) {
    if (!z.contains("hotplug_size"))
      continue;
    const auto size = number(z, "hotplug_size");
    if (size == 0)
      return memory_failure({"Invalid size for resizing. Can be anything except 0"});
    if (!m.zones_ && m.acpi_) {
      start += size;
    } else {
      start = (start + virtio_mem_align - 1) / virtio_mem_align * virtio_mem_align + size;
      m.regions_[z["id"].get<std::string>()] = {size, number(z, "hotplugged_size"), z.value("hugepages", false)};
    }
  }
  m.end_of_ram_ = start - 1;
  return m;
}

outcome memory_ledger::grow(std::uint64_t bytes) {
  if (slots_ >= slots)
    return memory_failure({"No ACPI slot available"});
  if (bytes % dimm_multiple != 0)
    return memory_failure({"The requested hotplug memory addition is not a valid size"});
  const auto start = next_start(last_, true);
  if (start + bytes - 1 > end_of_ram_)
    return memory_failure({"Not enough space in the hotplug RAM region"});
  if (mmap_fails_ > 0 && slots_ + 1 >= mmap_fails_)
    return memory_failure({"Mmap backed guest memory error", "mmap system call failed", os_error(ENOMEM)});
  last_ = start + bytes - 1;
  ++slots_;
  return {};
}

outcome memory_ledger::request(const std::string& id, std::uint64_t bytes) {
  const auto it = regions_.find(id);
  if (it == regions_.end())
    return memory_failure({"No virtio-mem resizing handler found"});
  auto& r = it->second;
  std::string wrong;
  if (bytes == r.requested)
    wrong = "new size " + hex(bytes) + " and requested_size are identical";
  else if (bytes > r.size)
    wrong = "new size " + hex(bytes) + " is bigger than region_size " + hex(r.size);
  else if (bytes % virtio_mem_block != 0)
    wrong = "new size " + hex(bytes) + " is not aligned on block_size " + hex(virtio_mem_block);
  if (!wrong.empty())
    return memory_failure({"Failed to virtio-mem resize", "Resize invalid argument",
                           "Failed to update virtio configuration: ResizeError(" + wrong + ")"});
  r.requested = bytes;
  return {};
}

outcome memory_ledger::resize(std::uint64_t desired, std::uint64_t& grown) {
  grown = 0;
  if (zones_)
    return memory_failure({"Impossible to resize guest memory if it is backed by user defined memory regions"});
  if (acpi_) {
    if (desired <= current_)
      return {};
    if (auto problem = grow(desired - current_))
      return problem;
    grown = desired - current_;
    current_ = desired;
    return {};
  }
  if (desired < boot_) {
    if (profile_ == profile::v51_1)
      return {};
    return memory_failure({"Invalid resize request: desired_size = " + std::to_string(desired) +
                           " below boot size = " + std::to_string(boot_)});
  }
  if (auto problem = request("mem0", desired - boot_))
    return problem;
  current_ = desired;
  return {};
}

outcome memory_ledger::resize_zone(const std::string& id, std::uint64_t zone_size, std::uint64_t desired) {
  if (!zones_)
    return memory_failure({"Resizing the memory zone failed"});
  if (desired < zone_size)
    return profile_ == profile::v51_1 ? fail({"Failed resizing a memory zone"})
                                      : memory_failure({"Invalid resize request: desired_size = " + std::to_string(desired) +
                                                        " below boot size = " + std::to_string(zone_size)});
  return request(id, desired - zone_size);
}

} // namespace caisson::cloud_hypervisor::api_double
