#pragma once

#include "messages/agent.pb.h"

#include <cstdint>
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

/// The files to write, with their values, to bring every plugged memory block online as movable.
std::vector<std::pair<std::string, std::string>> offline_memory_blocks();

/// The files to write to come nearer to `online` running processors: lowest first up, highest first down, processor 0
/// never. Empty when nothing can be done now: reached, or the processors are not plugged.
std::vector<std::pair<std::string, std::string>> cpu_steps(std::uint32_t online);

} // namespace caisson::agent
