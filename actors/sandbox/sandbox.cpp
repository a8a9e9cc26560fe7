#include "actors/sandbox/sandbox.hpp"

#include <fmt/format.h>

#include "actors/sandbox/internal.hpp"
#include "messages/validate.hpp"

namespace caisson::sandbox {

v1::SandboxStatus status_of(self_ptr self) {
  const auto& st = self->state;
  const auto& record = st.record;
  v1::SandboxStatus s;
  s.set_id(record.id());
  s.set_name(record.name());
  s.set_state(record.state());
  s.set_hypervisor(record.config().sandbox().hypervisor());
  s.set_architecture(record.spec().architecture());
  s.set_accelerator(st.observed.accelerator().empty() ? record.spec().accelerator() : st.observed.accelerator());
  s.set_accelerator_reason(record.accelerator_reason());
  s.set_vmm_version(st.observed.vmm_version().empty() ? st.capabilities.vmm_version() : st.observed.vmm_version());
  s.set_stop_reason(record.stop_reason());
  s.set_created_unix_ms(record.created_unix_ms());
  s.set_config_path(record.config().path());
  *s.mutable_adaptations() = record.config().adaptations();
  s.set_owner(record.request().owner());
  s.set_boot_ms(record.boot_ms());
  s.set_vmm_call_us(st.observed.vmm_call_us());
  for (const auto& w : st.warnings)
    s.add_warnings(w);
  for (const auto& w : record.config().warnings())
    s.add_warnings(w.text());

  auto& memory = *s.mutable_memory();
  auto& vcpus = *s.mutable_vcpus();
  if (has_vm(record.state())) {
    memory = st.memory_status;
    vcpus = st.vcpu_status;
    s.set_vmm_pid(st.observed.vmm_pid());
    s.set_agent_connected(st.agent_connected);
    s.set_kernel_release(escape_guest_text(st.hello.kernel_release(), 128));
    s.set_agent_version(escape_guest_text(st.hello.agent_version(), 64));
    *s.mutable_guest_features() = st.hello.features();
    memory.set_host_bytes(st.host_bytes);
    memory.set_promised_bytes(st.promised_bytes);
    *memory.mutable_autosize() = autosize_policy(self);
    if (!memory.autosize().enabled())
      memory.clear_autosize();
  }
  memory.set_boot_bytes(record.spec().boot_bytes());
  memory.set_max_bytes(record.spec().max_bytes());
  memory.set_method(record.spec().memory_method());
  memory.set_target_bytes(record.memory_target_bytes());
  memory.set_generation(record.generation());
  vcpus.set_max(record.spec().max_vcpus());
  vcpus.set_target(record.vcpu_target());
  vcpus.set_target_milli(record.vcpu_target_milli() > 0 ? record.vcpu_target_milli() : record.vcpu_target() * 1000);
  vcpus.set_generation(record.generation());

  const v1::Operation* shown = nullptr;
  for (const auto& [id, op] : st.operations)
    if (op.parts_open > 0 || (!shown && !st.ended_operations.empty() && id == st.ended_operations.back()))
      shown = &op.operation;
  if (shown)
    *s.mutable_operation() = *shown;
  return s;
}

v1::Event make_event(self_ptr self, std::string type, std::string text) {
  const auto& st = self->state;
  v1::Event e;
  e.set_unix_ms(st.set.now_unix_ms());
  e.set_sandbox_id(st.record.id());
  e.set_sandbox_name(st.record.name());
  e.set_type(std::move(type));
  e.set_state(st.record.state());
  e.set_text(std::move(text));
  return e;
}

void journal(self_ptr self, v1::JournalRecord what, std::function<void(const caf::error&)> then) {
  self->request(self->state.set.journal, self->state.set.verb_deadline, std::move(what))
      .then(
          [self, then](const v1::JournalRecorded& written) {
            v1::EventBatch batch;
            *batch.mutable_events() = written.events();
            if (batch.events_size() > 0)
              self->send(self->state.set.events, std::move(batch));
            then({});
          },
          [then](const caf::error& why) { then(make_error(to_proto(why, "the journal"))); });
}

void save(self_ptr self, std::string event_type, std::string text, std::function<void(const caf::error&)> then) {
  v1::JournalRecord what;
  *what.mutable_upsert() = self->state.record;
  *what.add_events() = make_event(self, std::move(event_type), std::move(text));
  journal(self, std::move(what), std::move(then));
}

void after(self_ptr self, milliseconds delay, std::function<void()> work) {
  auto& st = self->state;
  st.timers[++st.last_timer] = std::move(work);
  self->delayed_send(self, delay, tick_atom::value, st.last_timer);
}

void move_to(self_ptr self, happening what) {
  auto& record = self->state.record;
  if (auto to = next(record.state(), what))
    record.set_state(*to);
}

void take(self_ptr self, const v1::VmObserved& seen) {
  self->state.observed = seen;
}

void unpark(self_ptr self) {
  for (auto& work : std::exchange(self->state.parked, {}))
    work();
}

void warn(self_ptr self, std::string text) {
  constexpr std::size_t most_warnings = 32;
  auto& warnings = self->state.warnings;
  if (warnings.size() < most_warnings)
    warnings.push_back(std::move(text));
}

caf::error not_running(self_ptr self, std::string_view doing) {
  const auto& record = self->state.record;
  std::string why = record.stop_reason().empty() ? "" : " (" + record.stop_reason() + ")";
  std::string mend = record.state() == v1::SANDBOX_STATE_PAUSED     ? "resume it first"
                     : record.state() == v1::SANDBOX_STATE_CREATING ? "wait until it runs"
                                                                    : "start another with caisson run";
  return make_error(ec::not_running,
                    fmt::format("{}: sandbox {} is {}{}; {}", doing, record.name(), word(record.state()), why, mend));
}

void take_figures(self_ptr self, const v1::VmObserved& seen) {
  auto& st = self->state;
  take(self, seen);
  st.memory_status.set_boot_bytes(seen.boot_bytes());
  st.memory_status.set_plugged_bytes(seen.plugged_bytes());
  st.vcpu_status.set_plugged(seen.plugged_vcpus());
}

namespace {

// One that was found paused after a restart has not met its agent yet.
void meet_again(self_ptr self) {
  const auto& st = self->state;
  if (st.record.state() == v1::SANDBOX_STATE_RUNNING && !st.agent_connected)
    on_agent_lost(self, "the sandbox was resumed");
}

// A pause or resume whose answer was lost may take effect at any time: the VMM's word decides.
void agree_with_vmm(self_ptr self, const v1::VmObserved& seen) {
  auto& st = self->state;
  auto before = st.record.state();
  if (before == v1::SANDBOX_STATE_RUNNING && seen.state() == v1::VM_STATE_PAUSED)
    move_to(self, happening::pause_done);
  else if (before == v1::SANDBOX_STATE_PAUSED && seen.state() == v1::VM_STATE_RUNNING)
    move_to(self, happening::resume_done);
  if (st.record.state() == before)
    return;
  save(self, fmt::format("sandbox.{}", word(st.record.state())), "found so at the VMM", [self](const caf::error& why) {
    if (why)
      warn(self, text_of(why));
    meet_again(self);
  });
}

v1::InspectVm inspect_request(self_ptr self) {
  v1::InspectVm inspect;
  inspect.set_sandbox_id(self->state.record.id());
  inspect.set_deadline_ms(static_cast<std::uint32_t>(self->state.set.refresh_deadline.count()));
  return inspect;
}

// A verb whose outcome is unknown may take effect later: it is looked for, more and more seldom.
void look_later(self_ptr self) {
  for (auto delay : {milliseconds{5'000}, milliseconds{30'000}, milliseconds{120'000}, milliseconds{300'000}})
    after(self, delay, [self] {
      self->request(self->state.backend, self->state.set.verb_deadline, inspect_request(self))
          .then([self](const v1::VmObserved& seen) { agree_with_vmm(self, seen); }, [](const caf::error&) {});
    });
}

caf::result<v1::SandboxStatus> on_get(self_ptr self, const v1::GetSandbox& m) {
  auto& st = self->state;
  if (m.cached() || (st.record.state() != v1::SANDBOX_STATE_RUNNING && st.record.state() != v1::SANDBOX_STATE_PAUSED))
    return status_of(self);
  auto promise = self->make_response_promise<v1::SandboxStatus>();
  auto kept = keep(promise);
  auto open = std::make_shared<int>(4);
  auto done = [self, kept, open] {
    if (--*open == 0)
      kept->deliver(status_of(self));
  };
  v1::ReadHotplug refresh;
  refresh.set_refresh(st.record.state() == v1::SANDBOX_STATE_RUNNING);
  // What does not answer in time keeps its last figures: they were read back, only earlier. Hotplug actors that have
  // not been told of the VM (found paused, or without its agent) know less than the VMM.
  if (st.hotplug_told) {
    self->request(st.memory, st.set.refresh_deadline, refresh)
        .then(
            [self, done](const v1::MemoryStatus& s) {
              self->state.memory_status = s;
              done();
            },
            [done](const caf::error&) { done(); });
    self->request(st.vcpus, st.set.refresh_deadline, refresh)
        .then(
            [self, done](const v1::VcpuStatus& s) {
              self->state.vcpu_status = s;
              done();
            },
            [done](const caf::error&) { done(); });
  } else {
    *open -= 2;
  }
  self->request(st.backend, st.set.refresh_deadline * 2, inspect_request(self))
      .then(
          [self, done](const v1::VmObserved& seen) {
            // A paused guest says nothing new, so what the VMM has is all that can have changed.
            if (self->state.hotplug_told && self->state.record.state() != v1::SANDBOX_STATE_PAUSED)
              take(self, seen);
            else
              take_figures(self, seen);
            agree_with_vmm(self, seen);
            done();
          },
          [done](const caf::error&) { done(); });
  measure_host_bytes(self, done);
  return promise;
}

template <class Verb>
caf::result<v1::SandboxStatus> pause_or_resume(self_ptr self, const auto& m, v1::SandboxState needed, happening what,
                                               std::string_view doing) {
  auto& st = self->state;
  if (st.record.state() == v1::SANDBOX_STATE_RECOVERING)
    return park<v1::SandboxStatus>(self, m);
  auto goal = next(needed, what);
  if (goal && st.record.state() == *goal)
    return status_of(self);
  if (st.record.state() != needed)
    return not_running(self, doing);
  if (!st.capabilities.pause())
    return make_error(ec::unsupported, fmt::format("{}: {} cannot do it", doing, st.capabilities.backend()));
  auto promise = self->make_response_promise<v1::SandboxStatus>();
  auto kept = keep(promise);
  Verb verb;
  verb.set_sandbox_id(st.record.id());
  verb.set_deadline_ms(static_cast<std::uint32_t>(st.set.verb_deadline.count()));
  self->request(st.backend, st.set.verb_deadline * 2, verb)
      .then(
          [self, kept, what](const v1::VmObserved& seen) {
            take(self, seen);
            move_to(self, what);
            auto type = fmt::format("sandbox.{}", word(self->state.record.state()));
            save(self, type, "", [self, kept](const caf::error& why) {
              if (why)
                kept->deliver(why);
              else
                kept->deliver(status_of(self));
              meet_again(self);
            });
          },
          [self, kept, doing = std::string{doing}](const caf::error& why) {
            kept->deliver(make_error(to_proto(why, doing)));
            look_later(self);
          });
  return promise;
}

caf::result<guest_link_ptr> on_link(self_ptr self) {
  auto& st = self->state;
  if (st.record.state() == v1::SANDBOX_STATE_RECOVERING)
    return park<guest_link_ptr>(self, link_atom::value);
  if (st.record.state() != v1::SANDBOX_STATE_RUNNING)
    return not_running(self, "exec");
  return self->delegate(st.agent, link_atom::value);
}

void on_notice(self_ptr self, const v1::AgentNotice& m) {
  auto& st = self->state;
  if (m.has_facts_changed()) {
    self->send(st.memory, m.facts_changed());
    self->send(st.vcpus, m.facts_changed());
  } else if (m.has_pressure()) {
    if (st.record.state() == v1::SANDBOX_STATE_RUNNING)
      self->send(st.memory, m.pressure());
  } else if (m.has_oom() && st.record.state() == v1::SANDBOX_STATE_RUNNING) {
    // Bounded by time: a guest may kill as often as it likes.
    constexpr std::int64_t apart_ms = 1'000;
    auto now = st.set.now_unix_ms();
    if (now - st.last_oom_unix_ms < apart_ms)
      return;
    st.last_oom_unix_ms = now;
    v1::JournalRecord what;
    *what.add_events() =
        make_event(self, "guest.oom",
                   "the guest's kernel killed " + escape_guest_text(m.oom().process(), 64) + " for want of memory");
    journal(self, std::move(what), [](const caf::error&) {});
  }
}

} // namespace

sandbox_actor::behavior_type sandbox(self_ptr self, settings set) {
  self->state.set = std::move(set);
  // The engine ends and the VM lives on: the next engine finds it.
  self->set_exit_handler([self](caf::exit_msg& e) {
    end_children(self);
    self->quit(std::move(e.reason));
  });
  return {
      [self](const v1::BootSandbox& m) { return on_boot(self, m); },
      [self](const v1::AdoptSandbox& m) { return on_adopt(self, m); },
      [self](const v1::GetSandbox& m) { return on_get(self, m); },
      [self](const v1::StopSandbox& m) { return on_stop(self, m); },
      [self](const v1::RemoveSandbox& m) { return on_remove(self, m); },
      [self](const v1::PauseSandbox& m) {
        return pause_or_resume<v1::PauseVm>(self, m, v1::SANDBOX_STATE_RUNNING, happening::pause_done, "pause");
      },
      [self](const v1::ResumeSandbox& m) {
        return pause_or_resume<v1::ResumeVm>(self, m, v1::SANDBOX_STATE_PAUSED, happening::resume_done, "resume");
      },
      [self](const v1::ResizeSandbox& m) { return on_resize(self, m); },
      [self](const v1::GetOperation& m) { return on_get_operation(self, m.operation_id()); },
      [self](const v1::WaitOperation& m) { return on_wait_operation(self, m); },
      [self](const v1::CancelOperation& m) { return on_cancel_operation(self, m); },
      [self](link_atom) { return on_link(self); },
      [self](console_atom) -> caf::result<std::string> {
        return self->state.console ? self->state.console->text() : std::string{};
      },
      [self](const v1::VmEvent& m) { on_vm_event(self, m); },
      [self](const v1::AgentNotice& m) { on_notice(self, m); },
      [self](link_atom, const std::string& why) { on_agent_lost(self, why); },
      [self](const v1::MemoryStatus& s) {
        self->state.memory_status = s;
        settle_promise(self);
        on_progress(self);
      },
      [self](const v1::VcpuStatus& s) {
        self->state.vcpu_status = s;
        on_progress(self);
      },
      [self](tick_atom, std::uint64_t number) {
        auto node = self->state.timers.extract(number);
        if (!node.empty())
          node.mapped()();
      },
  };
}

} // namespace caisson::sandbox
