#pragma once

/// The automatic memory of the memory_hotplug actor (its rules: autosize.hpp): looks at the guest, tells the wish for
/// another size to whoever makes operations, and keeps the workload's memory.high just under what the guest has, so
/// that a workload which wants more is throttled and not killed while memory comes. Used by that actor alone.

#include "actors/memory_hotplug/run.hpp"

namespace caisson::memory_hotplug {

/// After boot, a reconnection or a recovery: arms the guest's pressure notices and begins to look.
void autosize_ready(self_ptr self, const v1::HotplugReady& m);

/// Another policy is in force. Without one the workload's limit goes.
void autosize_policy_changed(self_ptr self, const v1::AutosizePolicy& policy);

/// The guest's facts are new.
void autosize_look(self_ptr self);

/// The workload stalls. The facts of the notice were taken before.
void autosize_pressure(self_ptr self);

/// True where the timer was its own.
bool autosize_tick(self_ptr self, std::uint64_t number);

} // namespace caisson::memory_hotplug
