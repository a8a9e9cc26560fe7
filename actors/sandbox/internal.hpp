#pragma once

// What the files of the sandbox actor share. Not for others.

#include <memory>

#include "actors/kept_promise.hpp"
#include "actors/sandbox/lifecycle.hpp"
#include "actors/sandbox/sandbox.hpp"
#include "actors/sandbox/spec.hpp"

namespace caisson::sandbox {

using self_ptr = sandbox_actor::stateful_pointer<state>;
using status_promise = caf::typed_response_promise<v1::SandboxStatus>;

// sandbox.cpp
v1::SandboxStatus status_of(self_ptr self);
v1::Event make_event(self_ptr self, std::string type, std::string text = {});
/// One transaction, then the events go out, then `then` with the journal's error or none.
void journal(self_ptr self, v1::JournalRecord what, std::function<void(const caf::error&)> then);
/// Journals the record as it is, with one event.
void save(self_ptr self, std::string event_type, std::string text, std::function<void(const caf::error&)> then);
void after(self_ptr self, milliseconds delay, std::function<void()> work);
void move_to(self_ptr self, happening what);
void take(self_ptr self, const v1::VmObserved& seen);
/// The same where no hotplug actor has been told yet: the VMM's figures are then all that is known.
void take_figures(self_ptr self, const v1::VmObserved& seen);
void unpark(self_ptr self);
void warn(self_ptr self, std::string text);
caf::error not_running(self_ptr self, std::string_view doing);

// boot.cpp
caf::result<v1::SandboxStatus> on_boot(self_ptr self, const v1::BootSandbox& m);
void fail_boot(self_ptr self, caf::error why);
void spawn_vm_actors(self_ptr self);
/// Opens the channel to the agent and tells the hotplug actors; `then` with the error or none.
void meet_guest(self_ptr self, milliseconds deadline, std::function<void(const caf::error&)> then);

// ending.cpp
caf::result<v1::SandboxStatus> on_stop(self_ptr self, const v1::StopSandbox& m);
caf::result<v1::SandboxStatus> on_remove(self_ptr self, const v1::RemoveSandbox& m);
void on_vm_event(self_ptr self, const v1::VmEvent& m);
/// Destroys the VM and everything of it on the host; tries again a few times; `then` with the last error or none. `why` is
/// what those hear who still wait for the VM.
void clean_up_vm(self_ptr self, std::function<void(const caf::error&)> then,
                 const std::string& why = "the sandbox is being ended");
void continue_stop(self_ptr self);
void vm_gone(self_ptr self, happening how, std::string why);
/// The actors below this one end with it; the VM does not.
void end_children(self_ptr self);
/// The last word: the record leaves the journal, everybody is answered, the actor ends.
void finish(self_ptr self, std::string event_type, std::string text);

// operations.cpp
caf::result<v1::Operation> on_resize(self_ptr self, const v1::ResizeSandbox& m);
caf::result<v1::Operation> on_get_operation(self_ptr self, const std::string& id);
caf::result<v1::Operation> on_wait_operation(self_ptr self, const v1::WaitOperation& m);
caf::result<v1::Operation> on_cancel_operation(self_ptr self, const v1::CancelOperation& m);
void on_progress(self_ptr self);
void begin_operation(self_ptr self, v1::Operation operation, milliseconds deadline);
void start_after_boot_operation(self_ptr self);
/// Operations of an earlier engine that had not ended go forward: targets are absolute, so setting them twice is harmless.
void resume_operations(self_ptr self);
/// Those that nobody works on now end, and are not left running for ever.
void end_unbegun_operations(self_ptr self, const std::string& why);

// operation_end.cpp
inline bool ended(const v1::Operation& op) {
  return op.state() != v1::OPERATION_STATE_RUNNING;
}
/// The figures that are known now.
void take_status(self_ptr self, v1::Operation& op);
/// With the last part the operation ends.
void part_ended(self_ptr self, const std::string& id, v1::HotplugOutcome outcome);

// promises.cpp
/// Asks the budget for this target of boot + plugged, raises the host's cgroup, then `then` with the refusal or none. A
/// target that is promised already goes on at once.
void ask_promise(self_ptr self, std::uint64_t target_bytes, std::string what, bool dry_run,
                 std::function<void(const caf::error&)> then);
/// What is promised and bounded becomes what is needed now: the largest of target and what was read back.
void settle_promise(self_ptr self);
/// The VMM's process is known: the budget measures it, the host's cgroup takes it in, and `then` in any case.
void tell_vmm(self_ptr self, std::function<void()> then = [] {});
void give_back_promise(self_ptr self);
/// Why the VMM is gone, as far as the host's cgroup knows: `then` with `why`, and with what was taken beyond the promise
/// where the host's kernel killed it for that. Before the cgroup is removed.
void explain_end(self_ptr self, std::string why, std::function<void(std::string)> then);
/// In force now; not enabled: none.
v1::AutosizePolicy autosize_policy(self_ptr self);
void measure_host_bytes(self_ptr self, std::function<void()> then);

// recovery.cpp
caf::result<v1::SandboxStatus> on_adopt(self_ptr self, const v1::AdoptSandbox& m);
void on_agent_lost(self_ptr self, const std::string& why);

/// A request that came while the engine reads the VM back waits until that is over.
template <class Reply, class Message> caf::result<Reply> park(self_ptr self, const Message& m) {
  constexpr std::size_t most_parked = 256;
  if (self->state.parked.size() >= most_parked)
    return make_error(ec::busy, "sandbox " + self->state.record.name() +
                                    ": it is being recovered and too many requests wait for it already; try again");
  auto promise = self->template make_response_promise<Reply>();
  self->state.parked.push_back(
      [self, promise, m]() mutable { promise.delegate(caf::actor_cast<sandbox_actor>(self->ctrl()), m); });
  return promise;
}

} // namespace caisson::sandbox
