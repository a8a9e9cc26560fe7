#include "actors/memory_hotplug/run.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "actors/memory_hotplug/outcome.hpp"
#include "messages/validate.hpp"

namespace caisson::memory_hotplug {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds agent_slice{5'000};  // asked of the agent at a time, so that progress is seen
constexpr std::uint32_t most_steps = 4'096;

void next(self_ptr self);
void apply_action(self_ptr self);
void applied(self_ptr self);
void watch_departure(self_ptr self);

moment now(self_ptr self) {
  return self->clock().now();
}

std::uint32_t ms(milliseconds d) {
  return static_cast<std::uint32_t>(std::clamp<std::int64_t>(d.count(), 1, UINT32_MAX));
}

milliseconds left_until(self_ptr self, moment end) {
  return std::chrono::ceil<milliseconds>(end - now(self));
}

void be_patient(self_ptr self) {
  auto& st = self->state;
  st.running->patience_end = std::min(now(self) + st.set.guest_patience, st.running->deadline);
}

/// Everything that answers later belongs to a turn; a new turn makes earlier answers stale.
std::uint64_t new_turn(self_ptr self) {
  auto& st = self->state;
  st.timer = 0;
  return st.turn = ++st.serial;
}

bool stale(self_ptr self, std::uint64_t turn) {
  return self->state.turn != turn || !self->state.running;
}

void wake_after(self_ptr self, milliseconds delay, void (*work)(self_ptr)) {
  const auto turn = new_turn(self);
  later(self, delay, [self, turn, work] {
    if (!stale(self, turn))
      work(self);
  });
}

void finish(self_ptr self) {
  auto& st = self->state;
  auto c = std::move(*st.running);
  st.running.reset();
  new_turn(self);
  auto v = judge(st.book, {c.target.used_bytes, c.plugged_at_start, c.stop_why, st.ended, c.reasons, c.failure});
  if (v.state == v1::OPERATION_STATE_CANCELLED && !st.waiting)
    st.book.take_back(st.book.has_bytes());  // nobody wants it any more
  v1::HotplugOutcome out;
  out.set_operation_id(c.operation_id);
  out.set_state(v.state);
  out.set_why(v.why);
  if (v.error)
    *out.mutable_error() = error_message(v.error->code, fmt::format("sandbox {}: {}", st.set.sandbox_id, v.error->text));
  *out.mutable_memory() = status_of(st);
  *out.mutable_plan() = c.plan;
  c.promise.deliver(std::move(out));
  if (st.waiting) {
    auto w = std::move(*st.waiting);
    st.waiting.reset();
    start_change(self, std::move(w));
  }
}

/// Nothing was done: an error instead of an outcome.
void refuse(self_ptr self, const refusal& why) {
  auto& st = self->state;
  st.running->promise.fail(why.code, fmt::format("sandbox {}: {}", st.set.sandbox_id, why.text));
  st.book.take_back(st.waiting ? st.waiting->target.used_bytes : st.running->former_target_bytes);
  if (st.waiting)
    st.waiting->former_target_bytes = st.running->former_target_bytes;
  finish(self);
}

/// Gives up on the guest or the VMM, but not before both were asked once more what is there.
void last_look(self_ptr self) {
  auto& st = self->state;
  const auto turn = new_turn(self);
  st.running->gave_up = true;
  st.running->doing = phase::settling;
  auto missing = std::make_shared<int>(2);
  auto one_less = [self, turn, missing] {
    if (--*missing == 0 && !stale(self, turn))
      finish(self);
  };
  v1::InspectVm look;
  look.set_sandbox_id(st.set.sandbox_id);
  look.set_deadline_ms(ms(st.set.step_timeout));
  self->request(st.backend, st.set.step_timeout + milliseconds{1'000}, std::move(look))
      .then(
          [self, turn, one_less](const v1::VmObserved& seen) {
            if (!stale(self, turn)) {
              apply(self, seen);
              one_less();
            }
          },
          [one_less](caf::error&) { one_less(); });
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

/// Asks the VMM what there is, again and again until it says so or the patience with it ends; then goes on with `then`.
void inspect(self_ptr self, moment end, void (*then)(self_ptr)) {
  auto& st = self->state;
  const auto turn = new_turn(self);
  v1::InspectVm look;
  look.set_sandbox_id(st.set.sandbox_id);
  look.set_deadline_ms(ms(st.set.step_timeout));
  self->request(st.backend, st.set.step_timeout + milliseconds{1'000}, std::move(look))
      .then(
          [self, turn, then](const v1::VmObserved& seen) {
            if (stale(self, turn))
              return;
            apply(self, seen);
            if (!stale(self, turn))  // it may have ended the VM
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

// ---- the guest follows ----

struct marks {
  std::uint64_t least = 0;
  std::uint64_t most = 0;  // 0: none
};

marks marks_of(const state& st) {
  const auto& c = *st.running;
  const bool step_under_way = c.now.bytes > 0 && c.now.grow;
  const auto mark = st.book.guest_mark_bytes(step_under_way ? c.now.plugged_after_bytes : st.book.plugged_bytes());
  const auto slack = agreement_bytes - 1;
  return {mark > slack ? mark - slack : 1, step_under_way ? 0 : mark + slack};
}

bool reached(const state& st) {
  const auto m = marks_of(st);
  const auto total = st.book.guest_total_bytes();
  return total >= m.least && (m.most == 0 || total <= m.most);
}

void ask_guest(self_ptr self);

/// virtio-mem has grown by the guest's claim; the VMM's word decides.
void size_looked_at(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  if (st.book.plugged_bytes() >= c.now.plugged_after_bytes) {
    c.now = {};
    return next(self);
  }
  if (now(self) < c.patience_end)
    return wake_after(self, st.set.poll_interval, [](self_ptr s) { inspect(s, size_looked_at); });
  give_up(self, ec::guest_refused,
          fmt::format("the guest claims to use memory of which {} are not plugged by the VMM's word",
                      show_bytes(c.now.plugged_after_bytes - st.book.plugged_bytes())));
}

void guest_followed(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  const bool ask_vmm = c.now.bytes > 0 && st.spec.memory_method() == v1::MEMORY_METHOD_VIRTIO_MEM;
  if (ask_vmm)
    return inspect(self, size_looked_at);
  c.now = {};
  next(self);
}

void guest_is_short(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  auto text = fmt::format("the guest uses {} of the {} that the VM was to have", show_bytes(st.book.guest_bytes()),
                          show_bytes(st.book.boot_bytes() +
                                     (c.now.bytes > 0 ? c.now.plugged_after_bytes : st.book.plugged_bytes())));
  if (st.book.offline_blocks() > 0)
    text += fmt::format("; {} memory blocks of it are plugged and not online", st.book.offline_blocks());
  if (!c.guest_trouble.empty())
    text += "; its agent: " + c.guest_trouble;
  const auto code = c.guest_trouble.empty() ? ec::guest_refused : ec::guest_unresponsive;
  give_up(self, code, std::move(text));
}

void guest_looked_at(self_ptr self, bool early) {
  auto& st = self->state;
  auto& c = *st.running;
  if (reached(st))
    return guest_followed(self);
  const auto total = st.book.guest_total_bytes();
  const bool grows = c.now.bytes > 0 ? c.now.grow : total < marks_of(st).least;
  if (grows ? total > c.best_seen : total < c.best_seen) {
    c.best_seen = total;
    be_patient(self);
  }
  if (now(self) >= c.patience_end)
    return guest_is_short(self);
  if (early)  // a guest that answers at once and wrongly must not keep us busy
    wake_after(self, st.set.poll_interval, ask_guest);
  else
    ask_guest(self);
}

void ask_guest(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  const auto wait = std::clamp(left_until(self, c.patience_end), milliseconds{1}, agent_slice);
  const auto m = marks_of(st);
  v1::AgentRequest ask;
  ask.mutable_await_memory()->set_mem_total_at_least_bytes(m.least);
  ask.mutable_await_memory()->set_mem_total_at_most_bytes(m.most);
  ask.mutable_await_memory()->set_wait_ms(ms(wait));
  const auto turn = new_turn(self);
  const auto asked_at = now(self);
  self->request(st.agent, wait + st.set.agent_timeout, std::move(ask))
      .then(
          [self, turn, asked_at, wait](const v1::AgentReply& reply) {
            if (stale(self, turn))
              return;
            auto& ch = *self->state.running;
            ch.guest_trouble.clear();
            if (reply.has_facts())
              apply(self, reply.facts());
            else
              ch.guest_trouble = escape_guest_text(reply.has_failure() ? reply.failure().text() : "an answer without facts", 512);
            guest_looked_at(self, !reply.has_facts() || now(self) - asked_at < wait);
          },
          [self, turn](caf::error& why) {
            if (stale(self, turn))
              return;
            self->state.running->guest_trouble = text_of(why);
            guest_looked_at(self, true);
          });
}

/// Waits until the guest uses what the step (or, without one, the VMM) says.
void follow_guest(self_ptr self) {
  auto& c = *self->state.running;
  c.doing = phase::following;
  c.best_seen = self->state.book.guest_total_bytes();
  c.guest_trouble.clear();
  be_patient(self);
  ask_guest(self);
}

// ---- memory leaves ----

bool has_dimm(const state& st, const std::string& id) {
  return std::ranges::any_of(st.book.dimms(), [&](const dimm& d) { return d.id == id; });
}

void dimm_stays(self_ptr self, const std::string& reason) {
  auto& c = *self->state.running;
  const auto id = c.now.leaving_dimms.front();
  c.stubborn.insert(id);
  if (c.failure == ec::none)
    c.failure = ec::guest_refused;
  std::uint64_t size = 0;
  for (const auto& d : self->state.book.dimms())
    if (d.id == id)
      size = d.size_bytes;
  c.reasons.push_back(fmt::format("DIMM {} ({}) stays: {}", id, show_bytes(size), reason));
  c.now = {};
  next(self);
}

void dimm_refused(self_ptr self, const std::string& text) {
  auto& c = *self->state.running;
  const auto id = c.now.leaving_dimms.front();
  const auto said = text.empty() ? std::string{} : " (" + escape_guest_text(text, 256) + ")";
  if (++c.refusals[id] >= 2)
    return dimm_stays(self, "the guest refused twice to give it back" + said);
  c.redone = c.reply_lost = false;
  c.doing = phase::pausing;
  wake_after(self, self->state.set.retry_delay, [](self_ptr s) {
    if (s->state.running->stop_why.empty() && now(s) < s->state.running->deadline)
      apply_action(s);
    else
      dimm_stays(s, "the guest refused to give it back");
  });
}

void departure_looked_at(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  if (st.spec.memory_method() == v1::MEMORY_METHOD_DIMM) {
    if (!has_dimm(st, c.now.leaving_dimms.front())) {
      c.now = {};
      return next(self);
    }
  } else {
    if (st.book.plugged_bytes() <= c.now.plugged_after_bytes) {
      c.now = {};
      return next(self);
    }
    if (st.book.plugged_bytes() < c.best_seen) {
      c.best_seen = st.book.plugged_bytes();
      be_patient(self);
    }
  }
  if (now(self) < c.patience_end)
    return watch_departure(self);
  if (st.spec.memory_method() == v1::MEMORY_METHOD_VIRTIO_MEM)
    return give_up(self, ec::guest_refused,
                   fmt::format("the guest still holds {} that it was asked to give back (virtio-mem goes on trying by itself)",
                               show_bytes(st.book.plugged_bytes() - c.now.plugged_after_bytes)));
  if (c.reply_lost && !c.redone) {
    c.redone = true;
    return apply_action(self);
  }
  dimm_stays(self, "the guest neither gave it back nor refused in time");
}

void watch_departure(self_ptr self) {
  wake_after(self, self->state.set.poll_interval, [](self_ptr s) { inspect(s, departure_looked_at); });
}

// ---- one action of a step ----

std::string dimm_id(const change& c) {
  return fmt::format("dimm-{}-{}", c.generation, c.dimms_made);
}

bool took_effect(const state& st) {
  const auto& c = *st.running;
  if (st.spec.memory_method() == v1::MEMORY_METHOD_VIRTIO_MEM)
    return st.book.requested_bytes() == c.now.plugged_after_bytes;
  return c.now.grow ? has_dimm(st, dimm_id(c)) : !has_dimm(st, c.now.leaving_dimms.front());
}

/// The answer to an action was lost: the VMM is asked whether it was done.
void verify(self_ptr self) {
  self->state.running->reply_lost = true;
  self->state.running->doing = phase::verifying;
  inspect(self, [](self_ptr s) {
    auto& st = s->state;
    auto& c = *st.running;
    const bool asked_to_leave = st.spec.memory_method() == v1::MEMORY_METHOD_DIMM && !c.now.grow;
    if (asked_to_leave || took_effect(st))
      return applied(s);
    if (c.redone)
      return give_up(s, ec::outcome_unknown, fmt::format("the VMM did not take the step \"{}\" and did not say why", c.now.text));
    c.redone = true;
    apply_action(s);
  });
}

void action_failed(self_ptr self, const caf::error& why) {
  auto& st = self->state;
  const auto code = code_of(why);
  switch (code) {
  case ec::vmm_died: return vm_ended(self, text_of(why));
  case ec::outcome_unknown:
  case ec::deadline_exceeded:
  case ec::backend_lost:
  case ec::internal: return verify(self);
  default: break;
  }
  if (code == ec::backend_refused && st.spec.memory_method() == v1::MEMORY_METHOD_DIMM && !st.running->now.grow)
    return dimm_refused(self, text_of(why));
  give_up(self, code, fmt::format("the VMM refused the step \"{}\": {}", st.running->now.text, text_of(why)));
}

void apply_action(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  c.begun = true;
  c.doing = phase::acting;
  v1::ApplyMemoryStep verb;
  verb.set_sandbox_id(st.set.sandbox_id);
  verb.set_deadline_ms(ms(st.set.step_timeout));
  if (st.spec.memory_method() == v1::MEMORY_METHOD_VIRTIO_MEM) {
    verb.set_virtio_mem_requested_bytes(c.now.plugged_after_bytes);
  } else if (c.now.grow) {
    verb.mutable_plug_dimm()->set_id(dimm_id(c));
    verb.mutable_plug_dimm()->set_size_bytes(c.now.new_dimms[c.next_dimm]);
  } else {
    verb.set_unplug_dimm_id(c.now.leaving_dimms.front());
  }
  const auto turn = new_turn(self);
  self->request(st.backend, st.set.step_timeout + milliseconds{1'000}, std::move(verb))
      .then(
          [self, turn](const v1::VmObserved& seen) {
            if (stale(self, turn))
              return;
            apply(self, seen);
            if (!stale(self, turn))
              applied(self);
          },
          [self, turn](caf::error& why) {
            if (!stale(self, turn))
              action_failed(self, why);
          });
}

void applied(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  const bool is_dimm = st.spec.memory_method() == v1::MEMORY_METHOD_DIMM;
  if (c.now.grow) {
    c.redone = c.reply_lost = false;
    if (is_dimm) {
      ++c.dimms_made;
      if (++c.next_dimm < c.now.new_dimms.size())
        return apply_action(self);
    }
    return follow_guest(self);
  }
  c.doing = phase::leaving;
  c.best_seen = st.book.plugged_bytes();
  be_patient(self);
  departure_looked_at(self);
}

// ---- the loop ----

void begin_step(self_ptr self, step s) {
  auto& st = self->state;
  auto& c = *st.running;
  if (++c.steps_done > most_steps)
    return give_up(self, ec::internal, "too many steps without reaching the target");
  c.now = std::move(s);
  c.next_dimm = 0;
  c.redone = c.reply_lost = false;
  apply_action(self);
}

/// Between two steps: figures are fresh, nothing is under way.
void next(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  if (st.paused && !c.begun)
    return refuse(self, {ec::not_running, "it is paused, and a paused guest can neither take nor give back memory; resume it first"});
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
    p.target = c.target;
    p.notes.insert(p.notes.begin(), c.target.notes.begin(), c.target.notes.end());
    c.plan = to_proto(st, p);
    if (auto no = missing_ability(st, p))
      return refuse(self, *no);
  }
  if (!p.steps.empty())
    return begin_step(self, std::move(p.steps.front()));
  if (st.book.plugged_bytes() != wanted)
    c.reasons.insert(c.reasons.end(), shortfall.begin(), shortfall.end());
  c.gave_up = true;  // whatever the guest says now, no step is left
  c.now = {};
  if (st.book.guest_agrees())
    return finish(self);
  follow_guest(self);
}

void read_guest(self_ptr self) {
  auto& st = self->state;
  v1::AgentRequest read;
  read.mutable_read_facts();
  const auto turn = new_turn(self);
  auto again = [self](std::string why) {
    auto& s = self->state;
    if (now(self) < s.running->patience_end)
      return wake_after(self, s.set.poll_interval, read_guest);
    s.running->failure = ec::guest_unresponsive;
    s.running->reasons.push_back("nothing was changed, because the guest's agent does not say what the guest has: " + std::move(why));
    finish(self);
  };
  self->request(st.agent, st.set.agent_timeout, std::move(read))
      .then(
          [self, turn, again](const v1::AgentReply& reply) {
            if (stale(self, turn))
              return;
            if (!reply.has_facts())
              return again(escape_guest_text(reply.has_failure() ? reply.failure().text() : "an answer without facts", 512));
            apply(self, reply.facts());
            next(self);
          },
          [self, turn, again](caf::error& why) {
            if (!stale(self, turn))
              again(text_of(why));
          });
}

} // namespace

void start_change(self_ptr self, change c) {
  auto& st = self->state;
  st.running.emplace(std::move(c));
  st.running->plugged_at_start = st.book.plugged_bytes();
  if (!st.ended.empty())
    return finish(self);
  be_patient(self);
  inspect(self, [](self_ptr s) {
    s->state.running->plugged_at_start = s->state.book.plugged_bytes();
    read_guest(s);
  });
}

void cancel_waiting(self_ptr self, const std::string& why) {
  auto& st = self->state;
  auto w = std::move(*st.waiting);
  st.waiting.reset();
  if (st.book.generation() == w.generation)  // no newer target has been accepted since
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
    if (mine && c.doing != phase::pausing)
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
  default: break;
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
