#pragma once

/// The running change of the memory_hotplug actor (its rules: memory_hotplug.hpp). Used by that actor alone.

#include "actors/memory_hotplug/memory_hotplug.hpp"

namespace caisson::memory_hotplug {

using self_ptr = memory_hotplug_actor::stateful_pointer<state>;

v1::MemoryStatus status_of(const state& st);

/// What a plan stands on now. `for_change` adds what the change has learnt.
situation situation_of(const state& st, const change* for_change = nullptr);

/// Why this VM and guest cannot be changed by this plan at all; nullopt where they can.
std::optional<refusal> missing_ability(const state& st, const plan& p);

v1::ResizePlan to_proto(const state& st, const plan& p);

/// Takes figures in and tells the listener where something has moved.
void apply(self_ptr self, const v1::VmObserved& seen);
void apply(self_ptr self, const v1::AgentFacts& facts);

/// A limit of the workload that nobody wants, of a change whose last request was lost, goes.
void lift_left_over(self_ptr self);

/// Tells the listener where a figure has moved.
void tell(self_ptr self);

void start_change(self_ptr self, change c);

/// The change that waits ends CANCELLED without having begun.
void cancel_waiting(self_ptr self, const std::string& why);

/// News for the running change.
void running_event(self_ptr self, const v1::VmEvent& event);
void running_facts(self_ptr self);

/// The VM has ended: whatever runs or waits fails.
void vm_ended(self_ptr self, std::string how);

} // namespace caisson::memory_hotplug
