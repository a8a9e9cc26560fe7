#pragma once

/// MEMORY_HOTPLUG: how much memory one sandbox has, and the change of it that is under way.
///
/// One change at a time. A SetMemoryTarget that comes while one runs supersedes it: the newest target wins. The running
/// change ends after the step that is under way, CANCELLED with "superseded by ..."; then the new one starts from what
/// is there. A target that waits and is superseded itself ends CANCELLED at once. A target that is refused (and a
/// plan_only) supersedes nothing.
///
/// Answers to SetMemoryTarget: an error where it was refused before anything was done (a bad target, a guest that lacks
/// what is needed, no slot); a HotplugOutcome for everything that was begun:
///   CONVERGED  the VMM's plugged size is the target's, and the guest claims to use it
///   PARTLY     short of it, `why` has the numbers and the reason
///   FAILED     nothing has moved, or the VM has ended; `error` says why
///   CANCELLED  by hand or superseded
/// with the figures that were read back last. The target then: CONVERGED and PARTLY, what was asked (PARTLY: it is short of
/// it); an error, what it was before; FAILED and CANCELLED, what was read back, so that nothing stays promised that nobody
/// pursues. For virtio-mem that is boot + requested: the guest may go on following what the VMM was last told. It stays
/// what was asked where more may come of it still: the VMM's outcome is unknown, or a DIMM may yet leave.
///
/// A change is a loop: plan from fresh figures, do the first step, read back, wait for the guest, plan again. Up: the
/// VMM plugs, then the guest reports it online, then limits of its workload rise. Down: first the workload is held to
/// what it will have room for (memory.high, reclaim; nothing is killed), then what is free leaves. Down, DIMM: the guest
/// takes one DIMM's memory offline, all or none, then the VMM is asked for it; wait until it has left (an event, or a
/// look: events may be lost). A refusal names the blocks that hold it; it is retried once after `retry_delay`, then other
/// DIMMs are tried, and what stays is online again. Silence ends the change, because the guest's kernel is still busy with
/// that one. Down, virtio-mem: the requested size is set once and the guest goes on trying by itself. An answer that is lost or unknown is answered by InspectVm; a step is sent
/// again only where that shows that it was not done, and then under the same id.
///
/// Patience with the guest begins anew at each progress; the change's deadline bounds all of it.

#include <chrono>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "actors/memory_hotplug/autosize.hpp"
#include "actors/memory_hotplug/ledger.hpp"
#include "actors/memory_hotplug/outcome.hpp"
#include "actors/memory_hotplug/plan.hpp"
#include "actors/turns.hpp"
#include "messages/ports.hpp"

namespace caisson::memory_hotplug {

struct settings {
  std::string sandbox_id;
  std::chrono::milliseconds step_timeout{30'000};       ///< one verb of the VMM
  std::chrono::milliseconds agent_timeout{10'000};      ///< an answer of the agent, beside what it is told to wait
  std::chrono::milliseconds guest_patience{30'000};     ///< without any progress of the guest
  std::chrono::milliseconds operation_timeout{300'000}; ///< where a request names no deadline
  std::chrono::milliseconds poll_interval{250};         ///< for what events should have told
  std::chrono::milliseconds retry_delay{1'000};         ///< after a DIMM was refused
  std::chrono::milliseconds autosize_look{1'000};       ///< at the guest's figures, beside its pressure notices
  std::chrono::milliseconds autosize_look_without_pressure{500}; ///< where its kernel has none
  resize_actor wishes; ///< for automatic memory; nobody: there is none
};

using moment = std::chrono::steady_clock::time_point;

/// What a change is busy with.
enum class phase : std::uint8_t {
  settling,  ///< reading figures, before the first or after the last step
  limiting,  ///< the workload in the guest makes room
  offlining, ///< the guest takes a DIMM's memory offline
  acting,    ///< a verb is with the VMM
  verifying, ///< its answer was lost
  following, ///< the guest is to take memory up, or to confirm
  leaving,   ///< memory is to leave
  pausing    ///< before a refused DIMM is asked again
};

/// One accepted target on its way.
struct change {
  std::string operation_id;
  settled_target target;
  moment deadline;
  std::uint64_t generation = 0;
  std::uint64_t former_target_bytes = 0;
  kept_promise<v1::HotplugOutcome> promise;

  phase doing = phase::settling;
  v1::ResizePlan plan; ///< the first one
  bool planned = false;
  bool begun = false; ///< a verb was sent
  std::uint64_t plugged_at_start = 0;
  std::string stop_why; ///< not empty: ends after this step
  bool gave_up = false; ///< no further step
  bool unseen = false;  ///< the VMM could not be asked at the end
  bool may_leave_late = false; ///< a DIMM was asked for, and the guest neither gave it back nor refused
  std::vector<std::string> reasons;
  ec failure = ec::none;

  step now;                     ///< under way
  std::size_t next_dimm = 0;    ///< of now.new_dimms
  std::uint32_t dimms_made = 0; ///< for their names
  std::string new_dimm;         ///< the one that is being plugged
  std::uint32_t steps_done = 0;
  bool nudge = false;      ///< virtio-mem is first asked for what it has, so that the same request wakes it again
  bool redone = false;     ///< this action was sent a second time
  bool reply_lost = false; ///< of this action
  moment patience_end;
  std::uint64_t best_seen = 0; ///< by which progress is measured
  std::string guest_trouble;   ///< last failure of the agent
  std::map<std::string, int> refusals;
  std::set<std::string> stubborn;

  std::uint64_t total_at_start = 0; ///< MemTotal
  bool limited = false;             ///< the workload's memory.high was lowered for this change
  std::uint64_t room_bytes = 0;     ///< and to what
  std::string over_room;            ///< not empty: the workload could not be brought below it
  bool offline = false;             ///< the memory of the DIMM that is to leave is offline in the guest
  bool seen_without = false;        ///< and the guest's facts were read since
};

/// Automatic memory (autosize_run.hpp).
struct automatic_memory {
  autosizer sizer;
  v1::AutosizePolicy policy;
  std::uint64_t own_use_bytes = 0; ///< of the guest without its workload
  std::uint64_t high_bytes = 0;    ///< memory.high of the workload, as the guest last said
  std::uint64_t timer = 0;         ///< of the next look; 0: none is set
  bool wishing = false;            ///< a wish has no answer yet
  bool following = false;          ///< the operation of a wish has begun and its end was not looked at yet
  bool limiting = false;           ///< a request for high_bytes has no answer yet
};

using aside = caisson::aside<v1::MemoryStatus, v1::SetMemoryTarget>;

struct state : turn_keeper<v1::MemoryStatus, v1::SetMemoryTarget> {
  static constexpr const char* name = "memory_hotplug";
  settings set;
  backend_actor backend;
  guest_agent_actor agent;
  hotplug_listener listener;

  bool ready = false;
  v1::VmSpec spec;
  v1::Capabilities capabilities;
  v1::GuestFeatures features;
  std::uint64_t guest_block_bytes = 0;
  std::optional<moment> looked_at; ///< when a plan was made from what guest and VMM said, and nothing was heard since
  std::uint64_t workload_bytes = 0, workload_max_bytes = 0; ///< the guest's claims
  bool lifting = false;                                     ///< a limit that nobody wants is being taken away
  bool cannot_offline = false;                              ///< the agent does not know OfflineMemory
  ledger book;
  automatic_memory automatic;
  std::string ended; ///< not empty: the VM has ended, and how
  bool paused = false;

  std::optional<change> running;
  std::optional<change> waiting;

  std::uint64_t look_timer = 0; ///< of the look that follows news while nothing runs; 0: none is due
  v1::MemoryStatus told;        ///< to the listener
};

memory_hotplug_actor::behavior_type memory_hotplug(memory_hotplug_actor::stateful_pointer<state> self, settings set,
                                                   backend_actor backend, guest_agent_actor agent,
                                                   hotplug_listener listener);

} // namespace caisson::memory_hotplug
