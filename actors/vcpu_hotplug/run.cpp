#include "actors/vcpu_hotplug/run.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "messages/validate.hpp"

namespace caisson::vcpu_hotplug {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds agent_slice{5'000};

void next(self_ptr self);
void act(self_ptr self);
void ask_guest(self_ptr self);
void ask_quota(self_ptr self);

std::string joined(const std::vector<std::string>& all) {
  std::string out;
  for (const auto& one : all)
    out += (out.empty() ? "" : "; ") + one;
  return out;
}

std::string quota_text(std::uint32_t milli) {
  return milli == 0 ? "none" : milli_vcpus(milli);
}

void judge(const state& st, const change& c, v1::HotplugOutcome& out) {
  const auto quota = quota_of(c.target_milli);
  auto figures = fmt::format("asked for {}: the guest runs {}, the VMM has {} plugged", milli_vcpus(c.target_milli),
                             st.now.online(), st.now.plugged());
  if (quota != st.now.quota_milli())
    figures += fmt::format(", the workload's quota is {}", quota_text(st.now.quota_milli()));
  auto failed = [&](ec code, std::string why) {
    out.set_state(v1::OPERATION_STATE_FAILED);
    *out.mutable_error() = error_message(code, fmt::format("sandbox {}: {}", st.set.sandbox_id, why));
    out.set_why(std::move(why));
  };
  if (!st.ended.empty())
    return failed(ec::vmm_died, fmt::format("{}. Last read back, {}", st.ended, figures));
  if (st.now.online() == c.target && st.now.plugged() >= c.target && st.now.quota_milli() == quota) {
    out.set_state(v1::OPERATION_STATE_CONVERGED);
    return out.set_why(joined(c.remarks));
  }
  if (!c.stop_why.empty()) {
    out.set_state(v1::OPERATION_STATE_CANCELLED);
    return out.set_why(fmt::format("{}. {}", c.stop_why, figures));
  }
  auto why = fmt::format("{}. {}", figures, c.reasons.empty() ? "the guest does not confirm it" : joined(c.reasons));
  if (st.now.online() == c.online_at_start && st.now.plugged() == c.plugged_at_start &&
      st.now.quota_milli() == c.quota_at_start)
    return failed(c.failure == ec::none ? ec::guest_refused : c.failure, std::move(why));
  out.set_state(v1::OPERATION_STATE_PARTLY);
  out.set_why(std::move(why));
}

/// What the workload has: whole vCPUs, or the quota that holds it to a part of them.
std::uint32_t has_milli(const state& st) {
  const auto quota = st.now.quota_milli();
  const auto online = (st.now.online() > 0 ? st.now.online() : st.now.plugged()) * 1000; // 0: it was never heard
  return quota > 0 && quota < online && online - quota < 1000 ? quota : online;
}

void finish(self_ptr self) {
  auto& st = self->state;
  auto c = std::move(*st.running);
  st.running.reset();
  new_turn(self);
  v1::HotplugOutcome out;
  out.set_operation_id(c.operation_id);
  judge(st, c, out);
  const bool refused = !c.promise.pending(); // which has put the former target back
  if (!refused && st.ended.empty() &&
      (out.state() == v1::OPERATION_STATE_CANCELLED || out.state() == v1::OPERATION_STATE_FAILED)) {
    if (st.waiting) // nobody wants it any more
      st.waiting->former_target_milli = has_milli(st);
    else
      set_target(st, has_milli(st));
  }
  *out.mutable_vcpus() = st.now;
  *out.mutable_plan() = c.plan;
  c.promise.deliver(std::move(out));
  if (st.waiting) {
    auto w = std::move(*st.waiting);
    st.waiting.reset();
    start_change(self, std::move(w));
  }
}

void give_up(self_ptr self, ec code, std::string reason) {
  auto& c = *self->state.running;
  if (c.failure == ec::none)
    c.failure = code;
  c.reasons.push_back(std::move(reason));
  finish(self);
}

void refuse(self_ptr self, const refusal& why) {
  auto& st = self->state;
  st.running->promise.fail(why.code, fmt::format("sandbox {}: {}", st.set.sandbox_id, why.text));
  if (st.waiting)
    st.waiting->former_target_milli = st.running->former_target_milli;
  else
    set_target(st, st.running->former_target_milli);
  finish(self);
}

/// Asks the VMM what there is until it says so or `end` has come.
void inspect(self_ptr self, moment end, void (*then)(self_ptr)) {
  auto& st = self->state;
  const auto turn = new_turn(self);
  self->request(st.backend, st.set.step_timeout + milliseconds{1'000}, inspection(st))
      .then(
          [self, turn, then](const v1::VmObserved& seen) {
            if (stale(self, turn))
              return;
            apply(self, seen);
            if (!stale(self, turn))
              then(self);
          },
          [self, turn, then, end](caf::error& why) {
            if (stale(self, turn))
              return;
            if (code_of(why) == ec::vmm_died)
              return vm_ended(self, text_of(why));
            if (now(self) >= end)
              return give_up(self, ec::outcome_unknown, "the VMM could not be asked what it has: " + text_of(why));
            wake_after(self, self->state.set.poll_interval, [self, end, then] { inspect(self, end, then); });
          });
}

void inspect(self_ptr self, void (*then)(self_ptr)) {
  inspect(self, now(self) + self->state.set.step_timeout, then);
}

// ---- the guest ----

std::uint32_t gap(const state& st) {
  const auto want = st.running->steps[st.running->at].count;
  return want > st.now.online() ? want - st.now.online() : st.now.online() - want;
}

void step_done(self_ptr self) {
  ++self->state.running->at;
  next(self);
}

void guest_looked_at(self_ptr self, bool early) {
  auto& st = self->state;
  auto& c = *st.running;
  const auto short_of = gap(st);
  if (short_of == 0)
    return step_done(self);
  if (short_of < c.best_gap) {
    c.best_gap = short_of;
    be_patient(self);
  }
  if (now(self) >= c.patience_end)
    return give_up(self, c.guest_trouble.empty() ? ec::guest_refused : ec::guest_unresponsive,
                   fmt::format("the guest was asked to run {} and runs {}{}", c.steps[c.at].count, st.now.online(),
                               c.guest_trouble.empty() ? "" : "; its agent: " + c.guest_trouble));
  if (early) // a guest that answers at once and wrongly must not keep us busy
    wake_after(self, st.set.poll_interval, [self] { ask_guest(self); });
  else
    ask_guest(self);
}

void ask_guest(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  const auto wait =
      std::clamp(std::chrono::ceil<milliseconds>(c.patience_end - now(self)), milliseconds{1}, agent_slice);
  v1::AgentRequest ask;
  ask.mutable_set_online_cpus()->set_online(c.steps[c.at].count);
  ask.mutable_set_online_cpus()->set_wait_ms(ms(wait));
  ask_to_follow(self, std::move(ask), wait, guest_looked_at);
}

void quota_again(self_ptr self, const std::string& why) {
  auto& st = self->state;
  if (now(self) < st.running->patience_end)
    return wake_after(self, st.set.poll_interval, [self] { ask_quota(self); });
  give_up(self, ec::guest_unresponsive, "the guest does not answer about the workload's quota: " + why);
}

/// The limit of the workload in the guest, confirmed by what the guest then shows.
void ask_quota(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  v1::AgentRequest ask;
  ask.mutable_set_workload_limits()->set_cpu_milli(c.steps[c.at].count);
  const auto turn = new_turn(self);
  self->request(st.agent, st.set.agent_timeout, std::move(ask))
      .then(
          [self, turn](const v1::AgentReply& reply) {
            if (stale(self, turn))
              return;
            auto& s = self->state;
            const auto wanted = s.running->steps[s.running->at].count;
            if (reply.has_facts())
              apply(self, reply.facts());
            if (reply.has_facts() && s.now.quota_milli() == wanted)
              return step_done(self);
            give_up(self, ec::guest_refused,
                    fmt::format("the guest was to set the workload's quota to {} and {}", quota_text(wanted),
                                reply.has_failure() ? "said: " + escape_guest_text(reply.failure().text(), 512)
                                                    : "shows " + quota_text(s.now.quota_milli())));
          },
          [self, turn](caf::error& why) {
            if (!stale(self, turn))
              quota_again(self, text_of(why));
          });
}

// ---- the VMM ----

void verb_done(self_ptr self);

void unplug_taken(self_ptr self) {
  self->state.running->unplug_asked = true;
  be_patient(self);
  verb_done(self);
}

void verb_done(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  c.acting = false;
  const auto& s = c.steps[c.at];
  if (s.what == action::unplug && st.now.plugged() > s.count) {
    // The VMM has asked, and the guest takes a moment to let go.
    if (c.unplug_asked && c.stop_why.empty() && now(self) < c.patience_end)
      return wake_after(self, st.set.poll_interval, [self] { inspect(self, verb_done); });
    c.remarks.push_back(fmt::format("{} still plugged and offline, to be used again at the next growth",
                                    vcpus(st.now.plugged() - s.count)));
  }
  c.unplug_asked = false;
  if (s.what == action::plug && st.now.plugged() < s.count)
    return give_up(self, ec::backend_refused, fmt::format("the VMM has plugged {} of {}", st.now.plugged(), s.count));
  step_done(self);
}

/// The answer was lost: the VMM is asked whether it was done.
void verify(self_ptr self) {
  inspect(self, [](self_ptr s) {
    auto& c = *s->state.running;
    const auto& now_at = c.steps[c.at];
    if (now_at.what == action::unplug || s->state.now.plugged() == now_at.count || c.redone)
      return verb_done(s);
    c.redone = true;
    act(s);
  });
}

void act(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  c.acting = c.begun = true;
  v1::SetVmVcpus verb;
  verb.set_sandbox_id(st.set.sandbox_id);
  verb.set_count(c.steps[c.at].count);
  verb.set_deadline_ms(ms(st.set.step_timeout));
  const auto turn = new_turn(self);
  self->request(st.backend, st.set.step_timeout + milliseconds{1'000}, std::move(verb))
      .then(
          [self, turn](const v1::VmObserved& seen) {
            if (stale(self, turn))
              return;
            apply(self, seen);
            if (stale(self, turn))
              return;
            auto& ch = *self->state.running;
            if (ch.steps[ch.at].what == action::unplug)
              unplug_taken(self);
            else
              verb_done(self);
          },
          [self, turn](caf::error& why) {
            if (stale(self, turn))
              return;
            auto& ch = *self->state.running;
            const auto code = code_of(why);
            if (code == ec::vmm_died)
              return vm_ended(self, text_of(why));
            if (code == ec::outcome_unknown || code == ec::deadline_exceeded || code == ec::backend_lost ||
                code == ec::internal)
              return verify(self);
            if (ch.steps[ch.at].what == action::unplug) {
              ch.remarks.push_back("the VMM did not unplug: " + text_of(why));
              return inspect(self, verb_done);
            }
            give_up(self, code, "the VMM refused: " + text_of(why));
          });
}

void next(self_ptr self) {
  auto& c = *self->state.running;
  if (!c.stop_why.empty() || c.at >= c.steps.size())
    return finish(self);
  if (now(self) >= c.deadline)
    return give_up(self, ec::deadline_exceeded, "the deadline of the change is over");
  c.redone = false;
  const auto what = c.steps[c.at].what;
  if (what == action::plug || what == action::unplug)
    return act(self);
  c.begun = true;
  c.guest_trouble.clear();
  be_patient(self);
  if (what == action::set_quota)
    return ask_quota(self);
  c.best_gap = gap(self->state);
  ask_guest(self);
}

void plan_now(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  c.online_at_start = st.now.online();
  c.plugged_at_start = st.now.plugged();
  c.quota_at_start = st.now.quota_milli();
  if (st.paused)
    return refuse(self, {ec::not_running,
                         "it is paused, and a paused guest can neither take nor give back vCPUs; resume it first"});
  auto planned = make_plan(situation_of(st), c.target, quota_of(c.target_milli));
  if (auto* no = std::get_if<refusal>(&planned))
    return refuse(self, *no);
  auto& p = std::get<plan>(planned);
  c.plan = to_proto(p);
  c.remarks = p.notes;
  c.steps = std::move(p.steps);
  next(self);
}

void read_guest(self_ptr self) {
  read_facts(self, plan_now, [self](const std::string& why) {
    give_up(self, ec::guest_unresponsive,
            "nothing was changed, because the guest's agent does not say what the guest runs: " + why);
  });
}

} // namespace

void start_change(self_ptr self, change c) {
  auto& st = self->state;
  st.running.emplace(std::move(c));
  st.running->online_at_start = st.now.online();
  st.running->plugged_at_start = st.now.plugged();
  st.running->quota_at_start = st.now.quota_milli();
  if (!st.ended.empty())
    return finish(self);
  be_patient(self);
  inspect(self, read_guest);
}

void cancel_waiting(self_ptr self, const std::string& why) {
  auto& st = self->state;
  auto w = std::move(*st.waiting);
  st.waiting.reset();
  if (st.now.generation() == w.generation) // no newer target has been accepted since
    set_target(st, w.former_target_milli);
  v1::HotplugOutcome out;
  out.set_operation_id(w.operation_id);
  out.set_state(v1::OPERATION_STATE_CANCELLED);
  out.set_why(why);
  *out.mutable_vcpus() = st.now;
  w.promise.deliver(std::move(out));
}

void backend_restarted(self_ptr self) {
  if (self->state.running && self->state.running->acting)
    verify(self);
}

void vm_ended(self_ptr self, std::string how) {
  auto& st = self->state;
  if (st.ended.empty())
    st.ended = std::move(how);
  if (st.running)
    finish(self);
}

} // namespace caisson::vcpu_hotplug
