#pragma once

#include <chrono>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "backends/simulated/timeline.hpp"

namespace caisson::backends::simulated {

/// Evenly drawn from least..most.
struct span_ms {
  std::uint32_t least = 0, most = 0;
  std::chrono::nanoseconds draw(dice& d) const { return std::chrono::milliseconds{d.between(least, most)}; }
};

/// How a simulated world behaves: how long things take, what goes wrong and how often, and what kind of hypervisor it
/// stands for. As text (environment variable CAISSON_SIMULATED_FAULTS): "key=value,key=value" with the names below.
///
///     seed=7                 the dice
///     verb_ms, boot_ms, notice_ms, online_ms, leave_ms, power_off_ms, slow_ms = N or N..M    how long
///     slow, refuse, lost, late, die, panic = P         chance for each verb, 0..1: it takes slow_ms; it is refused;
///     its
///                            answer is lost; it takes effect after its deadline; the VMM dies at it; the guest panics
///     boot_never, boot_panic, agent_silent, partial, stuck = P     chance for each VM: it never boots; panics at boot;
///     its
///                            agent never answers; its guest onlines only part of what is plugged; it gives memory back
///                            only in part
///     dimm_refused, dimm_ignored = P                   chance for each unplug
///     online_at_most_mib, online_at_most_cpus, virtio_mem_floor_mib = N
///     die_at=VERB:N          the VMM dies at the Nth VERB (create, inspect, memory, vcpus, attach, detach,
///                            pause, resume, destroy)
///     dimm, virtio_mem, dimm_unplug, virtio_mem_shrink, vcpu_unplug, pause = 0 or 1;  dimm_slots = N      capabilities
struct fault_plan {
  std::uint64_t seed = 1;

  span_ms verb_ms{1, 3}, boot_ms{20, 60}, notice_ms{2, 10}, online_ms{2, 20}, leave_ms{5, 30}, power_off_ms{5, 20};
  span_ms slow_ms{400, 2000};

  double slow = 0, refuse = 0, lost = 0, late = 0, die = 0, panic = 0;
  double boot_never = 0, boot_panic = 0, agent_silent = 0, partial = 0, stuck = 0;
  double dimm_refused = 0, dimm_ignored = 0;

  std::uint64_t online_at_most_bytes = std::numeric_limits<std::uint64_t>::max(); ///< of what is plugged
  std::uint32_t online_at_most_cpus = std::numeric_limits<std::uint32_t>::max();
  std::uint64_t virtio_mem_floor_bytes = 0;
  std::string die_at_verb;
  std::uint32_t die_at_count = 0;

  bool dimm = true, virtio_mem = true, dimm_unplug = true, virtio_mem_shrink = true, vcpu_unplug = true,
       can_pause = true;
  std::uint32_t dimm_slots = 256;
  std::uint64_t dimm_block_bytes = 128u << 20;
  std::uint64_t virtio_mem_granule_bytes = 2u << 20;

  /// The same hypervisor and times, and nothing goes wrong any more.
  [[nodiscard]] fault_plan calm() const;
};

/// Reads the text form over the defaults. `problem` says what is wrong with it; then the defaults come back.
fault_plan parse_fault_plan(std::string_view text, std::string& problem);

/// A plan drawn from a seed: some faults of some kinds, for simulations.
fault_plan seeded_fault_plan(std::uint64_t seed);

} // namespace caisson::backends::simulated
