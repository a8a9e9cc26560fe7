#pragma once

/// What one sandbox's memory is, by whom it was said. ARCHITECTURE.md has the exact words:
///   boot_bytes + plugged_bytes   what the VM has; plugged is only ever what the VMM says
///   target_bytes                 what was asked of that sum
///   requested_bytes              what the VMM was last told to plug, by its own word (virtio-mem: the guest follows)
///   guest_bytes                  boot + (MemTotal now - MemTotal at boot): the guest's claim
/// Pure bookkeeping; no limit rests on a guest's claim.

#include <cstdint>
#include <string>
#include <vector>

#include "actors/memory_hotplug/plan.hpp"

namespace caisson::memory_hotplug {

class ledger {
public:
  /// At boot or recovery. `target_bytes` 0: what the VM has.
  void open(std::uint64_t boot_bytes, std::uint64_t max_bytes, std::uint64_t guest_boot_total_bytes,
            std::uint64_t target_bytes, std::uint64_t generation);

  /// The VMM's word. For a VM that has ended there is none: the last figures stay.
  void vmm_says(std::uint64_t plugged_bytes, std::uint64_t requested_bytes, std::vector<dimm> dimms);

  /// The guest's claim.
  void guest_says(std::uint64_t total_bytes, std::uint64_t available_bytes, std::uint32_t offline_blocks);

  /// A target was accepted: one generation more.
  void accept(std::uint64_t target_bytes);

  /// A target that is no longer pursued is taken back; the generation stays.
  void take_back(std::uint64_t former_target_bytes) { target_ = former_target_bytes; }

  std::uint64_t boot_bytes() const { return boot_; }
  std::uint64_t plugged_bytes() const { return plugged_; }
  std::uint64_t has_bytes() const { return boot_ + plugged_; }
  std::uint64_t requested_bytes() const { return requested_; }
  std::uint64_t target_bytes() const { return target_; }
  std::uint64_t max_bytes() const { return max_; }
  std::uint64_t generation() const { return generation_; }
  std::uint64_t guest_bytes() const;
  std::uint64_t guest_boot_total_bytes() const { return guest_boot_total_; }
  std::uint64_t guest_total_bytes() const { return guest_total_; }
  std::uint64_t guest_available_bytes() const { return guest_available_; }
  std::uint32_t offline_blocks() const { return offline_blocks_; }
  const std::vector<dimm>& dimms() const { return dimms_; }

  /// MemTotal of a guest that uses exactly boot + `plugged_bytes`.
  std::uint64_t guest_mark_bytes(std::uint64_t plugged_bytes) const { return guest_boot_total_ + plugged_bytes; }

  /// Does the guest claim what the VMM says it has? Within `agreement_bytes`.
  bool guest_agrees() const;

  /// What the VMM and this ledger cannot both be right about; "" where nothing is.
  std::string inconsistency() const;

private:
  std::uint64_t boot_ = 0, max_ = 0, plugged_ = 0, requested_ = 0, target_ = 0, generation_ = 0;
  std::uint64_t guest_boot_total_ = 0, guest_total_ = 0, guest_available_ = 0;
  std::uint32_t offline_blocks_ = 0;
  std::vector<dimm> dimms_;
};

/// Below every granule: a guest's MemTotal moves by whole granules.
inline constexpr std::uint64_t agreement_bytes = std::uint64_t{1} << 20;

} // namespace caisson::memory_hotplug
