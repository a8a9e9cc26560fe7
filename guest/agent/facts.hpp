#pragma once

#include "messages/agent.pb.h"

#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

/// What this kernel shows of its memory and processors, and what can be changed about them.
namespace caisson::agent {

/// MemTotal now; one system call, cheap enough to ask while a wait is pending.
std::uint64_t mem_total_bytes();

v1::MemoryFacts read_memory_facts(std::uint64_t boot_mem_total_bytes);
v1::CpuFacts read_cpu_facts();
v1::GuestFeatures read_features();

/// One block of memory as sysfs shows it.
struct memory_block {
  std::string name; ///< "memory41"
  std::uint64_t address = 0, size_bytes = 0;
  std::string state; ///< "online", "offline", "going-offline"
  std::string zone;  ///< "" where it is not online
};

/// Those that lie in this part of the physical memory, by address.
std::vector<memory_block> memory_blocks(std::uint64_t address, std::uint64_t size_bytes);

std::string block_state_file(const std::string& block_name);

/// How new memory is to come online: "online_movable", so that it can leave again; "online_kernel" where the kernel's own
/// zones (`zoneinfo`: /proc/zoneinfo) are too small, because the map of whatever is plugged next has to lie in them. That is
/// so in guests of less than 200 MiB at boot, and where a small one has been grown far. What a workload holds in those
/// zones counts as room: a peak is no reason to take memory that never leaves again.
const char* online_as(const std::string& zoneinfo);

/// Tells the kernel, which brings new memory online by itself. 0 or an errno.
int set_online_policy();

/// The files to write, with their values, to bring every plugged memory block online, but for these.
std::vector<std::pair<std::string, std::string>> offline_memory_blocks(const std::set<std::string>& except = {});

/// For tests: another directory than /sys/devices/system/memory.
void use_memory_root(std::string path);

/// The files to write to come nearer to `online` running processors: lowest first up, highest first down, processor 0
/// never. Empty when nothing can be done now: reached, or the processors are not plugged.
std::vector<std::pair<std::string, std::string>> cpu_steps(std::uint32_t online);

} // namespace caisson::agent
