#include "guest/agent/facts.hpp"

#include "guest/agent/files.hpp"
#include "guest/agent/virtio_mem.hpp"

#include <sys/sysinfo.h>
#include <sys/utsname.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <sstream>
#include <string_view>

namespace caisson::agent {

namespace {

std::string memory_root = "/sys/devices/system/memory";
const std::string cpu_root = "/sys/devices/system/cpu";

std::uint64_t meminfo_bytes(std::string_view text, std::string_view key) {
  auto at = text.find(key);
  if (at == std::string_view::npos)
    return 0;
  at = text.find_first_not_of(' ', at + key.size());
  std::uint64_t kib = 0;
  if (at != std::string_view::npos)
    std::from_chars(text.data() + at, text.data() + text.size(), kib);
  return kib * 1024;
}

std::uint64_t read_hex(const std::string& path) {
  const auto text = read_line(path);
  std::uint64_t n = 0;
  std::from_chars(text.data(), text.data() + text.size(), n, 16);
  return n;
}

constexpr std::string_view block_prefix = "memory";

bool is_block(std::string_view name) {
  return name.size() > block_prefix.size() &&
         name.find_first_not_of("0123456789", block_prefix.size()) == std::string_view::npos;
}

std::vector<unsigned> cpus(const char* which) { return parse_cpu_list(read_line(cpu_root + "/" + which)); }

// "y", "m" or "" from the excerpt that the image ships beside its kernel.
bool configured(std::string_view config, std::string_view option) {
  return config.find(std::string{option} + "=y") != std::string_view::npos;
}

} // namespace

std::uint64_t mem_total_bytes() {
  struct sysinfo info {};
  ::sysinfo(&info);
  return static_cast<std::uint64_t>(info.totalram) * info.mem_unit;
}

v1::MemoryFacts read_memory_facts(std::uint64_t boot_mem_total_bytes) {
  v1::MemoryFacts facts;
  const auto meminfo = read_file("/proc/meminfo");
  facts.set_mem_total_bytes(mem_total_bytes());
  facts.set_mem_available_bytes(meminfo_bytes(meminfo, "MemAvailable:"));
  facts.set_boot_mem_total_bytes(boot_mem_total_bytes);
  facts.set_block_size_bytes(read_hex(memory_root + "/block_size_bytes"));
  std::uint32_t online = 0, offline = 0;
  for (const auto& name : list_directory(memory_root, "memory"))
    if (is_block(name))
      ++(read_line(memory_root + "/" + name + "/state") == "online" ? online : offline);
  facts.set_online_blocks(online);
  facts.set_offline_blocks(offline);
  facts.set_virtio_mem_plugged_bytes(virtio_mem_plugged_bytes());
  return facts;
}

v1::CpuFacts read_cpu_facts() {
  v1::CpuFacts facts;
  facts.set_online(static_cast<std::uint32_t>(cpus("online").size()));
  facts.set_present(static_cast<std::uint32_t>(cpus("present").size()));
  facts.set_possible(static_cast<std::uint32_t>(cpus("possible").size()));
  return facts;
}

v1::GuestFeatures read_features() {
  v1::GuestFeatures features;
  const auto config = read_file("/etc/kernel-config", 256 * 1024);
  features.set_kernel_config_known(!config.empty());
  // The kernel makes it where it has the handler and was not told to leave it off (drivers/acpi/acpi_memhotplug.c).
  features.set_acpi_memory_hotplug(exists("/sys/firmware/acpi/hotplug/memory"));
  if (config.empty()) {
    features.set_memory_hotremove(exists(memory_root + "/block_size_bytes"));
    features.set_cpu_hotplug(exists(cpu_root + "/cpu1/online") || exists(cpu_root + "/hotplug"));
  } else {
    features.set_memory_hotremove(configured(config, "CONFIG_MEMORY_HOTREMOVE"));
    features.set_cpu_hotplug(configured(config, "CONFIG_HOTPLUG_CPU"));
  }
  features.set_virtio_mem(exists("/sys/bus/virtio/drivers/virtio_mem"));
  features.set_memory_probe(exists(memory_root + "/probe"));
  features.set_pressure(!read_line("/proc/pressure/memory").empty());
  // The negotiated features are a line of bits, lowest first.
  constexpr std::size_t reporting = 5; // VIRTIO_BALLOON_F_REPORTING
  const std::string balloons = "/sys/bus/virtio/drivers/virtio_balloon/";
  for (const auto& device : list_directory(balloons, "virtio"))
    if (const auto bits = read_line(balloons + device + "/features"); bits.size() > reporting && bits[reporting] == '1')
      features.set_free_page_reporting(true);
  return features;
}

void use_memory_root(std::string path) { memory_root = std::move(path); }

std::string block_state_file(const std::string& block_name) { return memory_root + "/" + block_name + "/state"; }

std::vector<memory_block> memory_blocks(std::uint64_t address, std::uint64_t size_bytes) {
  std::vector<memory_block> blocks;
  const auto block_size = read_hex(memory_root + "/block_size_bytes");
  for (const auto& name : list_directory(memory_root, "memory")) {
    const auto directory = memory_root + "/" + name;
    if (!is_block(name) || block_size == 0)
      continue;
    memory_block block;
    block.name = name;
    // The number of a block is its phys_index (Documentation/admin-guide/mm/memory-hotplug.rst).
    block.address = std::strtoull(name.c_str() + block_prefix.size(), nullptr, 10) * block_size;
    block.size_bytes = block_size;
    if (block.address < address || block.address - address >= size_bytes)
      continue;
    block.state = read_line(directory + "/state");
    if (block.state == "online") {
      block.zone = read_line(directory + "/valid_zones");
      block.zone.resize(std::min(block.zone.size(), block.zone.find(' ')));
    }
    blocks.push_back(std::move(block));
  }
  std::sort(blocks.begin(), blocks.end(), [](const auto& a, const auto& b) { return a.address < b.address; });
  return blocks;
}

const char* online_as(const std::string& zoneinfo) {
  constexpr std::uint64_t page_bytes = 4096, least_bytes = std::uint64_t{128} << 20;
  std::istringstream lines{zoneinfo};
  bool kernels = false, seen = false;
  std::uint64_t pages = 0;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words{line};
    std::string first, second, third, zone;
    words >> first >> second >> third;
    if (first == "Node" && third == "zone" && words >> zone)
      kernels = zone != "Movable" && zone != "Device";
    else if (kernels && first == "pages" && second == "free") {
      pages += std::strtoull(third.c_str(), nullptr, 10);
      seen = true;
    } else if (kernels && (first == "nr_zone_inactive_file" || first == "nr_zone_active_file" ||
                           first == "nr_zone_inactive_anon" || first == "nr_zone_active_anon"))
      pages += std::strtoull(second.c_str(), nullptr, 10);
  }
  return seen && pages * page_bytes < least_bytes ? "online_kernel" : "online_movable";
}

int set_online_policy() {
  const auto policy = memory_root + "/auto_online_blocks";
  const std::string wanted = online_as(read_file("/proc/zoneinfo", 1 << 20));
  return !exists(policy) || read_line(policy) == wanted ? 0 : write_file(policy, wanted);
}

std::vector<std::pair<std::string, std::string>> offline_memory_blocks(const std::set<std::string>& except) {
  std::vector<std::pair<std::string, std::string>> writes;
  for (const auto& name : list_directory(memory_root, "memory")) {
    const auto state = block_state_file(name);
    if (is_block(name) && !except.contains(name) && read_line(state) == "offline")
      writes.emplace_back(state, "");
  }
  if (!writes.empty())
    for (const std::string how = online_as(read_file("/proc/zoneinfo", 1 << 20)); auto& [file, value] : writes)
      value = how;
  return writes;
}

std::vector<std::pair<std::string, std::string>> cpu_steps(std::uint32_t online) {
  std::vector<std::pair<std::string, std::string>> writes;
  auto running = cpus("online");
  const auto plugged = cpus("present");
  std::uint32_t count = static_cast<std::uint32_t>(running.size());
  for (const auto n : plugged) {
    if (count >= online)
      break;
    if (std::find(running.begin(), running.end(), n) != running.end())
      continue;
    writes.emplace_back(cpu_root + "/cpu" + std::to_string(n) + "/online", "1");
    ++count;
  }
  for (; count > std::max<std::uint32_t>(online, 1) && !running.empty() && running.back() != 0; --count) {
    writes.emplace_back(cpu_root + "/cpu" + std::to_string(running.back()) + "/online", "0");
    running.pop_back();
  }
  return writes;
}

} // namespace caisson::agent
