// Creating a sandbox: describe the backend, decide what it decides, make the VM, meet its guest. Whatever fails on the
// way ends in fail_boot(), which undoes everything and answers.

#include <fmt/format.h>

#include "actors/guest_agent/guest_agent.hpp"
#include "actors/memory_hotplug/memory_hotplug.hpp"
#include "actors/sandbox/internal.hpp"
#include "actors/sandbox/spec.hpp"
#include "actors/vcpu_hotplug/vcpu_hotplug.hpp"
#include "messages/validate.hpp"

namespace caisson::sandbox {
namespace {

constexpr std::size_t console_lines_in_error = 20;

milliseconds agent_deadline(self_ptr self) {
  auto configured = self->state.record.config().sandbox().agent_connect_timeout_ms();
  return configured > 0 ? milliseconds{configured} : self->state.set.agent_deadline;
}

// A step of the boot goes on only while nobody has given it up.
bool given_up(self_ptr self) {
  return self->state.failing || self->state.record.state() != v1::SANDBOX_STATE_CREATING;
}

template <class Answer, class Next> auto unless_given_up(self_ptr self, Next next) {
  return [self, next](const Answer& answer) {
    if (!given_up(self))
      next(answer);
  };
}

auto or_fail(self_ptr self, std::string doing) {
  return [self, doing](const caf::error& why) {
    if (!given_up(self))
      fail_boot(self, make_error(to_proto(why, doing)));
  };
}

// Not one character may mean that no instruction of the guest has run.
std::string nothing_on_console(const v1::Capabilities& can) {
  auto out = std::string{"; its console is empty"};
  if (!can.accelerator().empty())
    out += fmt::format(" (accelerator {}{})", can.accelerator(),
                       can.accelerator_reason().empty() ? "" : ": " + can.accelerator_reason());
  return out;
}

void answer_booted(self_ptr self) {
  auto& st = self->state;
  move_to(self, happening::agent_answered);
  st.record.set_memory_target_bytes(st.memory_status.boot_bytes() + st.memory_status.plugged_bytes());
  st.record.set_vcpu_target(st.vcpu_status.online());
  st.record.set_guest_boot_mem_total_bytes(st.hello.memory().boot_mem_total_bytes());
  st.record.set_boot_ms(st.set.now_unix_ms() - st.boot_started_unix_ms);
  save(self, "sandbox.running", "", [self](const caf::error& why) {
    auto& s = self->state;
    if (s.failing || !s.booting.pending())
      return;
    if (why) {
      s.record.set_state(v1::SANDBOX_STATE_CREATING);
      return fail_boot(self, why);
    }
    s.booting.deliver(status_of(self));
    start_after_boot_operation(self);
  });
}

void await_guest(self_ptr self) {
  if (given_up(self))
    return;
  meet_guest(self, agent_deadline(self), [self](const caf::error& why) {
    if (given_up(self))
      return;
    if (why)
      fail_boot(self, why);
    else
      answer_booted(self);
  });
}

void create_vm(self_ptr self) {
  auto& st = self->state;
  v1::CreateVm create;
  *create.mutable_spec() = st.record.spec();
  create.set_deadline_ms(static_cast<std::uint32_t>(st.set.create_deadline.count()));
  self->request(st.backend, st.set.create_deadline * 2, std::move(create))
      .then(unless_given_up<v1::VmObserved>(self,
                                            [self](const v1::VmObserved& seen) {
                                              take(self, seen);
                                              // Bounded first: no workload runs before the guest was met.
                                              tell_vmm(self, [self] { await_guest(self); });
                                            }),
            or_fail(self, "making the VM"));
}

void prepare_directory(self_ptr self) {
  auto& st = self->state;
  v1::PrepareDirectory prepare;
  prepare.set_path(st.record.spec().run_directory());
  self->request(st.set.host, st.set.verb_deadline, prepare)
      .then(unless_given_up<v1::Empty>(self, [self](const v1::Empty&) { create_vm(self); }),
            or_fail(self, "the sandbox's run directory"));
}

void describe(self_ptr self) {
  auto& st = self->state;
  self->request(st.backend, st.set.describe_deadline * 2, describe_request(st.record.spec(), st.set.describe_deadline))
      .then(unless_given_up<v1::Capabilities>(self,
                                              [self](const v1::Capabilities& can) {
                                                auto& s = self->state;
                                                s.capabilities = can;
                                                if (auto why = settle(s.record, can))
                                                  return fail_boot(self, why);
                                                ask_promise(self, s.record.spec().boot_bytes(), "the creation", false,
                                                            [self](const caf::error& why) {
                                                              if (given_up(self))
                                                                return;
                                                              if (why)
                                                                fail_boot(self, why);
                                                              else
                                                                prepare_directory(self);
                                                            });
                                              }),
            or_fail(self, "asking what the hypervisor can do"));
}

} // namespace

void spawn_vm_actors(self_ptr self) {
  auto& st = self->state;
  auto me = caf::actor_cast<sandbox_actor>(self->ctrl());
  st.backend = st.set.provider->spawn(st.record.id(), caf::actor_cast<vm_listener>(me));
  guest_agent_settings agent;
  agent.channels = &st.set.provider->channels();
  agent.random = st.set.random;
  st.agent = self->spawn(guest_agent, agent, caf::actor_cast<guest_listener>(me));
  auto progress = caf::actor_cast<hotplug_listener>(me);
  memory_hotplug::settings memory;
  memory.sandbox_id = st.record.id();
  memory.wishes = caf::actor_cast<resize_actor>(me);
  st.memory = self->spawn(memory_hotplug::memory_hotplug, memory, st.backend, st.agent, progress);
  vcpu_hotplug::settings vcpus;
  vcpus.sandbox_id = st.record.id();
  st.vcpus = self->spawn(vcpu_hotplug::vcpu_hotplug, vcpus, st.backend, st.agent, progress);
  st.console = std::make_shared<console_ring>(st.set.provider->channels());
}

void meet_guest(self_ptr self, milliseconds deadline, std::function<void(const caf::error&)> then) {
  auto& st = self->state;
  if (!st.observed.channels().console().empty())
    st.console->open(st.observed.channels().console());
  v1::ConnectAgent connect;
  connect.set_endpoint(st.observed.channels().agent());
  connect.set_deadline_ms(static_cast<std::uint32_t>(deadline.count()));
  auto refused = [then](const caf::error& why) { then(make_error(to_proto(why, "meeting the guest"))); };
  self->request(st.agent, deadline + st.set.verb_deadline, connect)
      .then(
          [self, then, refused](const v1::AgentHello& hello) {
            auto& s = self->state;
            s.hello = hello;
            s.agent_connected = true;
            s.reconnects = 0;
            v1::HotplugReady ready;
            *ready.mutable_spec() = s.record.spec();
            *ready.mutable_observed() = s.observed;
            *ready.mutable_capabilities() = s.capabilities;
            *ready.mutable_facts()->mutable_memory() = hello.memory();
            *ready.mutable_facts()->mutable_cpus() = hello.cpus();
            *ready.mutable_features() = hello.features();
            ready.set_guest_boot_mem_total_bytes(s.record.guest_boot_mem_total_bytes() > 0
                                                     ? s.record.guest_boot_mem_total_bytes()
                                                     : hello.memory().boot_mem_total_bytes());
            ready.set_memory_target_bytes(s.record.memory_target_bytes());
            ready.set_vcpu_target(s.record.vcpu_target());
            ready.set_vcpu_target_milli(s.record.vcpu_target_milli());
            ready.set_generation(s.record.generation());
            *ready.mutable_autosize() = autosize_policy(self);
            self->request(s.memory, s.set.verb_deadline, ready)
                .then(
                    [self, then, refused, ready](const v1::MemoryStatus& memory) {
                      self->state.memory_status = memory;
                      self->request(self->state.vcpus, self->state.set.verb_deadline, ready)
                          .then(
                              [self, then](const v1::VcpuStatus& vcpus) {
                                self->state.vcpu_status = vcpus;
                                self->state.hotplug_told = true;
                                then({});
                              },
                              refused);
                    },
                    refused);
          },
          refused);
}

caf::result<v1::SandboxStatus> on_boot(self_ptr self, const v1::BootSandbox& m) {
  auto& st = self->state;
  if (!st.record.id().empty())
    return make_error(ec::internal, "sandbox " + st.record.name() + ": it is booted once only");
  st.record = m.record();
  st.record.set_state(v1::SANDBOX_STATE_CREATING);
  st.record.set_boot_id(st.set.host_boot_id);
  st.boot_started_unix_ms = st.set.now_unix_ms();
  st.booting = self->make_response_promise<v1::SandboxStatus>();
  spawn_vm_actors(self);
  save(self, "sandbox.creating", "", [self](const caf::error& why) {
    if (given_up(self))
      return;
    if (why)
      fail_boot(self, why);
    else
      describe(self);
  });
  return st.booting;
}

void fail_boot(self_ptr self, caf::error why) {
  auto& st = self->state;
  if (st.failing)
    return;
  st.failing = true;
  auto told = to_proto(why);
  // A guest that never answered is a boot that failed, and its console says most about it.
  if (st.console && !st.observed.channels().console().empty()) {
    auto code = code_of(why);
    if (code == ec::guest_unresponsive || code == ec::vmm_died || code == ec::deadline_exceeded) {
      auto lines = st.console->tail(console_lines_in_error);
      told = error_message(ec::boot_failed, fmt::format("sandbox {}: its guest did not come up: {}{}", st.record.name(),
                                                        told.text(),
                                                        lines.empty() ? nothing_on_console(self->state.capabilities)
                                                                      : std::string{}));
      for (auto& line : lines)
        told.add_console_tail(std::move(line));
    }
  }
  explain_end(self, told.text(), [self, told](const std::string& said) {
    clean_up_vm(self, [self, told, said](const caf::error& dirty) {
      auto& s = self->state;
      auto text = told;
      text.set_text(dirty ? said + "; and what was made so far could not be removed: " + text_of(dirty) : said);
      s.record.set_stop_reason(text.text());
      move_to(self, happening::boot_failed);
      s.boot_error = text;
      finish(self, "sandbox.failed", text.text());
    });
  });
}

} // namespace caisson::sandbox
