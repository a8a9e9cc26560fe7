#include "actors/vcpu_hotplug/vcpu_hotplug.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "actors/vcpu_hotplug/run.hpp"

namespace caisson::vcpu_hotplug {

situation situation_of(const state& st) {
  situation s;
  s.online = st.now.online();
  s.plugged = st.now.plugged();
  s.max = st.now.max();
  s.guest_possible = st.guest_possible;
  s.can_plug = st.capabilities.vcpu_plug();
  s.can_unplug = st.capabilities.vcpu_unplug();
  s.why_no_unplug = st.capabilities.vcpu_unplug_why_not();
  s.guest_can = st.features.cpu_hotplug();
  s.quota_milli = st.now.quota_milli();
  s.guest_quota = st.features.workload_cgroup();
  return s;
}

void set_target(state& st, std::uint32_t milli) {
  st.now.set_target_milli(milli);
  st.now.set_target(milli / 1000 + (milli % 1000 > 0 ? 1 : 0));
}

v1::ResizePlan to_proto(const plan& p) {
  v1::ResizePlan out;
  out.set_vcpus_target(p.target);
  for (const auto& s : p.steps) {
    auto& to = *out.add_steps();
    to.set_grow(s.what == action::plug);
    to.set_text("vCPUs: " + s.text);
  }
  for (const auto& n : p.notes)
    out.add_notes(n);
  return out;
}

void apply(self_ptr self, const v1::VmObserved& seen) {
  auto& st = self->state;
  if (seen.state() == v1::VM_STATE_STOPPED || seen.state() == v1::VM_STATE_ABSENT)
    return vm_ended(self, fmt::format("the VM has ended: {}",
                                      seen.stop_reason().empty() ? "the VMM knows it no longer" : seen.stop_reason()));
  st.paused = seen.state() == v1::VM_STATE_PAUSED;
  st.now.set_plugged(seen.plugged_vcpus());
  tell(self);
}

void apply(self_ptr self, const v1::AgentFacts& facts) {
  auto& st = self->state;
  if (!facts.has_cpus())
    return;
  st.now.set_online(facts.cpus().online());
  st.now.set_quota_milli(facts.cpu_quota_milli());
  st.guest_possible = facts.cpus().possible();
  tell(self);
}

void tell(self_ptr self) {
  auto& st = self->state;
  if (!st.ready || st.now == st.told)
    return;
  st.told = st.now;
  if (st.listener)
    self->send(st.listener, st.now);
}

namespace {

using std::chrono::milliseconds;

caf::error error_of(const state& st, ec code, const std::string& text) {
  return make_error(code, fmt::format("sandbox {}: {}", st.set.sandbox_id, text));
}

/// Thousandths: what was asked, or whole vCPUs.
std::uint32_t milli_of(const v1::SetVcpuTarget& m) {
  constexpr std::uint32_t most_whole = UINT32_MAX / 1000;
  return m.target_milli() > 0 ? m.target_milli() : std::min(m.target(), most_whole) * 1000;
}

std::uint32_t whole(std::uint32_t milli) {
  return milli / 1000 + (milli % 1000 > 0 ? 1 : 0);
}

caf::error not_ready(const state& st) {
  if (!st.ended.empty())
    return error_of(st, ec::vmm_died, "its vCPUs cannot be changed: " + st.ended);
  return error_of(st, ec::not_running, "its vCPUs cannot be changed before its guest has booted and answered");
}

void aside_done(self_ptr self, std::uint64_t id) {
  auto& st = self->state;
  auto found = take_aside(st, id);
  if (!found)
    return;
  auto& a = *found;
  a.status.deliver(st.now);
  if (!a.outcome.pending())
    return;
  if (!st.ended.empty())
    return a.outcome.deliver(not_ready(st));
  auto planned = make_plan(situation_of(st), whole(milli_of(a.asked)), quota_of(milli_of(a.asked)));
  if (auto* no = std::get_if<refusal>(&planned))
    return a.outcome.deliver(error_of(st, no->code, no->text));
  v1::HotplugOutcome out;
  out.set_operation_id(a.asked.operation_id());
  out.set_state(v1::OPERATION_STATE_PLANNED);
  *out.mutable_vcpus() = st.now;
  *out.mutable_plan() = to_proto(std::get<plan>(planned));
  a.outcome.deliver(std::move(out));
}

v1::VcpuStatus on_ready(self_ptr self, const v1::HotplugReady& m) {
  auto& st = self->state;
  st.capabilities = m.capabilities();
  if (m.has_features()) // without an agent (a paused or silent guest after a recovery) the VMM's word comes alone
    st.features = m.features();
  st.ended.clear();
  auto max = m.spec().max_vcpus();
  for (auto limit : {m.observed().max_vcpus(), m.capabilities().max_vcpus()})
    if (limit > 0)
      max = max > 0 ? std::min(max, limit) : limit;
  st.now.set_max(max);
  st.now.set_generation(std::max(m.generation(), st.now.generation()));
  st.ready = true;
  apply(self, m.observed());
  apply(self, m.facts());
  const auto has = st.now.online() > 0 ? st.now.online() : st.now.plugged();
  set_target(st, m.vcpu_target_milli() > 0 ? m.vcpu_target_milli() : (m.vcpu_target() > 0 ? m.vcpu_target() : has) * 1000);
  tell(self);
  if (m.has_features() && quota_of(st.now.target_milli()) > 0)
    look_aside(self, aside{}, aside_done); // a greeting does not tell the quota
  return st.now;
}

caf::result<v1::VcpuStatus> on_read(self_ptr self, const v1::ReadHotplug& m) {
  auto& st = self->state;
  if (!m.refresh() || !st.ready || !st.ended.empty())
    return st.now;
  auto promise = self->make_response_promise<v1::VcpuStatus>();
  aside a;
  a.status = kept_promise<v1::VcpuStatus>{promise};
  look_aside(self, std::move(a), aside_done);
  return promise;
}

caf::result<v1::HotplugOutcome> on_target(self_ptr self, const v1::SetVcpuTarget& m) {
  auto& st = self->state;
  if (!st.ready || !st.ended.empty())
    return not_ready(st);
  // What can be refused on the spot supersedes nothing.
  auto planned = make_plan(situation_of(st), whole(milli_of(m)), quota_of(milli_of(m)));
  if (auto* no = std::get_if<refusal>(&planned))
    return error_of(st, no->code, no->text);
  auto promise = self->make_response_promise<v1::HotplugOutcome>();
  if (m.plan_only()) {
    aside a;
    a.outcome = kept_promise<v1::HotplugOutcome>{promise};
    a.asked = m;
    look_aside(self, std::move(a), aside_done);
    return promise;
  }
  change c;
  c.operation_id = m.operation_id();
  c.target_milli = milli_of(m);
  c.target = whole(c.target_milli);
  c.plan.set_vcpus_target(c.target);
  c.deadline = self->clock().now() + (m.deadline_ms() > 0 ? milliseconds{m.deadline_ms()} : st.set.operation_timeout);
  c.former_target_milli = st.now.target_milli();
  set_target(st, c.target_milli);
  st.now.set_generation(st.now.generation() + 1);
  c.generation = st.now.generation();
  c.promise = kept_promise<v1::HotplugOutcome>{promise};
  tell(self);
  if (!st.running) {
    start_change(self, std::move(c));
    return promise;
  }
  const auto why = fmt::format("superseded by operation {} with target {}", c.operation_id, milli_vcpus(c.target_milli));
  if (st.waiting)
    cancel_waiting(self, why);
  st.running->stop_why = why;
  st.waiting.emplace(std::move(c));
  return promise;
}

caf::result<v1::VcpuStatus> on_cancel(self_ptr self, const v1::CancelOperation& m) {
  auto& st = self->state;
  if (st.waiting && st.waiting->operation_id == m.operation_id()) {
    cancel_waiting(self, "cancelled by hand before it began");
    return st.now;
  }
  if (st.running && st.running->operation_id == m.operation_id()) {
    if (st.running->stop_why.empty())
      st.running->stop_why = "cancelled by hand";
    return st.now;
  }
  return error_of(st, ec::not_found,
                  fmt::format("no change of vCPUs called \"{}\" is running or waiting", m.operation_id()));
}

void on_event(self_ptr self, const v1::VmEvent& event) {
  if (!self->state.ready)
    return;
  switch (event.kind()) {
  case v1::VmEvent::KIND_VMM_DIED:
    return vm_ended(self, "the VM is gone" + (event.text().empty() ? std::string{} : ": " + event.text()));
  case v1::VmEvent::KIND_GUEST_STOPPED:
    return vm_ended(self, "the guest has powered off");
  case v1::VmEvent::KIND_GUEST_PANICKED:
    return vm_ended(self, "the guest's kernel has panicked");
  case v1::VmEvent::KIND_BACKEND_RESTARTED:
    return backend_restarted(self);
  default:
    break;
  }
}

void on_exit(self_ptr self, caf::exit_msg& m) {
  auto& st = self->state;
  end_answered(self, m,
               fmt::format("sandbox {}: it was ended while its vCPUs were being changed; last read back, the guest ran {}",
                           st.set.sandbox_id, st.now.online()),
               st.now);
}

} // namespace

vcpu_hotplug_actor::behavior_type vcpu_hotplug(self_ptr self, settings set, backend_actor backend,
                                               guest_agent_actor agent, hotplug_listener listener) {
  auto& st = self->state;
  st.set = std::move(set);
  st.backend = std::move(backend);
  st.agent = std::move(agent);
  st.listener = std::move(listener);
  self->set_exit_handler([self](caf::exit_msg& m) { on_exit(self, m); });
  return {
      [self](const v1::HotplugReady& m) { return on_ready(self, m); },
      [self](const v1::SetVcpuTarget& m) { return on_target(self, m); },
      [self](const v1::CancelOperation& m) { return on_cancel(self, m); },
      [self](const v1::ReadHotplug& m) { return on_read(self, m); },
      [self](const v1::VmEvent& m) { on_event(self, m); },
      [self](const v1::AgentFacts& m) {
        if (self->state.ready)
          apply(self, m);
      },
      [self](tick_atom, std::uint64_t number) { timer_rang(self, number); },
  };
}

} // namespace caisson::vcpu_hotplug
