#pragma once

#include <vector>

#include "config/host_facts.hpp"
#include "config/load.hpp"

/// Values that a host changes: programs and files that lie elsewhere, 0 and "more than there is". Part of resolve.cpp,
/// apart so that `config check` can run it without a sandbox.
namespace caisson::config {

/// The figures in force after the host was looked at.
struct adapted {
  std::string architecture;     ///< of the guest
  std::string vmm_path;         ///< exists; "" where there is none
  std::string virtio_fs_daemon; ///< exists; "" where there is none
  std::string firmware;         ///< exists; "" where there is none
  std::string firmware_volume;  ///< exists; "" where there is none
  std::uint64_t boot_memory_bytes = 0;
  std::uint64_t max_memory_bytes = 0;
  std::uint32_t memory_slots = 0;
  std::uint32_t vcpus_milli = 0;
  std::uint32_t max_vcpus = 0;
  std::uint32_t bridges = 0;
  std::uint32_t agent_connect_timeout_ms = 0;
  std::vector<adaptation> adaptations;
  std::vector<problem> missing;   ///< files, programs and backends that this host or build lacks; errors of a sandbox
  std::vector<problem> too_large; ///< figures that no host of this size can have; errors of the file too
};

adapted adapt(const layered& config, const host_facts& host);

} // namespace caisson::config
