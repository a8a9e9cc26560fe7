#include "actors/memory_hotplug/autosize_run.hpp"

#include <algorithm>

#include "actors/memory_hotplug/step.hpp"

namespace caisson::memory_hotplug {
namespace {

using std::chrono::milliseconds;

constexpr std::uint64_t limit_slack_bytes = std::uint64_t{4} << 20; // less is not worth a request

// Stalled for 70 ms in a second: felt, and far from a standstill.
constexpr std::uint32_t stall_us = 70'000;
constexpr std::uint32_t window_us = 1'000'000;

autosize_policy from_proto(const v1::AutosizePolicy& p) {
  return {p.enabled(),
          p.floor_bytes(),
          p.ceiling_bytes(),
          p.step_bytes(),
          p.headroom_bytes(),
          milliseconds{p.cool_down_ms()}};
}

bool live(const state& st) {
  return st.ready && st.ended.empty() && st.automatic.sizer.policy().enabled;
}

std::uint64_t high_for(const state& st) {
  return workload_high_bytes(st.book.guest_total_bytes(), st.book.guest_boot_total_bytes(), st.automatic.own_use_bytes);
}

void watch_pressure(self_ptr self, bool on) {
  auto& st = self->state;
  if (!st.features.pressure())
    return;
  v1::AgentRequest ask;
  ask.mutable_watch_pressure()->set_stall_us(on ? stall_us : 0);
  ask.mutable_watch_pressure()->set_window_us(window_us);
  // Without it the looks find the same, only later.
  self->request(st.agent, st.set.agent_timeout, std::move(ask)).then([](const v1::AgentReply&) {}, [](caf::error&) {});
}

void limit_workload(self_ptr self, std::uint64_t high_bytes) {
  auto& st = self->state;
  auto& a = st.automatic;
  if (!st.features.workload_cgroup() || a.limiting)
    return;
  const auto apart = high_bytes > a.high_bytes ? high_bytes - a.high_bytes : a.high_bytes - high_bytes;
  if (apart == 0 || (apart < limit_slack_bytes && high_bytes != 0))
    return;
  a.limiting = true;
  v1::AgentRequest ask;
  ask.mutable_set_workload_limits()->set_high_bytes(high_bytes);
  self->request(st.agent, st.set.agent_timeout, std::move(ask))
      .then(
          [self, high_bytes](const v1::AgentReply& reply) {
            self->state.automatic.limiting = false;
            if (reply.has_facts())
              self->state.automatic.high_bytes = high_bytes;
          },
          [self](caf::error&) { self->state.automatic.limiting = false; });
}

void look_again_in(self_ptr self, milliseconds delay) {
  auto& a = self->state.automatic;
  a.timer = ++self->state.serial;
  self->delayed_send(self, delay, tick_atom::value, a.timer);
}

void arm(self_ptr self) {
  auto& st = self->state;
  const bool on = live(st);
  watch_pressure(self, on);
  if (on) {
    limit_workload(self, high_for(st)); // before the workload begins
    look_again_in(self, st.features.pressure() ? st.set.autosize_look : st.set.autosize_look_without_pressure);
  } else {
    st.automatic.timer = 0;
    limit_workload(self, 0);
  }
}

void wish(self_ptr self, const autosize_wish& what) {
  auto& st = self->state;
  auto& a = st.automatic;
  a.sizer.wished(now(self), what, st.book.has_bytes());
  a.wishing = true;
  v1::ResizeSandbox ask;
  ask.set_sandbox(st.set.sandbox_id);
  ask.set_memory_bytes(what.target_bytes);
  ask.set_autosize(true);
  ask.set_cause(what.cause);
  self->request(st.set.wishes, st.set.operation_timeout, std::move(ask))
      .then(
          // Its SetMemoryTarget came before this answer, so that the change runs or is over.
          [self](const v1::Operation&) {
            self->state.automatic.wishing = false;
            self->state.automatic.following = true;
          },
          [self](caf::error& why) {
            auto& s = self->state;
            s.automatic.wishing = false;
            s.automatic.sizer.ended(now(self), s.book.has_bytes(), code_of(why) == ec::host_resources);
          });
}

} // namespace

void autosize_ready(self_ptr self, const v1::HotplugReady& m) {
  auto& st = self->state;
  auto& a = st.automatic;
  if (m.has_facts() && m.facts().has_memory()) {
    const auto& f = m.facts().memory();
    if (a.own_use_bytes == 0 || f.workload_bytes() == 0)
      a.own_use_bytes = own_use_bytes(st.book.guest_boot_total_bytes(), st.book.guest_total_bytes(),
                                      st.book.guest_available_bytes(), f.workload_bytes());
    a.high_bytes = f.workload_high_bytes();
  }
  a.policy = m.autosize();
  a.sizer.set(from_proto(a.policy));
  if (m.has_facts())
    arm(self);
}

void autosize_policy_changed(self_ptr self, const v1::AutosizePolicy& policy) {
  auto& st = self->state;
  const bool was = live(st);
  st.automatic.policy = policy;
  st.automatic.sizer.set(from_proto(policy));
  if (st.ready && (was || live(st)))
    arm(self);
  tell(self);
}

void autosize_look(self_ptr self) {
  auto& st = self->state;
  auto& a = st.automatic;
  if (!live(st) || st.paused || st.book.guest_total_bytes() == 0)
    return;
  if (a.following && !st.running && !st.waiting) {
    a.following = false;
    a.sizer.ended(now(self), st.book.has_bytes());
  }
  if (!st.running || !st.running->limited) // else a shrink has set a lower one, and ends it
    limit_workload(self, high_for(st));
  if (!st.set.wishes)
    return;
  autosize_view view;
  view.has_bytes = st.book.has_bytes();
  view.boot_bytes = st.book.boot_bytes();
  view.granule_bytes = std::max<std::uint64_t>(situation_of(st).granule_bytes, 1);
  view.available_bytes = st.book.guest_available_bytes();
  if (a.high_bytes > 0)
    view.room_bytes = a.high_bytes - std::min(a.high_bytes, st.workload_bytes);
  view.busy = st.running || st.waiting || a.wishing || a.following;
  if (auto what = a.sizer.look(now(self), view))
    wish(self, *what);
}

void autosize_pressure(self_ptr self) {
  auto& st = self->state;
  if (!live(st))
    return;
  st.automatic.sizer.pressure(now(self));
  autosize_look(self);
}

bool autosize_tick(self_ptr self, std::uint64_t number) {
  auto& st = self->state;
  auto& a = st.automatic;
  if (number == 0 || number != a.timer)
    return false;
  a.timer = 0;
  if (!live(st))
    return true;
  const auto next = [self] {
    auto& s = self->state;
    // Ended, switched off, or begun anew meanwhile: then another timer runs, or none is wanted.
    if (live(s) && s.automatic.timer == 0)
      look_again_in(self, s.features.pressure() ? s.set.autosize_look : s.set.autosize_look_without_pressure);
  };
  v1::AgentRequest read;
  read.mutable_read_facts();
  self->request(st.agent, st.set.agent_timeout, std::move(read))
      .then(
          [self, next](const v1::AgentReply& reply) {
            if (reply.has_facts()) {
              apply(self, reply.facts());
              autosize_look(self);
            }
            next();
          },
          [next](caf::error&) { next(); });
  return true;
}

} // namespace caisson::memory_hotplug
