#pragma once

/// What the two hotplug actors have in common: a running change whose answers may be stale, one timer, and looks at VMM
/// and guest that somebody waits for beside it.
///
/// Everything that answers later belongs to a turn; a new turn makes earlier answers and the timer stale. The actor's
/// state is a turn_keeper and has `running`, `waiting`, `set`, `backend` and `agent`; its namespace has apply(self, ...)
/// for what was read.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "actors/kept_promise.hpp"
#include "messages/error.hpp"
#include "messages/ports.hpp"
#include "messages/validate.hpp"

namespace caisson {

/// A look that somebody waits for: for a status, or for the plan of what was asked.
template <class Status, class Asked> struct aside {
  kept_promise<Status> status;
  kept_promise<v1::HotplugOutcome> outcome;
  Asked asked;
  int missing = 0;
  bool whole = false; ///< guest and VMM have both said what there is
};

template <class Status, class Asked> struct turn_keeper {
  std::uint64_t serial = 0; ///< of turns, timers and asides
  std::uint64_t turn = 0;   ///< answers of an earlier turn are stale
  std::uint64_t timer = 0;  ///< of the running change; 0: none is set
  std::function<void()> on_timer;
  std::map<std::uint64_t, aside<Status, Asked>> asides;
};

inline std::uint32_t ms(std::chrono::milliseconds d) {
  return static_cast<std::uint32_t>(std::clamp<std::int64_t>(d.count(), 1, UINT32_MAX));
}

template <class Self> std::chrono::steady_clock::time_point now(Self self) {
  return self->clock().now();
}

template <class Self> std::uint64_t new_turn(Self self) {
  self->state.timer = 0;
  return self->state.turn = ++self->state.serial;
}

template <class Self> bool stale(Self self, std::uint64_t turn) {
  return self->state.turn != turn || !self->state.running;
}

/// Runs `work` after `delay` as a message of its own, unless another timer is set before.
template <class Self> void later(Self self, std::chrono::milliseconds delay, std::function<void()> work) {
  auto& st = self->state;
  st.timer = ++st.serial;
  st.on_timer = std::move(work);
  self->delayed_send(self, delay, tick_atom::value, st.timer);
}

/// The same as a turn of its own.
template <class Self, class Work> void wake_after(Self self, std::chrono::milliseconds delay, Work work) {
  const auto turn = new_turn(self);
  later(self, delay, [self, turn, work = std::move(work)] {
    if (stale(self, turn))
      return;
    if constexpr (std::is_invocable_v<const Work&, Self>)
      work(self);
    else
      work();
  });
}

/// True where `number` was the running change's timer, which has then done its work.
template <class Self> bool timer_rang(Self self, std::uint64_t number) {
  auto& st = self->state;
  if (number == 0 || number != st.timer)
    return false;
  st.timer = 0;
  auto work = std::move(st.on_timer);
  work();
  return true;
}

/// The running change gets the guest's full patience again, bounded by its deadline.
template <class Self> void be_patient(Self self) {
  auto& st = self->state;
  st.running->patience_end = std::min(now(self) + st.set.guest_patience, st.running->deadline);
}

/// What a guest said instead of its facts.
inline std::string excuse_of(const v1::AgentReply& reply) {
  return escape_guest_text(reply.has_failure() ? reply.failure().text() : "an answer without facts", 512);
}

/// Reads the guest's facts for the running change, then `next`. A guest that does not say them is asked again for as
/// long as there is patience, and then `silent` is told why.
template <class Self, class Silent> void read_facts(Self self, void (*next)(Self), Silent silent) {
  auto& st = self->state;
  v1::AgentRequest read;
  read.mutable_read_facts();
  const auto turn = new_turn(self);
  auto again = [self, next, silent](const std::string& why) {
    if (now(self) < self->state.running->patience_end)
      return wake_after(self, self->state.set.poll_interval, [self, next, silent] { read_facts(self, next, silent); });
    silent(why);
  };
  self->request(st.agent, st.set.agent_timeout, std::move(read))
      .then(
          [self, turn, next, again](const v1::AgentReply& reply) {
            if (stale(self, turn))
              return;
            if (!reply.has_facts())
              return again(excuse_of(reply));
            apply(self, reply.facts());
            next(self);
          },
          [self, turn, again](caf::error& why) {
            if (!stale(self, turn))
              again(to_proto(why, "reading its facts").text());
          });
}

/// Asks the guest for something that it confirms with its facts, within `wait`; then `looked` is told whether the answer
/// came before the time was over.
template <class Self>
void ask_to_follow(Self self, v1::AgentRequest ask, std::chrono::milliseconds wait, void (*looked)(Self, bool)) {
  auto& st = self->state;
  const auto turn = new_turn(self);
  const auto asked_at = now(self);
  self->request(st.agent, wait + st.set.agent_timeout, std::move(ask))
      .then(
          [self, turn, asked_at, wait, looked](const v1::AgentReply& reply) {
            if (stale(self, turn))
              return;
            self->state.running->guest_trouble.clear();
            if (reply.has_facts())
              apply(self, reply.facts());
            else
              self->state.running->guest_trouble = excuse_of(reply);
            looked(self, !reply.has_facts() || now(self) - asked_at < wait);
          },
          [self, turn, looked](caf::error& why) {
            if (stale(self, turn))
              return;
            self->state.running->guest_trouble = text_of(why);
            looked(self, true);
          });
}

template <class State> v1::InspectVm inspection(const State& st) {
  v1::InspectVm look;
  look.set_sandbox_id(st.set.sandbox_id);
  look.set_deadline_ms(ms(st.set.step_timeout));
  return look;
}

/// Asks guest and VMM, each once, and tells `done` of each answer; what does not answer leaves the figures as they were.
/// While a change runs its own reads of the VMM are the newer ones, so that only the guest is asked.
template <class Self, class Aside> void look_aside(Self self, Aside a, void (*done)(Self, std::uint64_t)) {
  auto& st = self->state;
  const auto id = ++st.serial;
  a.missing = st.running ? 1 : 2;
  a.whole = !st.running;
  st.asides.emplace(id, std::move(a));
  const auto in_part = [self, id] {
    if (auto at = self->state.asides.find(id); at != self->state.asides.end())
      at->second.whole = false;
  };
  v1::AgentRequest read;
  read.mutable_read_facts();
  self->request(st.agent, st.set.agent_timeout, std::move(read))
      .then(
          [self, id, done, in_part](const v1::AgentReply& reply) {
            if (reply.has_facts())
              apply(self, reply.facts());
            else
              in_part();
            done(self, id);
          },
          [self, id, done, in_part](caf::error&) {
            in_part();
            done(self, id);
          });
  if (st.running)
    return;
  const auto turn = st.turn;
  self->request(st.backend, st.set.step_timeout + std::chrono::milliseconds{1'000}, inspection(st))
      .then(
          [self, id, turn, done, in_part](const v1::VmObserved& seen) {
            if (self->state.turn == turn) // else a change has begun since, and knows better
              apply(self, seen);
            else
              in_part();
            done(self, id);
          },
          [self, id, done, in_part](caf::error&) {
            in_part();
            done(self, id);
          });
}

/// Whoever waits for the actor is answered, and it ends.
template <class Self, class Status>
void end_answered(Self self, caf::exit_msg& m, const std::string& text, const Status& status) {
  auto& st = self->state;
  for (auto* c : {&st.running, &st.waiting})
    if (*c)
      (*c)->promise.fail(ec::not_running, text);
  for (auto& [id, a] : st.asides) {
    a.status.deliver(status);
    a.outcome.fail(ec::not_running, text);
  }
  self->quit(std::move(m.reason));
}

/// The aside that `id` was, when its last answer has come; nullopt before.
template <class State> auto take_aside(State& st, std::uint64_t id) {
  using found_aside = typename decltype(st.asides)::mapped_type;
  std::optional<found_aside> whole;
  auto at = st.asides.find(id);
  if (at != st.asides.end() && --at->second.missing <= 0) {
    whole.emplace(std::move(at->second));
    st.asides.erase(at);
  }
  return whole;
}

} // namespace caisson
