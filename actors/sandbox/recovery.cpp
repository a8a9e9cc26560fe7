// After a restart of the engine: the VMM is asked first, the journal says what was wanted. What was answered goes
// forward, what was never answered is undone. And while the engine runs: a lost channel to the agent is opened again.

#include <fmt/format.h>

#include <algorithm>

#include "actors/sandbox/internal.hpp"

namespace caisson::sandbox {
namespace {

constexpr milliseconds reconnect_deadline{20'000};
constexpr milliseconds first_reconnect{200};
constexpr milliseconds slowest_reconnect{30'000};
constexpr int most_inspect_attempts = 5;
constexpr milliseconds between_inspects{1'000};

void recovered(self_ptr self, happening how) {
  move_to(self, how);
  save(self, fmt::format("sandbox.{}", word(self->state.record.state())), "found again after a restart of the engine",
       [self](const caf::error& why) {
         if (why)
           warn(self, text_of(why));
         settle_promise(self);
         if (self->state.record.state() == v1::SANDBOX_STATE_RUNNING)
           resume_operations(self);
         unpark(self);
       });
}

// The VM lives and its agent does not answer: the sandbox runs all the same, and the channel is tried again and again.
void without_agent(self_ptr self, const caf::error& why) {
  warn(self, "the guest's agent does not answer: " + text_of(why));
  recovered(self, happening::agent_answered);
  on_agent_lost(self, text_of(why));
}

void read_back(self_ptr self, int attempt) {
  auto& st = self->state;
  v1::InspectVm inspect;
  inspect.set_sandbox_id(st.record.id());
  inspect.set_deadline_ms(static_cast<std::uint32_t>(st.set.verb_deadline.count()));
  self->request(st.backend, st.set.verb_deadline * 2, inspect)
      .then(
          [self](const v1::VmObserved& seen) {
            take_figures(self, seen);
            tell_vmm(self);
            switch (seen.state()) {
            case v1::VM_STATE_RUNNING:
              return meet_guest(self, reconnect_deadline, [self](const caf::error& why) {
                if (self->state.record.state() != v1::SANDBOX_STATE_RECOVERING)
                  return;
                if (why)
                  without_agent(self, why);
                else
                  recovered(self, happening::agent_answered);
              });
            case v1::VM_STATE_PAUSED:
              return recovered(self, happening::pause_done);
            default:
              vm_gone(self, happening::vm_gone_unasked,
                      fmt::format("its VM was gone when the engine started{}{}", seen.stop_reason().empty() ? "" : ": ",
                                  seen.stop_reason()));
            }
          },
          [self, attempt](const caf::error& why) {
            if (attempt < most_inspect_attempts)
              return after(self, between_inspects, [self, attempt] { read_back(self, attempt + 1); });
            vm_gone(self, happening::vm_gone_unasked, "its VM could not be read back: " + text_of(why));
          });
}

// Capabilities are not kept: they belong to the host's programs, which may have changed.
void describe_again(self_ptr self) {
  auto& st = self->state;
  self->request(st.backend, st.set.describe_deadline * 2, describe_request(st.record.spec(), st.set.describe_deadline))
      .then(
          [self](const v1::Capabilities& can) {
            self->state.capabilities = can;
            read_back(self, 1);
          },
          [self](const caf::error& why) {
            warn(self, text_of(why));
            read_back(self, 1);
          });
}

void undo(self_ptr self, std::string why) {
  clean_up_vm(self, [self, why](const caf::error& dirty) {
    finish(self, "sandbox.undone",
           dirty ? why + ", and it could not be removed: " + text_of(dirty) : why + ", so it was removed");
  });
}

void reconnect(self_ptr self) {
  auto& st = self->state;
  if (st.record.state() != v1::SANDBOX_STATE_RUNNING || st.agent_connected)
    return;
  meet_guest(self, reconnect_deadline, [self](const caf::error& why) {
    if (why)
      on_agent_lost(self, text_of(why));
    else
      resume_operations(self);
  });
}

} // namespace

void on_agent_lost(self_ptr self, const std::string& why) {
  auto& st = self->state;
  st.agent_connected = false;
  if (st.record.state() != v1::SANDBOX_STATE_RUNNING || st.cleaning)
    return;
  if (st.reconnects++ == 0) {
    v1::JournalRecord what;
    *what.add_events() = make_event(self, "sandbox.agent_lost", why);
    journal(self, std::move(what), [](const caf::error&) {});
  }
  auto delay = std::min(slowest_reconnect, first_reconnect * (1 << std::min<std::uint32_t>(st.reconnects, 10)));
  after(self, delay, [self] { reconnect(self); });
}

caf::result<v1::SandboxStatus> on_adopt(self_ptr self, const v1::AdoptSandbox& m) {
  auto& st = self->state;
  if (!st.record.id().empty())
    return make_error(ec::internal, "sandbox " + st.record.name() + ": it is adopted once only");
  st.record = m.record();
  for (const auto& op : m.operations()) {
    st.operations[op.id()].operation = op;
    if (op.state() != v1::OPERATION_STATE_RUNNING)
      st.ended_operations.push_back(op.id());
  }
  st.operations_begun = static_cast<std::uint64_t>(m.operations_size());
  st.cgroup_made = true; // by the engine before, perhaps; one that is missing is removed easily
  spawn_vm_actors(self);
  if (st.record.request().owner() == "stream") {
    undo(self, "the stream that it belonged to ended with the engine");
    return status_of(self);
  }
  bool other_boot = st.record.boot_id() != st.set.host_boot_id;
  switch (st.record.state()) {
  case v1::SANDBOX_STATE_CREATING:
    undo(self, "its creation was never answered");
    break;
  case v1::SANDBOX_STATE_STOPPED:
  case v1::SANDBOX_STATE_FAILED:
    end_unbegun_operations(self, "the sandbox has ended: " + st.record.stop_reason());
    break;
  case v1::SANDBOX_STATE_STOPPING:
    continue_stop(self);
    break;
  default:
    move_to(self, happening::engine_started);
    if (other_boot)
      vm_gone(self, happening::vm_gone_unasked, "the host was restarted, and its VM was lost with it");
    else
      describe_again(self);
  }
  return status_of(self);
}

} // namespace caisson::sandbox
