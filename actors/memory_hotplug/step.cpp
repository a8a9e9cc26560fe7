#include "actors/memory_hotplug/step.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "messages/validate.hpp"

// One step: its verbs, and the departure of memory.

namespace caisson::memory_hotplug {
namespace {

using std::chrono::milliseconds;

void applied(self_ptr self);
void watch_departure(self_ptr self);

bool has_dimm(const state& st, const std::string& id) {
  return std::ranges::any_of(st.book.dimms(), [&](const dimm& d) { return d.id == id; });
}

std::string stays(const state& st, const std::string& reason) {
  const auto& id = st.running->now.leaving_dimms.front();
  std::uint64_t size = 0;
  for (const auto& d : st.book.dimms())
    if (d.id == id)
      size = d.size_bytes;
  return fmt::format("DIMM {} ({}) stays: {}", id, show_bytes(size), reason);
}

/// One DIMM is not asked again; others may make up for it.
void dimm_stays(self_ptr self, const std::string& reason) {
  auto& c = *self->state.running;
  c.stubborn.insert(c.now.leaving_dimms.front());
  if (c.failure == ec::none)
    c.failure = ec::guest_refused;
  c.reasons.push_back(stays(self->state, reason));
  c.now = {};
  c.doing = phase::settling;
  be_patient(self);
  bring_back(self, read_guest);
}

/// What was to leave has left; the next step is planned from what the guest has now.
void left(self_ptr self) {
  auto& c = *self->state.running;
  c.now = {};
  c.offline = false;
  c.doing = phase::settling;
  be_patient(self);
  if (std::exchange(c.seen_without, false))
    return next(self);
  read_guest(self);
}

void watch_departure(self_ptr self) {
  wake_after(self, self->state.set.poll_interval, [](self_ptr s) { inspect(s, departure_looked_at); });
}

/// A name that no DIMM of this VM has, kept until the DIMM is there: a step that is sent again must mean the same one.
void name_new_dimm(const state& st, change& c) {
  while (c.new_dimm.empty() || has_dimm(st, c.new_dimm))
    c.new_dimm = fmt::format("dimm-{}-{}", c.generation, c.dimms_made++);
}

std::uint64_t virtio_size(const state& st) {
  return st.running->nudge ? st.book.plugged_bytes() : st.running->now.plugged_after_bytes;
}

bool took_effect(const state& st) {
  const auto& c = *st.running;
  if (st.spec.memory_method() == v1::MEMORY_METHOD_VIRTIO_MEM)
    return st.book.requested_bytes() == virtio_size(st);
  return c.now.grow ? has_dimm(st, c.new_dimm) : !has_dimm(st, c.now.leaving_dimms.front());
}

void action_failed(self_ptr self, const caf::error& why) {
  auto& st = self->state;
  const auto code = code_of(why);
  switch (code) {
  case ec::vmm_died:
    return vm_ended(self, text_of(why));
  case ec::outcome_unknown:
  case ec::deadline_exceeded:
  case ec::backend_lost:
  case ec::internal:
    return verify(self);
  default:
    break;
  }
  if (code == ec::backend_refused && st.spec.memory_method() == v1::MEMORY_METHOD_DIMM && !st.running->now.grow)
    return dimm_refused(self, text_of(why));
  stop_half_way(self, code, fmt::format("the VMM refused the step \"{}\": {}", st.running->now.text, text_of(why)));
}

void applied(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  const bool is_dimm = st.spec.memory_method() == v1::MEMORY_METHOD_DIMM;
  if (c.nudge) {
    c.nudge = c.redone = c.reply_lost = false;
    return apply_action(self);
  }
  if (c.now.grow) {
    c.redone = c.reply_lost = false;
    if (is_dimm) {
      c.new_dimm.clear();
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

} // namespace

void dimm_refused(self_ptr self, const std::string& text) {
  auto& c = *self->state.running;
  const auto id = c.now.leaving_dimms.front();
  const auto said = text.empty() ? std::string{} : " (" + escape_guest_text(text, 1024) + ")";
  if (++c.refusals[id] >= 2)
    return dimm_stays(self, "the guest refused twice to give it back" + said);
  c.redone = c.reply_lost = false;
  c.doing = phase::pausing;
  wake_after(self, self->state.set.retry_delay, [](self_ptr s) {
    if (s->state.running->stop_why.empty() && now(s) < s->state.running->deadline)
      let_dimm_go(s);
    else
      dimm_stays(s, "the guest refused to give it back");
  });
}

void departure_looked_at(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  if (st.spec.memory_method() == v1::MEMORY_METHOD_DIMM) {
    if (!has_dimm(st, c.now.leaving_dimms.front())) {
      return left(self);
    }
  } else {
    if (st.book.plugged_bytes() <= c.now.plugged_after_bytes) {
      return left(self);
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
                   fmt::format("the guest still holds {} that it was asked to give back (virtio-mem tries again by "
                               "itself from time to time)",
                               show_bytes(st.book.plugged_bytes() - c.now.plugged_after_bytes)));
  if (c.reply_lost && !c.redone) {
    c.redone = true;
    return apply_action(self);
  }
  c.may_leave_late = true;
  bring_back(self, [](self_ptr s) {
    give_up(
        s, ec::guest_refused,
        stays(s->state, "the guest neither gave it back nor refused in time; it may still do so, and the status follows"));
  });
}

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
      return stop_half_way(s, ec::outcome_unknown,
                           fmt::format("the VMM did not take the step \"{}\" and did not say why", c.now.text));
    c.redone = true;
    apply_action(s);
  });
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
    verb.set_virtio_mem_requested_bytes(virtio_size(st));
  } else if (c.now.grow) {
    if (!c.redone)
      name_new_dimm(st, c);
    verb.mutable_plug_dimm()->set_id(c.new_dimm);
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

} // namespace caisson::memory_hotplug
