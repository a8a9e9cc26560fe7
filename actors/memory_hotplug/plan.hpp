#pragma once

/// The memory arithmetic: from what a VM has, what it may have and what its guest says, to the steps that bring it to a
/// target, or a refusal with numbers. Pure: no actor, no clock, no I/O. Every size is in bytes.
///
/// DIMM: a DIMM is a multiple of the block and leaves as a whole. Growth is split into descending powers of two while
/// more than half of the slots are free, so that later shrinks find DIMMs of every size, and packed into few when slots
/// run short. A shrink that no set of DIMMs makes goes to the nearest size above its target.
/// virtio-mem: one device, both directions, in granules.
///
/// A step is never larger than the memory map that the guest can afford for it (step_limit_bytes()), and no shrink
/// takes what the guest uses (shrink_limit_bytes()): a kernel that is made to offline more moves pages until it kills
/// something.

#include <cstdint>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "messages/error.hpp"

namespace caisson::memory_hotplug {

enum class method : std::uint8_t { dimm, virtio_mem };

struct dimm {
  std::string id;
  std::uint64_t size_bytes = 0;
  std::uint64_t address = 0; ///< in the guest; 0: unknown
};

/// What a plan stands on.
struct situation {
  method how = method::virtio_mem;
  std::uint64_t boot_bytes = 0;
  std::uint64_t plugged_bytes = 0; ///< the VMM's word
  std::uint64_t max_bytes = 0;     ///< of boot + plugged
  std::uint64_t granule_bytes = 0; ///< DIMM block or virtio-mem granule; 0: this VM cannot do it
  std::uint32_t slots_total = 0;   ///< DIMM only
  std::vector<dimm> dimms;         ///< DIMM only: plugged now, oldest first
  std::set<std::string> stubborn;  ///< DIMMs that are not asked (again) to leave
  bool can_shrink = true;
  std::string why_no_shrink;
  std::uint64_t guest_total_bytes = 0;      ///< MemTotal, the guest's claim
  std::uint64_t guest_available_bytes = 0;  ///< MemAvailable, the guest's claim
  std::uint64_t guest_boot_total_bytes = 0; ///< MemTotal at boot
  std::uint64_t workload_bytes = 0;         ///< what the guest's workload holds, its claim; 0: unknown
};

struct refusal {
  ec code = ec::internal;
  std::string text;
};

/// What becomes of the size that was asked.
struct settled_target {
  std::uint64_t asked_bytes = 0;
  std::uint64_t used_bytes = 0;   ///< boot + a multiple of the granule
  std::vector<std::string> notes; ///< what was rounded, and to what
};

struct step {
  bool grow = true;
  std::uint64_t bytes = 0;                ///< of this step
  std::uint64_t plugged_after_bytes = 0;  ///< also what virtio-mem is asked for
  std::vector<std::uint64_t> new_dimms;   ///< DIMM, growing: sizes
  std::vector<std::string> leaving_dimms; ///< DIMM, shrinking: ids, to be asked one after another
  std::string text;                       ///< for a person
};

struct plan {
  settled_target target;
  std::vector<step> steps;
  std::uint64_t reached_bytes = 0; ///< boot + plugged after the last step; less or more than the target: partly
  std::vector<std::string> notes;  ///< the target's, and what cannot be done and what would be needed
};

/// Memory that a guest needs for the map of what it is given: 64 bytes for a page of 4 KiB.
inline constexpr std::uint64_t map_ratio = 64;
/// Left to the guest beside the memory map.
inline constexpr std::uint64_t guest_reserve_bytes = std::uint64_t{32} << 20;
/// No step above this many times MemTotal.
inline constexpr std::uint64_t most_growth_ratio = 48;

/// The most that one step may add, before rounding to the granule. 0 where the guest has no room for a memory map.
std::uint64_t step_limit_bytes(std::uint64_t guest_total_bytes, std::uint64_t guest_available_bytes);

/// The most that a guest can be asked to give back: what it has available, less a reserve (32 MiB, in small guests an
/// eighth of MemTotal at boot), plus the memory map that it gets back.
std::uint64_t shrink_limit_bytes(std::uint64_t guest_boot_total_bytes, std::uint64_t guest_available_bytes);

/// The target rules: zero and absurd sizes, below boot and above max are refused, all else is rounded up to the
/// granule, or down where up would be above max.
std::variant<settled_target, refusal> settle_target(const situation& s, std::uint64_t asked_bytes);

/// All steps as they would go if the guest did as expected. Executed one at a time, with a new plan from fresh figures
/// before each. No step and reached == target: nothing to do.
std::variant<plan, refusal> make_plan(const situation& s, std::uint64_t asked_bytes);

/// Sizes in blocks that sum to at most `blocks`, each at most `largest`, at most `slots_free` of them.
std::vector<std::uint64_t> split_growth(std::uint64_t blocks, std::uint64_t largest, std::uint32_t slots_free,
                                        std::uint32_t slots_total);

/// Indices of the DIMMs whose sum is the largest that is not above `at_most_bytes`; few DIMMs and new ones first. Exact
/// for all sizes that a VM can have; bounded work (greedy, largest first) for absurd ones.
std::vector<std::size_t> choose_leaving(const std::vector<dimm>& dimms, std::uint64_t at_most_bytes);

} // namespace caisson::memory_hotplug
