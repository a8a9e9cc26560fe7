#pragma once

/// THE MAP: every typed actor interface of the engine. Messages are the protobuf types of caisson.v1; what is passed
/// beside them is in local.hpp. A request that can fail answers with an error of error.hpp; every request is answered
/// exactly once, also when the actor ends.

#include <caf/all.hpp>

#include <memory>
#include <vector>

#include "messages/error.hpp"
#include "messages/inspect.hpp"
#include "messages/local.hpp"
#include "messages/agent.pb.h"
#include "messages/backend.pb.h"
#include "messages/config.pb.h"
#include "messages/doors.pb.h"
#include "messages/sandbox.pb.h"

namespace caisson {

class guest_link;  // actors/guest_agent/guest_link.hpp: one connection to one guest, its streams included
class event_sink;  // actors/events/event_sink.hpp: where a subscriber takes its events

using guest_link_ptr = std::shared_ptr<guest_link>;
using event_sink_ptr = std::shared_ptr<event_sink>;

using tick_atom = caf::atom_constant<caf::atom("tick")>;        ///< a delayed message to oneself
using link_atom = caf::atom_constant<caf::atom("link")>;        ///< asks for the guest link
using console_atom = caf::atom_constant<caf::atom("console")>;  ///< asks for console text
using unsub_atom = caf::atom_constant<caf::atom("unsub")>;

/// CONFIG: layered configuration with the origin of every value. One an engine.
using config_actor = caf::typed_actor<
    caf::replies_to<v1::ResolveConfig>::with<v1::ResolvedConfig>,  ///< For a new sandbox; error `configuration`.
    caf::replies_to<v1::ReloadConfig>::with<v1::ConfigReloaded>>;  ///< Reads the default file again.

/// JOURNAL: what must survive the process (SQLite). One an engine; may block, so production spawns it detached.
using journal_actor = caf::typed_actor<
    caf::replies_to<v1::JournalRecord>::with<v1::JournalRecorded>,  ///< One transaction, durable when answered.
    caf::replies_to<v1::JournalReplay>::with<v1::JournalContents>,  ///< Once, at the engine's start.
    caf::replies_to<v1::EventsFrom>::with<v1::EventBatch>>;         ///< Old events, for a late subscriber.

/// HOST: what blocks on files and /proc. One an engine; production spawns it detached.
using host_actor = caf::typed_actor<
    caf::replies_to<v1::MeasureProcess>::with<v1::ProcessFigures>,
    caf::replies_to<v1::MeasureHost>::with<v1::HostFigures>,
    caf::replies_to<v1::FollowCgroup>::with<v1::CgroupFollowed>,   ///< Where the host has none to use: a reason, no error.
    caf::replies_to<v1::PrepareDirectory>::with<v1::Empty>,
    caf::replies_to<v1::RemoveDirectory>::with<v1::Empty>,
    caf::replies_to<v1::SaveText>::with<v1::Empty>>;

/// BUDGET: what the host's memory is promised to. One an engine. Asked before anything is plugged.
using budget_actor = caf::typed_actor<
    /// Within the reserve and overcommit of this configuration; error `host_resources` with all numbers.
    caf::replies_to<v1::PromiseMemory, v1::SandboxConfig>::with<v1::MemoryPromised>,
    caf::reacts_to<v1::PromiseMemory>,                             ///< What is so anyway: found again, given back, gone (0).
    caf::reacts_to<std::string, v1::MeasureProcess>>;              ///< The VMM of this sandbox.

/// EVENTS: subscribers and their places. One an engine. Gets only events that the journal has numbered.
using events_actor = caf::typed_actor<
    caf::reacts_to<v1::EventBatch>,                                       ///< From whoever had them journalled.
    caf::replies_to<v1::EventsFrom, event_sink_ptr>::with<v1::Empty>,     ///< Old ones first, then live, no gap.
    caf::reacts_to<unsub_atom, event_sink_ptr>,
    caf::reacts_to<tick_atom, event_sink_ptr>>;                           ///< Internal: a reader of old events has room again.

/// Whoever owns a VM hears from its backend through this.
using vm_listener = caf::typed_actor<caf::reacts_to<v1::VmEvent>>;

/// BACKEND: one VMM. One a sandbox. The contract is in backends/backend.hpp.
using backend_actor = caf::typed_actor<
    caf::replies_to<v1::DescribeBackend>::with<v1::Capabilities>,
    caf::replies_to<v1::CreateVm>::with<v1::VmObserved>,
    caf::replies_to<v1::InspectVm>::with<v1::VmObserved>,
    caf::replies_to<v1::ApplyMemoryStep>::with<v1::VmObserved>,
    caf::replies_to<v1::SetVmVcpus>::with<v1::VmObserved>,
    caf::replies_to<v1::PauseVm>::with<v1::VmObserved>,
    caf::replies_to<v1::ResumeVm>::with<v1::VmObserved>,
    caf::replies_to<v1::DestroyVm>::with<v1::VmObserved>,
    caf::replies_to<v1::ListVms>::with<v1::VmList>,
    caf::replies_to<v1::AttachDevice>::with<v1::VmObserved>,
    caf::replies_to<v1::DetachDevice>::with<v1::VmObserved>>;

/// GUEST_AGENT: the channel to one guest. One a sandbox.
using guest_agent_actor = caf::typed_actor<
    caf::replies_to<v1::ConnectAgent>::with<v1::AgentHello>,       ///< Opens the channel (again after a loss).
    caf::replies_to<v1::AgentRequest>::with<v1::AgentReply>,       ///< `id` is filled in here.
    caf::replies_to<link_atom>::with<guest_link_ptr>,              ///< For stdio, which never passes through actors.
    caf::reacts_to<std::uint64_t, v1::GuestControl>,               ///< Internal: from link n.
    caf::reacts_to<link_atom, std::uint64_t, std::string>,         ///< Internal: link n is lost, why.
    caf::reacts_to<tick_atom, std::uint64_t>>;                     ///< Internal: request n has waited long enough.

/// Whoever owns a guest hears from it through this: unasked notices, and the loss of the channel.
using guest_listener = caf::typed_actor<caf::reacts_to<v1::AgentNotice>, caf::reacts_to<link_atom, std::string>>;

/// Hotplug actors tell progress through this (figures already read back).
using hotplug_listener = caf::typed_actor<caf::reacts_to<v1::MemoryStatus>, caf::reacts_to<v1::VcpuStatus>>;

/// Whoever makes operations: memory_hotplug's wish for another size (with its cause) goes to the sandbox through this.
using resize_actor = caf::typed_actor<caf::replies_to<v1::ResizeSandbox>::with<v1::Operation>>;

/// MEMORY_HOTPLUG: plan, ledger and running change of one sandbox's memory. One a sandbox.
using memory_hotplug_actor = caf::typed_actor<
    caf::replies_to<v1::HotplugReady>::with<v1::MemoryStatus>,     ///< After boot or recovery; before it nothing is planned.
    caf::replies_to<v1::SetMemoryTarget>::with<v1::HotplugOutcome>,  ///< Answers at the END of the change (or of the plan).
    caf::replies_to<v1::CancelOperation>::with<v1::MemoryStatus>,  ///< Stops after the step that is under way.
    caf::replies_to<v1::ReadHotplug>::with<v1::MemoryStatus>,      ///< Last read back; `refresh` asks VMM and guest.
    caf::reacts_to<v1::VmEvent>,
    caf::reacts_to<v1::AgentFacts>,                                ///< The guest's facts have changed unasked.
    caf::reacts_to<v1::MemoryPressure>,                            ///< The workload stalls for want of memory.
    caf::reacts_to<v1::AutosizePolicy>,                            ///< Another policy is in force from now on.
    caf::reacts_to<tick_atom, std::uint64_t>>;                     ///< Internal: the timer with this number.

/// VCPU_HOTPLUG: the same for vCPUs.
using vcpu_hotplug_actor = caf::typed_actor<
    caf::replies_to<v1::HotplugReady>::with<v1::VcpuStatus>,
    caf::replies_to<v1::SetVcpuTarget>::with<v1::HotplugOutcome>,
    caf::replies_to<v1::CancelOperation>::with<v1::VcpuStatus>,
    caf::replies_to<v1::ReadHotplug>::with<v1::VcpuStatus>,
    caf::reacts_to<v1::VmEvent>,
    caf::reacts_to<v1::AgentFacts>,
    caf::reacts_to<tick_atom, std::uint64_t>>;                     ///< Internal: the timer with this number.

/// SANDBOX: the life of one sandbox (actors/sandbox/lifecycle.hpp). Spawned and monitored by ENGINE.
using sandbox_actor = caf::typed_actor<
    caf::replies_to<v1::BootSandbox>::with<v1::SandboxStatus>,     ///< Answers when the agent has.
    caf::replies_to<v1::AdoptSandbox>::with<v1::SandboxStatus>,    ///< After a restart of the engine.
    caf::replies_to<v1::GetSandbox>::with<v1::SandboxStatus>,
    caf::replies_to<v1::StopSandbox>::with<v1::SandboxStatus>,
    caf::replies_to<v1::RemoveSandbox>::with<v1::SandboxStatus>,
    caf::replies_to<v1::PauseSandbox>::with<v1::SandboxStatus>,
    caf::replies_to<v1::ResumeSandbox>::with<v1::SandboxStatus>,
    caf::replies_to<v1::ResizeSandbox>::with<v1::Operation>,       ///< Answers at once.
    caf::replies_to<v1::GetOperation>::with<v1::Operation>,
    caf::replies_to<v1::WaitOperation>::with<v1::Operation>,
    caf::replies_to<v1::CancelOperation>::with<v1::Operation>,
    caf::replies_to<link_atom>::with<guest_link_ptr>,              ///< For exec.
    caf::replies_to<console_atom>::with<std::string>,              ///< Escaped text of the console ring.
    caf::reacts_to<v1::VmEvent>,
    caf::reacts_to<v1::AgentNotice>,
    caf::reacts_to<link_atom, std::string>,
    caf::reacts_to<v1::MemoryStatus>,
    caf::reacts_to<v1::VcpuStatus>,
    caf::reacts_to<tick_atom, std::uint64_t>>;                     ///< Internal: timer n.

/// ENGINE: registry and supervisor of all sandboxes of a state directory. One an engine.
using engine_actor = caf::typed_actor<
    caf::replies_to<v1::CreateSandbox>::with<v1::SandboxStatus>,
    caf::replies_to<v1::GetSandbox>::with<v1::SandboxStatus>,
    caf::replies_to<v1::ListSandboxes>::with<v1::SandboxList>,
    caf::replies_to<v1::StopSandbox>::with<v1::SandboxStatus>,
    caf::replies_to<v1::RemoveSandbox>::with<v1::SandboxStatus>,
    caf::replies_to<v1::PauseSandbox>::with<v1::SandboxStatus>,
    caf::replies_to<v1::ResumeSandbox>::with<v1::SandboxStatus>,
    caf::replies_to<v1::ResizeSandbox>::with<v1::Operation>,
    caf::replies_to<v1::GetOperation>::with<v1::Operation>,
    caf::replies_to<v1::WaitOperation>::with<v1::Operation>,
    caf::replies_to<v1::CancelOperation>::with<v1::Operation>,
    caf::replies_to<link_atom, std::string>::with<guest_link_ptr>,     ///< The guest link of a sandbox by name or id.
    caf::replies_to<console_atom, std::string>::with<std::string>,
    caf::replies_to<v1::EventsFrom, event_sink_ptr>::with<v1::Empty>,
    caf::reacts_to<unsub_atom, event_sink_ptr>,
    caf::replies_to<v1::GetEngine>::with<v1::EngineStatus>,
    caf::replies_to<v1::DescribeHost>::with<v1::Capabilities>,         ///< What a sandbox would get here; makes none.
    caf::reacts_to<v1::SandboxStatus>>;                                ///< Internal: a sandbox's last word.

} // namespace caisson

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(caisson::guest_link_ptr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(caisson::event_sink_ptr)
