#include "actors/memory_hotplug/step.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "messages/validate.hpp"

namespace caisson::memory_hotplug {

using std::chrono::milliseconds;

constexpr milliseconds still_fresh{100};

milliseconds left_until(self_ptr self, moment end) {
  return std::chrono::ceil<milliseconds>(end - now(self));
}

/// Nobody pursues the target of this change any more: it becomes what was read back. For virtio-mem that is what the VMM
/// was last told, because the guest may go on following it. Where more may still come of the change by itself it stays.
static void let_go(state& st, const change& c) {
  if (!st.ended.empty() || c.unseen || c.may_leave_late || c.failure == ec::outcome_unknown)
    return;
  const auto left = st.book.boot_bytes() + (st.spec.memory_method() == v1::MEMORY_METHOD_VIRTIO_MEM
                                                ? st.book.requested_bytes()
                                                : st.book.plugged_bytes());
  if (st.waiting)
    st.waiting->former_target_bytes = left;
  else
    st.book.take_back(left);
}

void finish(self_ptr self) {
  auto& st = self->state;
  auto c = std::move(*st.running);
  st.running.reset();
  new_turn(self);
  undo_room(self, c);
  auto v = judge(st.book, {c.target.used_bytes, c.plugged_at_start, c.stop_why, st.ended, c.reasons, c.failure});
  const bool refused = !c.promise.pending(); // which has put the former target back
  if (!refused && (v.state == v1::OPERATION_STATE_CANCELLED || v.state == v1::OPERATION_STATE_FAILED))
    let_go(st, c);
  v1::HotplugOutcome out;
  out.set_operation_id(c.operation_id);
  out.set_state(v.state);
  out.set_why(v.why);
  if (v.error)
    *out.mutable_error() =
        error_message(v.error->code, fmt::format("sandbox {}: {}", st.set.sandbox_id, v.error->text));
  *out.mutable_memory() = status_of(st);
  *out.mutable_plan() = c.plan;
  c.promise.deliver(std::move(out));
  if (st.waiting) {
    auto w = std::move(*st.waiting);
    st.waiting.reset();
    start_change(self, std::move(w));
  }
}

void refuse(self_ptr self, const refusal& why) {
  auto& st = self->state;
  st.running->promise.fail(why.code, fmt::format("sandbox {}: {}", st.set.sandbox_id, why.text));
  st.book.take_back(st.waiting ? st.waiting->target.used_bytes : st.running->former_target_bytes);
  if (st.waiting)
    st.waiting->former_target_bytes = st.running->former_target_bytes;
  finish(self);
}

static void last_look(self_ptr self) {
  auto& st = self->state;
  const auto turn = new_turn(self);
  st.running->gave_up = true;
  st.running->doing = phase::settling;
  auto missing = std::make_shared<int>(2);
  auto one_less = [self, turn, missing] {
    if (--*missing == 0 && !stale(self, turn))
      finish(self);
  };
  self->request(st.backend, st.set.step_timeout + milliseconds{1'000}, inspection(st))
      .then(
          [self, turn, one_less](const v1::VmObserved& seen) {
            if (!stale(self, turn)) {
              apply(self, seen);
              one_less();
            }
          },
          [self, turn, one_less](caf::error&) {
            if (!stale(self, turn)) {
              self->state.running->unseen = true;
              one_less();
            }
          });
  v1::AgentRequest read;
  read.mutable_read_facts();
  self->request(st.agent, st.set.agent_timeout, std::move(read))
      .then(
          [self, turn, one_less](const v1::AgentReply& reply) {
            if (!stale(self, turn)) {
              if (reply.has_facts())
                apply(self, reply.facts());
              one_less();
            }
          },
          [one_less](caf::error&) { one_less(); });
}

void give_up(self_ptr self, ec code, std::string reason) {
  auto& c = *self->state.running;
  if (c.failure == ec::none)
    c.failure = code;
  c.reasons.push_back(std::move(reason));
  last_look(self);
}

void stop_half_way(self_ptr self, ec code, std::string reason) {
  auto& c = *self->state.running;
  if (c.failure == ec::none)
    c.failure = code;
  c.reasons.push_back(std::move(reason));
  c.gave_up = true;
  c.now = {};
  inspect(self, [](self_ptr s) {
    if (s->state.book.guest_agrees())
      return finish(s);
    follow_guest(s);
  });
}

static void inspect(self_ptr self, moment end, void (*then)(self_ptr)) {
  auto& st = self->state;
  const auto turn = new_turn(self);
  self->request(st.backend, st.set.step_timeout + milliseconds{1'000}, inspection(st))
      .then(
          [self, turn, then](const v1::VmObserved& seen) {
            if (stale(self, turn))
              return;
            apply(self, seen);
            if (!stale(self, turn)) // it may have ended the VM
              then(self);
          },
          [self, turn, then, end](caf::error& why) {
            if (stale(self, turn))
              return;
            auto& s = self->state;
            if (code_of(why) == ec::vmm_died)
              return vm_ended(self, text_of(why));
            if (now(self) >= end) {
              if (s.running->failure == ec::none)
                s.running->failure = ec::outcome_unknown;
              s.running->reasons.push_back("the VMM could not be asked what it has: " + text_of(why));
              return finish(self);
            }
            const auto again = new_turn(self);
            later(self, s.set.poll_interval, [self, again, then, end] {
              if (!stale(self, again))
                inspect(self, end, then);
            });
          });
}

void inspect(self_ptr self, void (*then)(self_ptr)) {
  inspect(self, now(self) + self->state.set.step_timeout, then);
}
// ---- the loop ----

namespace {

constexpr std::uint32_t most_steps = 4'096;
constexpr std::uint32_t most_virtio_shrinks = 8;

void begin_step(self_ptr self, step s) {
  auto& st = self->state;
  auto& c = *st.running;
  if (++c.steps_done > most_steps)
    return give_up(self, ec::internal, "too many steps without reaching the target");
  c.now = std::move(s);
  c.next_dimm = 0;
  c.redone = c.reply_lost = false;
  c.nudge =
      st.spec.memory_method() == v1::MEMORY_METHOD_VIRTIO_MEM && st.book.requested_bytes() == c.now.plugged_after_bytes;
  if (c.now.leaving_dimms.empty())
    apply_action(self);
  else
    let_dimm_go(self);
}

} // namespace

void next(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  if (st.paused && !c.begun)
    return refuse(self, {ec::not_running,
                         "it is paused, and a paused guest can neither take nor give back memory; resume it first"});
  const auto wanted = c.target.used_bytes - st.book.boot_bytes();
  if (!c.stop_why.empty() || c.gave_up || (st.book.plugged_bytes() == wanted && st.book.guest_agrees() && c.planned))
    return finish(self);
  if (now(self) >= c.deadline) {
    c.failure = ec::deadline_exceeded;
    c.reasons.push_back("the deadline of the change is over");
    return finish(self);
  }
  auto planned = make_plan(situation_of(st, &c), c.target.used_bytes);
  if (auto* no = std::get_if<refusal>(&planned)) {
    if (!c.begun)
      return refuse(self, *no);
    return give_up(self, no->code, no->text);
  }
  auto& p = std::get<plan>(planned);
  const auto shortfall = p.notes;
  if (!c.planned) {
    c.planned = true;
    c.plugged_at_start = st.book.plugged_bytes();
    c.total_at_start = st.book.guest_total_bytes();
    p.target = c.target;
    p.notes.insert(p.notes.begin(), c.target.notes.begin(), c.target.notes.end());
    c.plan = to_proto(st, p);
    if (auto no = missing_ability(st, p))
      return refuse(self, *no);
  }
  if (st.book.plugged_bytes() > wanted && st.features.workload_cgroup() && !c.limited)
    return make_room(self);
  // A guest whose MemAvailable moves would give back a granule at a time, for ever.
  const bool creeping = !p.steps.empty() && !p.steps.front().grow && c.steps_done >= most_virtio_shrinks &&
                        st.spec.memory_method() == v1::MEMORY_METHOD_VIRTIO_MEM;
  if (!p.steps.empty() && !creeping)
    return begin_step(self, std::move(p.steps.front()));
  if (st.book.plugged_bytes() != wanted) {
    c.reasons.insert(c.reasons.end(), shortfall.begin(), shortfall.end());
    if (!c.over_room.empty())
      c.reasons.push_back(c.over_room);
  }
  c.gave_up = true; // whatever the guest says now, no step is left
  c.now = {};
  if (st.book.guest_agrees())
    return finish(self);
  follow_guest(self);
}

void read_guest(self_ptr self) {
  read_facts(self, next, [self](const std::string& why) {
    give_up(self, ec::guest_unresponsive,
            fmt::format("{} was changed, because the guest's agent does not say what the guest has: {}",
                        self->state.running->begun ? "nothing more" : "nothing", why));
  });
}

void start_change(self_ptr self, change c) {
  auto& st = self->state;
  st.running.emplace(std::move(c));
  st.running->plugged_at_start = st.book.plugged_bytes();
  if (!st.ended.empty())
    return finish(self);
  be_patient(self);
  // Its plan was made a moment ago, from what both sides said then.
  if (const auto looked = std::exchange(st.looked_at, {}); looked && now(self) - *looked <= still_fresh)
    return next(self);
  inspect(self, [](self_ptr s) {
    s->state.running->plugged_at_start = s->state.book.plugged_bytes();
    read_guest(s);
  });
}

void cancel_waiting(self_ptr self, const std::string& why) {
  auto& st = self->state;
  auto w = std::move(*st.waiting);
  st.waiting.reset();
  if (st.book.generation() == w.generation) // no newer target has been accepted since
    st.book.take_back(w.former_target_bytes);
  v1::HotplugOutcome out;
  out.set_operation_id(w.operation_id);
  out.set_state(v1::OPERATION_STATE_CANCELLED);
  out.set_why(why);
  *out.mutable_memory() = status_of(st);
  w.promise.deliver(std::move(out));
}

void running_event(self_ptr self, const v1::VmEvent& event) {
  auto& st = self->state;
  auto& c = *st.running;
  const bool leaves = c.now.bytes > 0 && !c.now.grow && c.doing != phase::settling && c.doing != phase::following;
  const bool is_dimm = st.spec.memory_method() == v1::MEMORY_METHOD_DIMM;
  const bool mine = leaves && is_dimm && event.device_id() == c.now.leaving_dimms.front();
  switch (event.kind()) {
  case v1::VmEvent::KIND_DEVICE_REFUSED:
    if (mine && c.doing != phase::pausing && c.doing != phase::offlining)
      dimm_refused(self, event.text());
    break;
  case v1::VmEvent::KIND_DEVICE_REMOVED:
  case v1::VmEvent::KIND_MEMORY_SIZE:
    if (mine || (leaves && !is_dimm && c.doing == phase::leaving)) {
      c.doing = phase::leaving;
      inspect(self, departure_looked_at);
    }
    break;
  case v1::VmEvent::KIND_BACKEND_RESTARTED:
    // What was asked of the lost process will not be answered. Looks are repeated by themselves.
    if (c.doing == phase::acting)
      verify(self);
    break;
  default:
    break;
  }
}

void running_facts(self_ptr self) {
  auto& st = self->state;
  if (st.running->doing != phase::following || !reached(st))
    return;
  // The agent's answer says the same; where it is lost, this goes on without it.
  const auto turn = st.turn;
  later(self, st.set.poll_interval, [self, turn] {
    if (!stale(self, turn) && self->state.running->doing == phase::following && reached(self->state))
      guest_followed(self);
  });
}

void vm_ended(self_ptr self, std::string how) {
  auto& st = self->state;
  if (st.ended.empty())
    st.ended = how.empty() ? "the VM has ended" : std::move(how);
  if (st.running)
    finish(self);
}

} // namespace caisson::memory_hotplug