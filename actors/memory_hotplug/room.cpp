#include "actors/memory_hotplug/step.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "messages/validate.hpp"

// The guest makes room before memory leaves: limits of its workload, reclaim, and blocks that go offline first; and what
// was done for that is undone.

namespace caisson::memory_hotplug {
namespace {

using std::chrono::milliseconds;

constexpr std::uint64_t least_room_bytes = std::uint64_t{16} << 20; // a workload below it could not even end
constexpr std::uint64_t over_slack_bytes = std::uint64_t{8} << 20;
constexpr milliseconds most_wait{60'000};    // the agent's own bound
constexpr milliseconds release_wait{5'000};
constexpr int most_blocks_shown = 8;
constexpr int no_such_request = 38;          // ENOSYS, by an agent that is older than the request

milliseconds wait_for_guest(self_ptr self) {
  return std::clamp(left_until(self, self->state.running->patience_end), milliseconds{1}, most_wait);
}

/// For a guest that is asked to do something about its workload; never waits longer than the agent may.
void ask_limits(self_ptr self, v1::SetWorkloadLimits limits, milliseconds wait, void (*then)(self_ptr)) {
  auto& st = self->state;
  limits.set_wait_ms(ms(wait));
  v1::AgentRequest ask;
  *ask.mutable_set_workload_limits() = std::move(limits);
  const auto turn = new_turn(self);
  self->request(st.agent, wait + st.set.agent_timeout, std::move(ask))
      .then(
          [self, turn, then](const v1::AgentReply& reply) {
            if (stale(self, turn))
              return;
            if (reply.has_facts())
              apply(self, reply.facts());
            else
              self->state.running->reasons.push_back(
                  "the limits of the guest's workload could not be set: " +
                  escape_guest_text(reply.has_failure() ? reply.failure().text() : "an answer without facts", 512));
            then(self);
          },
          [self, turn](caf::error&) {
            if (!stale(self, turn))
              read_guest(self); // which has patience with a silent agent, and the words for it
          });
}

void room_was_made(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  be_patient(self);
  if (st.workload_bytes <= c.room_bytes)
    return next(self);
  // It cannot be brought below. What can still leave is taken from what is free; a limit far below what the workload
  // holds would only make it crawl.
  c.over_room = fmt::format("the workload holds {}, and beside the guest itself there would be room for {}",
                            show_bytes(st.workload_bytes), show_bytes(c.room_bytes));
  v1::SetWorkloadLimits limits;
  limits.set_high_bytes(st.workload_bytes + over_slack_bytes);
  limits.set_reclaim_to_bytes(limits.high_bytes()); // it holds less; says that this is a shrink's limit (guest/agent/workload.hpp)
  ask_limits(self, std::move(limits), milliseconds{1'000}, next);
}

std::string show_blocks(const v1::AgentBlocks& answer) {
  std::string out;
  for (int n = 0; n < std::min(answer.blocks_size(), most_blocks_shown); ++n) {
    const auto& b = answer.blocks(n);
    out += fmt::format("{}{:#x} {}{}{}", n == 0 ? "" : ", ", b.address(), escape_guest_text(b.state(), 16),
                       b.zone().empty() ? "" : " ", escape_guest_text(b.zone(), 16));
  }
  const auto more = std::max(0, answer.blocks_size() - most_blocks_shown) + std::uint64_t{answer.left_out()};
  return more > 0 ? out + fmt::format(" and {} more", more) : out;
}

void blocks_answered(self_ptr self, const v1::AgentReply& reply) {
  auto& st = self->state;
  auto& c = *st.running;
  if (reply.has_failure() && reply.failure().guest_errno() != no_such_request)
    return dimm_refused(self, reply.failure().text());
  if (!reply.has_blocks()) {
    st.cannot_offline = true;
    return apply_action(self);
  }
  const auto& answer = reply.blocks();
  const bool gone = std::ranges::all_of(answer.blocks(), [](const auto& b) { return b.state() == "offline"; });
  if (!answer.why().empty() || !gone)
    return dimm_refused(self, fmt::format("{}; its blocks: {}",
                                          answer.why().empty() ? "some of its memory stays online" : answer.why(),
                                          show_blocks(answer)));
  c.offline = true;
  // What the guest has without it is read while the VMM takes it out.
  v1::AgentRequest read;
  read.mutable_read_facts();
  self->request(st.agent, st.set.agent_timeout, std::move(read))
      .then(
          [self, generation = c.generation, id = c.now.leaving_dimms.front()](const v1::AgentReply& facts) {
            auto& running = self->state.running;
            if (!running || running->generation != generation || !facts.has_facts())
              return;
            apply(self, facts.facts());
            if (running && !running->now.leaving_dimms.empty() && running->now.leaving_dimms.front() == id)
              running->seen_without = running->offline;
          },
          [](caf::error&) {});
  apply_action(self);
}

} // namespace

void make_room(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  const auto after = st.book.guest_mark_bytes(c.target.used_bytes - st.book.boot_bytes());
  c.room_bytes = std::max(
      workload_high_bytes(after, st.book.guest_boot_total_bytes(), st.automatic.own_use_bytes), least_room_bytes);
  c.limited = true;
  c.doing = phase::limiting;
  be_patient(self);
  v1::SetWorkloadLimits limits;
  limits.set_high_bytes(c.room_bytes);
  limits.set_reclaim_to_bytes(c.room_bytes);
  ask_limits(self, std::move(limits), wait_for_guest(self), room_was_made);
}

void let_dimm_go(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  const auto leaving = std::ranges::find(st.book.dimms(), c.now.leaving_dimms.front(), &dimm::id);
  if (leaving == st.book.dimms().end() || leaving->address == 0 || st.cannot_offline)
    return apply_action(self);
  c.begun = true;
  c.seen_without = false;
  c.doing = phase::offlining;
  be_patient(self);
  const auto wait = wait_for_guest(self);
  v1::AgentRequest ask;
  ask.mutable_offline_memory()->set_address(leaving->address);
  ask.mutable_offline_memory()->set_size_bytes(leaving->size_bytes);
  ask.mutable_offline_memory()->set_wait_ms(ms(wait));
  const auto turn = new_turn(self);
  self->request(st.agent, wait + st.set.agent_timeout, std::move(ask))
      .then(
          [self, turn](const v1::AgentReply& reply) {
            if (!stale(self, turn))
              blocks_answered(self, reply);
          },
          [self, turn](caf::error&) {
            if (stale(self, turn))
              return;
            // Perhaps it was done. The guest's kernel takes the rest offline itself, or refuses.
            self->state.running->offline = true;
            apply_action(self);
          });
}

void bring_back(self_ptr self, void (*then)(self_ptr)) {
  auto& st = self->state;
  auto& c = *st.running;
  if (!c.offline)
    return then(self);
  c.offline = c.seen_without = false;
  c.doing = phase::settling;
  v1::AgentRequest ask;
  const auto mark = st.book.guest_mark_bytes(st.book.plugged_bytes());
  ask.mutable_await_memory()->set_mem_total_at_least_bytes(mark - std::min(mark, agreement_bytes - 1));
  ask.mutable_await_memory()->set_wait_ms(ms(release_wait));
  const auto turn = new_turn(self);
  self->request(st.agent, release_wait + st.set.agent_timeout, std::move(ask))
      .then(
          [self, turn, then](const v1::AgentReply& reply) {
            if (stale(self, turn))
              return;
            if (reply.has_facts())
              apply(self, reply.facts());
            then(self);
          },
          [self, turn, then](caf::error&) {
            if (!stale(self, turn))
              then(self);
          });
}

void undo_room(self_ptr self, const change& c) {
  auto& st = self->state;
  if (!st.ended.empty())
    return;
  const auto tell_guest = [self](v1::AgentRequest ask) {
    self->request(self->state.agent, self->state.set.agent_timeout, std::move(ask))
        .then(
            [self](const v1::AgentReply& reply) {
              if (reply.has_facts())
                apply(self, reply.facts());
            },
            [](caf::error&) {});
  };
  if (c.offline) {
    v1::AgentRequest all;
    all.mutable_await_memory();
    tell_guest(std::move(all));
  }
  const auto total = st.book.guest_total_bytes();
  const bool follows = st.workload_max_bytes > 0 && c.total_at_start > 0 && total != c.total_at_start;
  const auto& a = st.automatic;
  if (!st.features.workload_cgroup() || (!c.limited && !follows))
    return;
  v1::AgentRequest limits;
  if (c.limited)
    limits.mutable_set_workload_limits()->set_high_bytes(
        a.policy.enabled() ? workload_high_bytes(total, st.book.guest_boot_total_bytes(), a.own_use_bytes) : 0);
  if (follows) {
    const auto max = total > c.total_at_start
                         ? st.workload_max_bytes + (total - c.total_at_start)
                         : st.workload_max_bytes - std::min(st.workload_max_bytes, c.total_at_start - total);
    limits.mutable_set_workload_limits()->set_max_bytes(std::max(max, least_room_bytes));
  }
  tell_guest(std::move(limits));
}

void lift_left_over(self_ptr self) {
  auto& st = self->state;
  if (st.running || st.lifting || !st.ready || st.automatic.policy.enabled() || st.automatic.high_bytes == 0)
    return;
  st.lifting = true;
  v1::AgentRequest limits;
  limits.mutable_set_workload_limits()->set_high_bytes(0);
  self->request(st.agent, st.set.agent_timeout, std::move(limits))
      .then([self](const v1::AgentReply&) { self->state.lifting = false; },
            [self](caf::error&) { self->state.lifting = false; });
}

} // namespace caisson::memory_hotplug
