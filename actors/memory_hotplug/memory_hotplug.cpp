#include "actors/memory_hotplug/memory_hotplug.hpp"

#include <fmt/format.h>

#include "actors/memory_hotplug/autosize_run.hpp"
#include "actors/memory_hotplug/run.hpp"

namespace caisson::memory_hotplug {
namespace {

using std::chrono::milliseconds;

caf::error error_of(const state& st, const refusal& why) {
  return make_error(why.code, fmt::format("sandbox {}: {}", st.set.sandbox_id, why.text));
}

refusal not_ready(const state& st) {
  if (!st.ended.empty())
    return {ec::vmm_died, fmt::format("its memory cannot be changed: {}", st.ended)};
  return {ec::not_running, "its memory cannot be changed before its guest has booted and answered"};
}

v1::MemoryStatus on_ready(self_ptr self, const v1::HotplugReady& m) {
  auto& st = self->state;
  st.spec = m.spec();
  st.capabilities = m.capabilities();
  if (m.has_features()) // without an agent (a paused or silent guest after a recovery) the VMM's word comes alone
    st.features = m.features();
  st.ready = true;
  st.ended.clear();
  const auto boot_total =
      m.guest_boot_mem_total_bytes() > 0 ? m.guest_boot_mem_total_bytes() : m.facts().memory().boot_mem_total_bytes();
  const auto boot = m.observed().boot_bytes() > 0 ? m.observed().boot_bytes() : m.spec().boot_bytes();
  st.book.open(boot, m.spec().max_bytes(), boot_total, m.memory_target_bytes(), m.generation());
  apply(self, m.observed());
  apply(self, m.facts());
  autosize_ready(self, m);
  return status_of(st);
}

// ---- looks beside a change ----

void aside_done(self_ptr self, std::uint64_t id) {
  auto& st = self->state;
  auto found = take_aside(st, id);
  if (!found)
    return;
  auto& a = *found;
  a.status.deliver(status_of(st));
  if (!a.outcome.pending())
    return;
  if (a.whole)
    st.looked_at = now(self);
  if (!st.ended.empty())
    return a.outcome.deliver(error_of(st, not_ready(st)));
  auto planned = make_plan(situation_of(st), a.asked.target_bytes());
  if (auto* no = std::get_if<refusal>(&planned))
    return a.outcome.deliver(error_of(st, *no));
  auto& p = std::get<plan>(planned);
  if (auto no = missing_ability(st, p))
    return a.outcome.deliver(error_of(st, *no));
  v1::HotplugOutcome out;
  out.set_operation_id(a.asked.operation_id());
  out.set_state(v1::OPERATION_STATE_PLANNED);
  *out.mutable_memory() = status_of(st);
  *out.mutable_plan() = to_proto(st, p);
  a.outcome.deliver(std::move(out));
}

caf::result<v1::MemoryStatus> on_read(self_ptr self, const v1::ReadHotplug& m) {
  auto& st = self->state;
  if (!m.refresh() || !st.ready || !st.ended.empty())
    return status_of(st);
  auto promise = self->make_response_promise<v1::MemoryStatus>();
  aside a;
  a.status = kept_promise<v1::MemoryStatus>{promise};
  look_aside(self, std::move(a), aside_done);
  return promise;
}

// ---- targets ----

caf::result<v1::HotplugOutcome> on_target(self_ptr self, const v1::SetMemoryTarget& m) {
  auto& st = self->state;
  if (!st.ready || !st.ended.empty())
    return error_of(st, not_ready(st));
  auto s = situation_of(st);
  if (s.granule_bytes == 0) {
    const auto& why = s.how == method::dimm ? st.capabilities.dimm_why_not() : st.capabilities.virtio_mem_why_not();
    return error_of(st, {ec::unsupported, fmt::format("its memory cannot be changed by {}: {}",
                                                      s.how == method::dimm ? "DIMM" : "virtio-mem",
                                                      why.empty() ? "the VMM cannot do it" : why)});
  }
  auto settled = settle_target(s, m.target_bytes());
  if (auto* no = std::get_if<refusal>(&settled))
    return error_of(st, *no);
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
  c.target = std::get<settled_target>(std::move(settled));
  c.plan.set_memory_asked_bytes(c.target.asked_bytes);
  c.plan.set_memory_target_bytes(c.target.used_bytes);
  c.deadline = self->clock().now() + (m.deadline_ms() > 0 ? milliseconds{m.deadline_ms()} : st.set.operation_timeout);
  c.former_target_bytes = st.book.target_bytes();
  st.book.accept(c.target.used_bytes);
  c.generation = st.book.generation();
  c.promise = kept_promise<v1::HotplugOutcome>{promise};
  tell(self);
  if (!st.running) {
    start_change(self, std::move(c));
    return promise;
  }
  const auto why = fmt::format("superseded by operation {} with target {} bytes", c.operation_id, c.target.used_bytes);
  if (st.waiting)
    cancel_waiting(self, why);
  st.running->stop_why = why;
  st.waiting.emplace(std::move(c));
  return promise;
}

caf::result<v1::MemoryStatus> on_cancel(self_ptr self, const v1::CancelOperation& m) {
  auto& st = self->state;
  if (st.waiting && st.waiting->operation_id == m.operation_id()) {
    // The one that it was to supersede has been told to stop and does; nothing follows it.
    cancel_waiting(self, "cancelled by hand before it began");
    return status_of(st);
  }
  if (st.running && st.running->operation_id == m.operation_id()) {
    if (st.running->stop_why.empty())
      st.running->stop_why = "cancelled by hand";
    return status_of(st);
  }
  return error_of(
      st, {ec::not_found, fmt::format("no change of memory called \"{}\" is running or waiting", m.operation_id())});
}

// ---- news ----

/// News while nothing runs (a DIMM that left late, virtio-mem that goes on by itself): look, at most once a
/// poll_interval.
void look_soon(self_ptr self) {
  auto& st = self->state;
  if (st.look_timer != 0)
    return;
  st.look_timer = ++st.serial;
  self->delayed_send(self, st.set.poll_interval, tick_atom::value, st.look_timer);
}

void on_event(self_ptr self, const v1::VmEvent& event) {
  auto& st = self->state;
  if (!st.ready)
    return;
  st.looked_at.reset();
  switch (event.kind()) {
  case v1::VmEvent::KIND_VMM_DIED:
    return vm_ended(self, "the VM is gone" + (event.text().empty() ? std::string{} : ": " + event.text()));
  case v1::VmEvent::KIND_GUEST_STOPPED:
    return vm_ended(self, "the guest has powered off");
  case v1::VmEvent::KIND_GUEST_PANICKED:
    return vm_ended(self, "the guest's kernel has panicked");
  default:
    break;
  }
  if (st.running)
    running_event(self, event);
  else
    look_soon(self);
}

void on_facts(self_ptr self, const v1::AgentFacts& facts) {
  if (!self->state.ready)
    return;
  apply(self, facts);
  if (self->state.running)
    running_facts(self);
  autosize_look(self);
}

void on_pressure(self_ptr self, const v1::MemoryPressure& m) {
  if (!self->state.ready)
    return;
  v1::AgentFacts facts;
  if (m.has_memory())
    *facts.mutable_memory() = m.memory();
  apply(self, facts);
  autosize_pressure(self);
}

void on_tick(self_ptr self, std::uint64_t number) {
  auto& st = self->state;
  if (timer_rang(self, number))
    return;
  if (number == st.look_timer) {
    st.look_timer = 0;
    if (!st.running && st.ended.empty())
      look_aside(self, aside{}, aside_done);
  } else {
    autosize_tick(self, number);
  }
}

void on_exit(self_ptr self, caf::exit_msg& m) {
  auto& st = self->state;
  end_answered(self, m,
               fmt::format("sandbox {}: it was ended while its memory was being changed; last read back, the VM has {} "
                           "bytes",
                           st.set.sandbox_id, st.book.has_bytes()),
               status_of(st));
}

} // namespace

memory_hotplug_actor::behavior_type memory_hotplug(self_ptr self, settings set, backend_actor backend,
                                                   guest_agent_actor agent, hotplug_listener listener) {
  auto& st = self->state;
  st.set = std::move(set);
  st.backend = std::move(backend);
  st.agent = std::move(agent);
  st.listener = std::move(listener);
  self->set_exit_handler([self](caf::exit_msg& m) { on_exit(self, m); });
  return {
      [self](const v1::HotplugReady& m) { return on_ready(self, m); },
      [self](const v1::SetMemoryTarget& m) { return on_target(self, m); },
      [self](const v1::CancelOperation& m) { return on_cancel(self, m); },
      [self](const v1::ReadHotplug& m) { return on_read(self, m); },
      [self](const v1::VmEvent& m) { on_event(self, m); },
      [self](const v1::AgentFacts& m) { on_facts(self, m); },
      [self](const v1::MemoryPressure& m) { on_pressure(self, m); },
      [self](const v1::AutosizePolicy& m) { autosize_policy_changed(self, m); },
      [self](tick_atom, std::uint64_t number) { on_tick(self, number); },
  };
}

} // namespace caisson::memory_hotplug
