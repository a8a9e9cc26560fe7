// The end of a sandbox: asked for, or found out.

#include <fmt/format.h>

#include "actors/sandbox/internal.hpp"

namespace caisson::sandbox {
namespace {

constexpr int most_destroy_attempts = 5;
constexpr milliseconds between_attempts{1'000};

void answer(std::vector<status_promise>& promises, const v1::SandboxStatus& status) {
  for (auto& p : std::exchange(promises, {}))
    p.deliver(status);
}

void refuse(std::vector<status_promise>& promises, const caf::error& why) {
  for (auto& p : std::exchange(promises, {}))
    p.deliver(why);
}

void remove_directory(self_ptr self, std::function<void(const caf::error&)> then) {
  auto& st = self->state;
  v1::RemoveDirectory remove;
  remove.set_path(st.record.spec().run_directory());
  self->request(st.set.host, st.set.verb_deadline, remove)
      .then([then](const v1::Empty&) { then({}); },
            [then](const caf::error& why) { then(make_error(to_proto(why, "the sandbox's run directory"))); });
}

void destroy(self_ptr self, int attempt, std::function<void(const caf::error&)> then) {
  auto& st = self->state;
  v1::DestroyVm verb;
  verb.set_sandbox_id(st.record.id());
  verb.set_deadline_ms(static_cast<std::uint32_t>(st.set.verb_deadline.count()));
  self->request(st.backend, st.set.verb_deadline * 2, verb)
      .then(
          [self, then](const v1::VmObserved& seen) {
            take(self, seen);
            remove_directory(self, then);
          },
          [self, attempt, then](const caf::error& why) {
            if (attempt >= most_destroy_attempts)
              return then(make_error(to_proto(why, "destroying the VM")));
            after(self, between_attempts, [self, attempt, then] { destroy(self, attempt + 1, then); });
          });
}

void save_console(self_ptr self) {
  auto& st = self->state;
  if (!st.console)
    return;
  auto text = st.console->text();
  if (text.empty() || st.set.log_directory.empty())
    return;
  v1::SaveText save;
  save.set_path(st.set.log_directory + "/" + st.record.id() + ".console.log");
  save.set_text(std::move(text));
  self->request(st.set.host, st.set.verb_deadline, std::move(save))
      .then([](const v1::Empty&) {}, [self](const caf::error& why) { warn(self, text_of(why)); });
}

void stopped(self_ptr self, happening how, const std::string& why) {
  auto& st = self->state;
  move_to(self, how);
  st.record.set_stop_reason(why);
  end_unbegun_operations(self, "the sandbox has ended: " + why);
  auto type = fmt::format("sandbox.{}", word(st.record.state()));
  save(self, type, why, [self](const caf::error& failed) {
    auto& s = self->state;
    s.cleaning = false;
    if (failed) {
      refuse(s.stopping, failed);
      refuse(s.removing, failed);
      return;
    }
    answer(s.stopping, status_of(self));
    unpark(self);
    if (s.remove_wanted || !s.removing.empty() || s.record.request().remove_when_stopped())
      finish(self, "sandbox.removed", "");
  });
}

void tell_hotplug(self_ptr self, const v1::VmEvent& m) {
  auto& st = self->state;
  self->send(st.memory, m);
  self->send(st.vcpus, m);
}

} // namespace

void clean_up_vm(self_ptr self, std::function<void(const caf::error&)> then, const std::string& why) {
  auto& st = self->state;
  st.cleaning = true;
  st.agent_connected = false;
  save_console(self);
  if (st.console)
    st.console->close();
  then = [self, then = std::move(then)](const caf::error& dirty) {
    if (!dirty)
      give_back_promise(self);
    then(dirty);
  };
  if (!st.backend)
    return then({});
  // Whoever still waits for the VM hears now that it goes.
  v1::VmEvent gone;
  gone.set_sandbox_id(st.record.id());
  gone.set_kind(v1::VmEvent::KIND_VMM_DIED);
  gone.set_text(why);
  tell_hotplug(self, gone);
  destroy(self, 1, std::move(then));
}

void vm_gone(self_ptr self, happening how, std::string why) {
  auto& st = self->state;
  if (st.cleaning)
    return;
  st.cleaning = true;
  st.explaining = true;
  auto clean_up = [self, how](const std::string& said) {
    self->state.explaining = false;
    self->state.gone_why = said;
    for (auto& work : std::exchange(self->state.when_explained, {}))
      work();
    clean_up_vm(
        self,
        [self, how, said](const caf::error& dirty) {
          stopped(self, how, dirty ? said + "; it could not be cleaned up: " + text_of(dirty) : said);
        },
        said);
  };
  if (how == happening::vm_gone_unasked)
    explain_end(self, std::move(why), clean_up);
  else
    clean_up(why);
}

void on_vm_event(self_ptr self, const v1::VmEvent& m) {
  auto& st = self->state;
  bool gone = m.kind() == v1::VmEvent::KIND_VMM_DIED || m.kind() == v1::VmEvent::KIND_GUEST_STOPPED ||
              m.kind() == v1::VmEvent::KIND_GUEST_PANICKED;
  if (!gone) {
    if (m.kind() == v1::VmEvent::KIND_BACKEND_RESTARTED)
      warn(self, "the hypervisor's process was lost and started again: " + m.text());
    return tell_hotplug(self, m);
  }
  if (st.cleaning || !has_vm(st.record.state()))
    return;
  auto text = m.kind() == v1::VmEvent::KIND_GUEST_PANICKED  ? "the guest's kernel panicked"
              : m.kind() == v1::VmEvent::KIND_GUEST_STOPPED ? "the guest powered off"
                                                            : "the VMM ended unasked";
  auto why = m.text().empty() ? std::string{text} : fmt::format("{}: {}", text, m.text());
  switch (st.record.state()) {
  case v1::SANDBOX_STATE_CREATING:
    return fail_boot(self, make_error(ec::vmm_died, why));
  case v1::SANDBOX_STATE_STOPPING:
    return continue_stop(self);
  default:
    vm_gone(self,
            m.kind() == v1::VmEvent::KIND_GUEST_STOPPED && st.record.state() == v1::SANDBOX_STATE_RUNNING
                ? happening::guest_powered_off
                : happening::vm_gone_unasked,
            why);
  }
}

void continue_stop(self_ptr self) {
  auto& st = self->state;
  if (st.cleaning)
    return;
  clean_up_vm(self, [self](const caf::error& dirty) {
    if (!dirty)
      return stopped(self, happening::vm_gone_as_asked, "stopped as asked");
    // Still STOPPING: the next stop or the next engine tries again.
    auto& s = self->state;
    s.cleaning = false;
    refuse(s.stopping, dirty);
    refuse(s.removing, dirty);
  });
}

caf::result<v1::SandboxStatus> on_stop(self_ptr self, const v1::StopSandbox& m) {
  auto& st = self->state;
  switch (st.record.state()) {
  case v1::SANDBOX_STATE_STOPPED:
  case v1::SANDBOX_STATE_FAILED:
  case v1::SANDBOX_STATE_REMOVED:
    return status_of(self);
  case v1::SANDBOX_STATE_RECOVERING:
    return park<v1::SandboxStatus>(self, m);
  default:
    break;
  }
  auto promise = self->make_response_promise<v1::SandboxStatus>();
  st.stopping.push_back(promise);
  if (st.record.state() == v1::SANDBOX_STATE_CREATING) {
    fail_boot(self, make_error(ec::cancelled,
                               fmt::format("sandbox {}: it was stopped while it was being created", st.record.name())));
    return promise;
  }
  if (st.cleaning || (st.record.state() == v1::SANDBOX_STATE_STOPPING && st.power_off_sent))
    return promise;
  bool guest_can = st.record.state() == v1::SANDBOX_STATE_RUNNING && st.agent_connected;
  auto grace = m.grace_ms() > 0 ? milliseconds{m.grace_ms()} : st.set.stop_grace;
  move_to(self, happening::stop_asked);
  st.power_off_sent = true;
  save(self, "sandbox.stopping", "", [self, guest_can, grace](const caf::error& why) {
    auto& s = self->state;
    if (why)
      warn(self, text_of(why));
    if (!guest_can)
      return continue_stop(self);
    v1::AgentRequest ask;
    ask.mutable_power_off();
    self->request(s.agent, grace, ask).then([](const v1::AgentReply&) {}, [](const caf::error&) {});
    after(self, grace, [self] {
      if (self->state.record.state() == v1::SANDBOX_STATE_STOPPING)
        continue_stop(self);
    });
  });
  return promise;
}

caf::result<v1::SandboxStatus> on_remove(self_ptr self, const v1::RemoveSandbox& m) {
  auto& st = self->state;
  if (st.record.state() == v1::SANDBOX_STATE_RECOVERING)
    return park<v1::SandboxStatus>(self, m);
  if (has_vm(st.record.state()) && !m.force() && st.record.state() != v1::SANDBOX_STATE_STOPPING)
    return make_error(ec::busy, fmt::format("rm: sandbox {} is {}; stop it first, or use --force", st.record.name(),
                                            word(st.record.state())));
  auto promise = self->make_response_promise<v1::SandboxStatus>();
  st.removing.push_back(promise);
  st.remove_wanted = true;
  if (!has_vm(st.record.state())) {
    if (!st.cleaning)
      finish(self, "sandbox.removed", "");
    return promise;
  }
  v1::StopSandbox stop;
  stop.set_sandbox(st.record.id());
  // Its answer is of no interest: stopped() and finish() answer the removal.
  self->request(caf::actor_cast<sandbox_actor>(self->ctrl()), st.set.verb_deadline * 10, stop)
      .then([](const v1::SandboxStatus&) {}, [](const caf::error&) {});
  return promise;
}

void end_children(self_ptr self) {
  auto& st = self->state;
  for (auto& child : {caf::actor_cast<caf::actor>(st.memory), caf::actor_cast<caf::actor>(st.vcpus),
                      caf::actor_cast<caf::actor>(st.agent), caf::actor_cast<caf::actor>(st.backend)})
    if (child)
      self->send_exit(child, caf::exit_reason::user_shutdown);
  if (st.console)
    st.console->close();
}

void finish(self_ptr self, std::string event_type, std::string text) {
  auto& st = self->state;
  if (st.finishing)
    return;
  st.finishing = true;
  st.record.set_state(v1::SANDBOX_STATE_REMOVED);
  v1::JournalRecord what;
  what.set_remove_sandbox_id(st.record.id());
  *what.add_events() = make_event(self, std::move(event_type), std::move(text));
  journal(self, std::move(what), [self](const caf::error& why) {
    auto& s = self->state;
    if (why) {
      // The record stays where it is; a later removal or the next engine tries again.
      s.finishing = false;
      s.record.set_state(v1::SANDBOX_STATE_FAILED);
      if (s.booting.pending())
        s.booting.deliver(make_error(s.boot_error));
      refuse(s.stopping, why);
      refuse(s.removing, why);
      return;
    }
    auto last = status_of(self);
    // The engine forgets the name before anybody hears of the end, so that it can be used again at once.
    self->send(s.set.engine, last);
    if (s.booting.pending())
      s.booting.deliver(make_error(s.boot_error));
    answer(s.stopping, last);
    answer(s.removing, last);
    unpark(self);
    end_children(self);
    for (auto& [id, op] : s.operations)
      for (auto& p : op.waiting)
        p.deliver(op.operation);
    self->quit();
  });
}

} // namespace caisson::sandbox
