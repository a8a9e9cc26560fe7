#pragma once

/// The running change of the vcpu_hotplug actor (its rules: vcpu_hotplug.hpp). Used by that actor alone.

#include "actors/vcpu_hotplug/vcpu_hotplug.hpp"

namespace caisson::vcpu_hotplug {

using self_ptr = vcpu_hotplug_actor::stateful_pointer<state>;

situation situation_of(const state& st);
v1::ResizePlan to_proto(const plan& p);

/// Whole vCPUs are it rounded up.
void set_target(state& st, std::uint32_t milli);

/// Takes figures in and tells the listener where one has moved.
void apply(self_ptr self, const v1::VmObserved& seen);
void apply(self_ptr self, const v1::AgentFacts& facts);
void tell(self_ptr self);

void start_change(self_ptr self, change c);
void cancel_waiting(self_ptr self, const std::string& why);

/// The backend's process was lost: an answer that is awaited will not come.
void backend_restarted(self_ptr self);

/// The VM has ended: whatever runs or waits fails.
void vm_ended(self_ptr self, std::string how);

} // namespace caisson::vcpu_hotplug
