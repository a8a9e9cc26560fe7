// What the sandbox may take of its host: asked of the budget before anything is plugged, given back by what was read
// back; and the host's cgroup, which is raised before a growth and lowered after a shrink.

#include <fmt/format.h>

#include <algorithm>

#include "actors/budget/budget.hpp"
#include "actors/sandbox/internal.hpp"
#include "messages/validate.hpp"

namespace caisson::sandbox {
namespace {

constexpr int most_lowering_attempts = 10;
constexpr milliseconds between_lowerings{1'000};

v1::Capabilities figures(self_ptr self) {
  auto can = self->state.capabilities;
  if (can.accelerator().empty()) // after a recovery without an answer
    can.set_accelerator(self->state.record.spec().accelerator());
  return can;
}

bool takes_memory(self_ptr self) {
  const auto& st = self->state;
  return st.set.budget && (st.set.modelled_memory_counts || !st.record.spec().modelled_memory());
}

std::uint64_t needed(self_ptr self) {
  const auto& st = self->state;
  auto most = std::max<std::uint64_t>(
      {st.record.memory_target_bytes(), st.record.spec().boot_bytes(),
       st.memory_status.boot_bytes() + st.memory_status.plugged_bytes()});
  for (const auto asked : st.asking_memory)
    most = std::max(most, asked);
  return budget::promise_bytes(st.record.spec(), figures(self), most);
}

/// `then` in any case: a host without a cgroup to use, or one that is slow, stops nothing.
void follow_cgroup(self_ptr self, std::uint64_t limit_bytes, int attempt, std::function<void()> then) {
  auto& st = self->state;
  if (st.observed.vmm_pid() <= 0 || !takes_memory(self))
    return then();
  st.cgroup_limit_bytes = limit_bytes;
  st.cgroup_made = true; // or soon, or not: its removal does no harm
  v1::FollowCgroup follow;
  follow.set_sandbox_id(st.record.id());
  follow.set_pid(st.observed.vmm_pid());
  follow.set_limit_bytes(limit_bytes);
  auto once = std::make_shared<std::function<void()>>(std::move(then));
  self->request(st.set.host, st.set.refresh_deadline, std::move(follow))
      .then(
          [self, once, limit_bytes, attempt](const v1::CgroupFollowed& done) {
            auto& s = self->state;
            if (!done.path().empty() && !done.why_not().empty() && s.cgroup_limit_bytes == limit_bytes && !s.cleaning) {
              // It holds more than it is to have. What is on its way back comes back; the limit follows.
              if (attempt < most_lowering_attempts)
                after(self, between_lowerings, [self, limit_bytes, attempt] {
                  if (self->state.cgroup_limit_bytes == limit_bytes && has_vm(self->state.record.state()))
                    follow_cgroup(self, limit_bytes, attempt + 1, [] {});
                });
              else
                warn(self, "the host's cgroup: " + done.why_not());
            } else if (done.path().empty() && !std::exchange(s.cgroup_missed, true)) {
              warn(self, "the host bounds the VMM by no cgroup: " + done.why_not());
            }
            (*once)();
          },
          [once](const caf::error&) { (*once)(); });
}

std::uint64_t limit_for(self_ptr self, std::uint64_t promised_bytes) {
  return promised_bytes + budget::limit_slack_bytes(figures(self));
}

void state_promise(self_ptr self, std::uint64_t bytes) {
  auto& st = self->state;
  st.promised_bytes = bytes;
  self->send(st.set.budget, budget::statement(st.record.id(), bytes));
}

} // namespace

void ask_promise(self_ptr self, std::uint64_t target_bytes, std::string what, bool dry_run,
                 std::function<void(const caf::error&)> then) {
  auto& st = self->state;
  const auto bytes = std::max(needed(self), budget::promise_bytes(st.record.spec(), figures(self), target_bytes));
  if (!takes_memory(self) || bytes <= st.promised_bytes)
    return then({});
  v1::PromiseMemory ask;
  ask.set_sandbox_id(st.record.id());
  ask.set_bytes(bytes);
  ask.set_what(fmt::format("{} of sandbox {}", what, st.record.name()));
  ask.set_dry_run(dry_run);
  const auto asking = dry_run ? st.asking_memory.end() : st.asking_memory.insert(target_bytes);
  const auto no_longer_asking = [self, asking, dry_run] {
    if (dry_run)
      return;
    self->state.asking_memory.erase(asking);
    settle_promise(self);
  };
  self->request(st.set.budget, st.set.verb_deadline, std::move(ask), st.record.config().sandbox())
      .then(
          [self, then, bytes, dry_run, no_longer_asking](const v1::MemoryPromised&) {
            auto& s = self->state;
            if (dry_run)
              return then({});
            s.promised_bytes = std::max(s.promised_bytes, bytes);
            const auto on = [then, no_longer_asking] {
              then({});
              no_longer_asking(); // by now it is the target, or nothing came of it
            };
            if (s.cgroup_limit_bytes > 0)
              follow_cgroup(self, limit_for(self, s.promised_bytes), most_lowering_attempts, on);
            else
              on();
          },
          [self, then, no_longer_asking](const caf::error& why) {
            then(make_error(to_proto(why, "asking for the host's memory")));
            no_longer_asking();
          });
}

void settle_promise(self_ptr self) {
  auto& st = self->state;
  // While something is being asked for, the answer settles it.
  if (!takes_memory(self) || !has_vm(st.record.state()) || st.cleaning || st.failing || !st.asking_memory.empty())
    return;
  const auto bytes = needed(self);
  if (bytes != st.promised_bytes)
    state_promise(self, bytes);
  if (st.cgroup_limit_bytes != limit_for(self, bytes))
    follow_cgroup(self, limit_for(self, bytes), 1, [] {});
}

void tell_vmm(self_ptr self, std::function<void()> then) {
  auto& st = self->state;
  if (!takes_memory(self) || st.observed.vmm_pid() <= 0)
    return then();
  v1::MeasureProcess vmm;
  vmm.set_pid(st.observed.vmm_pid());
  vmm.set_start_ticks(st.observed.vmm_start_ticks());
  self->send(st.set.budget, st.record.id(), std::move(vmm));
  follow_cgroup(self, limit_for(self, std::max(st.promised_bytes, needed(self))), 1, std::move(then));
}

void give_back_promise(self_ptr self) {
  auto& st = self->state;
  if (!st.set.budget)
    return;
  state_promise(self, 0);
  st.cgroup_limit_bytes = 0;
  if (!std::exchange(st.cgroup_made, false))
    return;
  v1::FollowCgroup gone;
  gone.set_sandbox_id(st.record.id());
  self->request(st.set.host, st.set.verb_deadline, std::move(gone))
      .then([](const v1::CgroupFollowed&) {}, [](const caf::error&) {});
}

void explain_end(self_ptr self, std::string why, std::function<void(std::string)> then) {
  auto& st = self->state;
  if (!st.cgroup_made || !takes_memory(self))
    return then(std::move(why));
  v1::FollowCgroup look;
  look.set_sandbox_id(st.record.id());
  look.set_limit_bytes(std::max<std::uint64_t>(st.cgroup_limit_bytes, 1));
  self->request(st.set.host, st.set.refresh_deadline, std::move(look))
      .then(
          [self, why, then](const v1::CgroupFollowed& seen) {
            if (seen.path().empty() || seen.why_not().empty())
              return then(why);
            then(fmt::format("{}; it took more of the host's memory than it was promised ({} for its target and the "
                             "VMM, and {} for short): {}. Either its guest wrote to memory that was not plugged for it, "
                             "or the VMM needs more than is reckoned for it",
                             why, show_bytes(needed(self)), show_bytes(budget::limit_slack_bytes(figures(self))),
                             seen.why_not()));
          },
          [why, then](const caf::error&) { then(why); });
}

v1::AutosizePolicy autosize_policy(self_ptr self) {
  const auto& st = self->state;
  const auto& config = st.record.config().sandbox();
  const auto& spec = st.record.spec();
  v1::AutosizePolicy p;
  p.set_enabled(config.autosize() && !st.record.autosize_ended() && spec.max_bytes() > spec.boot_bytes());
  if (!p.enabled())
    return p;
  p.set_floor_bytes(std::clamp<std::uint64_t>(config.autosize_floor_bytes(), spec.boot_bytes(), spec.max_bytes()));
  p.set_ceiling_bytes(config.autosize_ceiling_bytes() == 0
                          ? spec.max_bytes()
                          : std::clamp<std::uint64_t>(config.autosize_ceiling_bytes(), p.floor_bytes(), spec.max_bytes()));
  p.set_step_bytes(config.autosize_step_bytes());
  p.set_headroom_bytes(config.autosize_headroom_bytes());
  p.set_cool_down_ms(config.autosize_cool_down_ms());
  return p;
}

void measure_host_bytes(self_ptr self, std::function<void()> then) {
  auto& st = self->state;
  if (st.observed.vmm_pid() <= 0)
    return then();
  v1::MeasureProcess measure;
  measure.set_pid(st.observed.vmm_pid());
  measure.set_start_ticks(st.observed.vmm_start_ticks());
  self->request(st.set.host, st.set.refresh_deadline, measure)
      .then(
          [self, then](const v1::ProcessFigures& f) {
            self->state.host_bytes = f.pss_bytes();
            then();
          },
          [then](const caf::error&) { then(); });
}

} // namespace caisson::sandbox
