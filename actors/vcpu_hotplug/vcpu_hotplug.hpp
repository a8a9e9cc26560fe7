#pragma once

/// VCPU_HOTPLUG: how many vCPUs one sandbox has, and the change of it that is under way.
///
/// One change at a time; the newest target wins, by the same rule as memory's
/// (actors/memory_hotplug/memory_hotplug.hpp): the running change ends CANCELLED after the step that is under way, then
/// the new one starts. The answers to SetVcpuTarget are the same too. CONVERGED: the guest claims to run exactly the
/// target, which the VMM has plugged. vCPUs beyond it that the VMM cannot unplug stay plugged and offline; `why` says
/// so and it is no failure.
///
/// A target in thousandths is whole vCPUs, rounded up, and a quota of the workload in the guest. CONVERGED then means
/// that the guest shows that quota too; a whole target means that there is none.

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "actors/turns.hpp"
#include "actors/vcpu_hotplug/plan.hpp"
#include "messages/ports.hpp"

namespace caisson::vcpu_hotplug {

struct settings {
  std::string sandbox_id;
  std::chrono::milliseconds step_timeout{30'000};       ///< one verb of the VMM
  std::chrono::milliseconds agent_timeout{10'000};      ///< an answer of the agent, beside what it is told to wait
  std::chrono::milliseconds guest_patience{30'000};     ///< without any progress of the guest
  std::chrono::milliseconds operation_timeout{300'000}; ///< where a request names no deadline
  std::chrono::milliseconds poll_interval{250};         ///< between two looks at what should have changed
};

using moment = std::chrono::steady_clock::time_point;

/// One accepted target on its way.
struct change {
  std::string operation_id;
  std::uint32_t target = 0;
  std::uint32_t target_milli = 0;
  std::uint32_t former_target_milli = 0;
  std::uint64_t generation = 0;
  moment deadline;
  kept_promise<v1::HotplugOutcome> promise;

  v1::ResizePlan plan;
  std::vector<step> steps;
  std::size_t at = 0;  ///< of steps
  bool acting = false; ///< a verb is with the VMM
  bool redone = false; ///< this verb was sent a second time
  bool unplug_asked = false; ///< the VMM has taken this unplug, the guest has not let go yet
  bool begun = false;
  std::uint32_t online_at_start = 0, plugged_at_start = 0, quota_at_start = 0;
  std::string stop_why; ///< not empty: ends after this step
  std::vector<std::string> reasons;
  std::vector<std::string> remarks; ///< that are no failure
  ec failure = ec::none;
  moment patience_end;
  std::uint32_t best_gap = 0; ///< by which progress is measured
  std::string guest_trouble;  ///< last failure of the agent
};

using aside = caisson::aside<v1::VcpuStatus, v1::SetVcpuTarget>;

struct state : turn_keeper<v1::VcpuStatus, v1::SetVcpuTarget> {
  static constexpr const char* name = "vcpu_hotplug";
  settings set;
  backend_actor backend;
  guest_agent_actor agent;
  hotplug_listener listener;

  bool ready = false;
  bool paused = false;
  std::string ended; ///< not empty: the VM has ended, and how
  v1::Capabilities capabilities;
  v1::GuestFeatures features;
  std::uint32_t guest_possible = 0;
  v1::VcpuStatus now;  ///< last read back
  v1::VcpuStatus told; ///< to the listener

  std::optional<change> running;
  std::optional<change> waiting;
};

vcpu_hotplug_actor::behavior_type vcpu_hotplug(vcpu_hotplug_actor::stateful_pointer<state> self, settings set,
                                               backend_actor backend, guest_agent_actor agent,
                                               hotplug_listener listener);

} // namespace caisson::vcpu_hotplug
