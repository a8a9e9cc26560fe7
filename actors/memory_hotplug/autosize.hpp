#pragma once

/// Memory that follows the load: when a sandbox grows or gives back by itself, and how far. Pure: time is given, nothing
/// is done here. Sizes in bytes.
///
///            headroom             headroom + 2 steps
///   ---- grow ----|------ rest ------|---- give back ---->   available in the guest (its claim)
///
/// Below the headroom the sandbox grows at once, by at least a step, so that the headroom is there again; while the
/// workload stalls by more and sooner (also where memory is available, and its limit holds it). What is too much is given
/// back only when it has been too much for the whole of the cool-down, and only as much as was never used meanwhile, less
/// a step: the new size rests between the two marks, so that nothing swings.
///
/// The guest is believed between floor and ceiling only, and moves the size at a bounded rate whatever it claims: one
/// growth an interval of at most `most_steps` steps (or the headroom, where that is more), one shrink a cool-down. A
/// change that was refused or came to nothing is tried again later and later.

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace caisson::memory_hotplug {

struct autosize_policy {
  bool enabled = false;
  std::uint64_t floor_bytes = 0, ceiling_bytes = 0; ///< of boot + plugged
  std::uint64_t step_bytes = 0;
  std::uint64_t headroom_bytes = 0;
  std::chrono::milliseconds cool_down{0};
};

struct autosize_pace {
  std::chrono::milliseconds between_growths{2'000};
  std::chrono::milliseconds between_growths_under_pressure{500};
  std::chrono::milliseconds pressure_lasts{3'000}; ///< a notice counts for so long
  std::chrono::milliseconds first_retry{1'000};    ///< after a change that was refused or came to nothing; doubles
  std::chrono::milliseconds slowest_retry{60'000};
  std::chrono::milliseconds slowest_guest_retry{8'000}; ///< where it was the guest that could not
};

/// What is known at a moment.
struct autosize_view {
  std::uint64_t has_bytes = 0;       ///< boot + plugged, the VMM's word
  std::uint64_t boot_bytes = 0;      ///< of it
  std::uint64_t granule_bytes = 1;   ///< what is plugged is a multiple of it
  std::uint64_t available_bytes = 0; ///< MemAvailable, the guest's claim
  bool busy = false;                 ///< a change is under way, or asked for
  std::uint64_t room_bytes = UINT64_MAX; ///< what the workload may take until its memory.high holds it, the guest's claim
};

struct autosize_wish {
  std::uint64_t target_bytes = 0;
  std::string cause; ///< a sentence with the figures
};

class autosizer {
public:
  using moment = std::chrono::steady_clock::time_point;
  static constexpr std::uint64_t most_steps = 4; ///< of one growth

  explicit autosizer(autosize_pace pace = {}) : pace_{pace} {}

  void set(const autosize_policy& policy);
  const autosize_policy& policy() const { return policy_; }

  /// The workload stalls.
  void pressure(moment now);

  /// What should be changed now. Asked at every look at the guest; the caller follows a wish up with wished() and
  /// ended().
  std::optional<autosize_wish> look(moment now, const autosize_view& seen);

  /// The wish was passed on.
  void wished(moment now, const autosize_wish& wish, std::uint64_t has_bytes);

  /// It is over: refused, or done as far as it went.
  void ended(moment now, std::uint64_t has_bytes, bool refused_by_host = false);

private:
  autosize_policy policy_;
  autosize_pace pace_;
  std::optional<moment> stalled_;
  std::optional<moment> surplus_since_;
  std::uint64_t least_surplus_ = 0;
  std::optional<moment> last_growth_;
  moment not_before_{};
  std::chrono::milliseconds retry_{0};
  std::optional<std::uint64_t> wished_from_;
};

/// memory.high of the workload: what the guest has, less what it used for itself without any workload (and the map of
/// what was plugged since), less a reserve. 0 where there is no sensible one.
std::uint64_t workload_high_bytes(std::uint64_t total_bytes, std::uint64_t boot_total_bytes, std::uint64_t own_use_bytes);

/// What a guest uses for itself, from one look: what is not available and not the workload's, within reason (32 MiB to a
/// quarter of MemTotal at boot).
std::uint64_t own_use_bytes(std::uint64_t boot_total_bytes, std::uint64_t total_bytes, std::uint64_t available_bytes,
                            std::uint64_t workload_bytes);

} // namespace caisson::memory_hotplug
