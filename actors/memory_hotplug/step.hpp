#pragma once

/// What the parts of the running change share: run.cpp (the loop), step.cpp (verbs and departures), guest.cpp (the
/// guest follows). Each of these functions is the last thing that its caller does: it may end the change.

#include "actors/memory_hotplug/run.hpp"

namespace caisson::memory_hotplug {

std::chrono::milliseconds left_until(self_ptr self, moment end);

/// Asks the VMM what there is, again and again until it says so or step_timeout has passed; then goes on with `then`.
void inspect(self_ptr self, void (*then)(self_ptr));

// The loop (run.cpp).

/// Reads the guest's facts, which a plan stands on, then next().
void read_guest(self_ptr self);
/// Between two steps: figures are fresh, nothing is under way.
void next(self_ptr self);
/// Judges, answers, and starts what waits.
void finish(self_ptr self);
/// Nothing was done: an error instead of an outcome.
void refuse(self_ptr self, const refusal& why);
/// Gives up on the guest or the VMM, but not before both were asked once more what is there.
void give_up(self_ptr self, ec code, std::string reason);
/// A step stopped half way: no further one, but the guest gets its time to take up what was plugged.
void stop_half_way(self_ptr self, ec code, std::string reason);

// One step (step.cpp).

void apply_action(self_ptr self);
/// The answer to an action was lost: the VMM is asked whether it was done.
void verify(self_ptr self);
void departure_looked_at(self_ptr self);
void dimm_refused(self_ptr self, const std::string& text);

// Room in the guest (room.cpp).

/// Down, once a change: the workload is held to what it will have room for, then next().
void make_room(self_ptr self);
/// The memory of the DIMM that is to leave goes offline in the guest, then apply_action(); or dimm_refused().
void let_dimm_go(self_ptr self);
/// A DIMM stays: its memory comes online again, then `then`.
void bring_back(self_ptr self, void (*then)(self_ptr));
/// The change is over: limits are what they are without one, or follow what was plugged. Waits for nothing.
void undo_room(self_ptr self, const change& c);

// The guest (guest.cpp).

/// Waits until the guest uses what the step (or, without one, the VMM) says.
void follow_guest(self_ptr self);
void guest_followed(self_ptr self);
bool reached(const state& st);

} // namespace caisson::memory_hotplug
