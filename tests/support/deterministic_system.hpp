#pragma once

/// An actor system whose time and order belong to the test: virtual clock, one message a step, the next actor drawn by
/// a seeded generator. The same seed gives the same run. No real time passes and no thread is made, so nothing in such
/// a test may block, and no actor in it may be spawned `detached`.
///
///   deterministic_system sys{seed};
///   auto a = sys.track(sys.system().spawn(my_actor, ...));   // tracked actors are ended with the system
///   auto reply = sys.ask<v1::VmObserved>(a, v1::InspectVm{}); // sent; nothing has run yet
///   sys.drain();                                             // everything that needs no time
///   sys.run_for(5s);                                         // timers and request timeouts fire in their order
///   ASSERT_TRUE(reply.value());                              // or reply.error(); both empty: not answered yet
///
/// caf/test/dsl.hpp cannot be used beside GoogleTest (it expands GoogleTest's FAIL macro); this stands for it.

#include <caf/all.hpp>
#include <caf/scheduler/test_coordinator.hpp>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace caisson::tests {

/// What has come back for one request. Copies look at the same answer.
template <class T> class pending_answer {
public:
  struct slot {
    std::optional<T> value;
    caf::error error;
    bool done = false;
  };
  explicit pending_answer(std::shared_ptr<slot> s) : slot_(std::move(s)) {}

  bool done() const { return slot_->done; }
  /// Null while there is no answer, and where the answer is an error.
  const T* value() const { return slot_->value ? &*slot_->value : nullptr; }
  /// Empty while there is no answer, and where the answer is a value.
  const caf::error& error() const { return slot_->error; }
  const T* operator->() const {
    if (!slot_->value)
      throw std::logic_error("no value has come back" +
                             (slot_->error ? ": " + caf::to_string(slot_->error) : std::string{}));
    return &*slot_->value;
  }

private:
  std::shared_ptr<slot> slot_;
};

/// Notes everything it is told; stands for listeners.
template <class... Ts> struct heard {
  std::tuple<std::vector<Ts>...> all;
  template <class T> const std::vector<T>& of() const { return std::get<std::vector<T>>(all); }
};

struct errand {
  std::function<void()> work;
};

} // namespace caisson::tests

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(caisson::tests::errand)

namespace caisson::tests {

class deterministic_system {
public:
  using clock_duration = std::chrono::nanoseconds;

  explicit deterministic_system(std::uint64_t seed = 1) : seed_(seed), random_(seed), config_(), system_(config_) {}

  deterministic_system(const deterministic_system&) = delete;
  deterministic_system& operator=(const deterministic_system&) = delete;

  ~deterministic_system() {
    try {
      end_actors();
    } catch (...) { // the test has failed already; the rest must still be taken down
    }
    // Timers that re-arm themselves would keep ~actor_system busy for ever.
    scheduler().clock().cancel_all();
    system_.await_actors_before_shutdown(false);
  }

  caf::actor_system& system() { return system_; }
  caf::scheduler::test_coordinator& scheduler() {
    return dynamic_cast<caf::scheduler::test_coordinator&>(system_.scheduler());
  }
  std::uint64_t seed() const { return seed_; }
  std::mt19937_64& random() { return random_; }

  /// Ends this actor with the system. Returns its argument.
  template <class Handle> Handle track(Handle h) {
    tracked_.push_back(caf::actor_cast<caf::weak_actor_ptr>(h));
    return h;
  }

  /// Runs one message of one actor, drawn from those that have one. False where there was nothing to run.
  bool step() {
    auto& jobs = scheduler().jobs;
    if (jobs.empty())
      return false;
    std::swap(jobs.front(), jobs[random_() % jobs.size()]);
    ++steps_;
    return scheduler().try_run_once();
  }

  std::uint64_t steps() const { return steps_; }

  /// Runs until nobody has a message. Throws after `most` steps: two actors that talk for ever are a fault.
  void drain(std::uint64_t most = 1'000'000) {
    for (std::uint64_t n = 0; step(); ++n)
      if (n >= most)
        throw std::runtime_error("the actors do not come to rest (seed " + std::to_string(seed_) + ")");
  }

  clock_duration now() { return scheduler().clock().now().time_since_epoch(); }

  /// When the next timer is due, from now; nullopt where none is set.
  std::optional<clock_duration> next_timer() {
    const auto& schedule = scheduler().clock().schedule();
    if (schedule.empty())
      return std::nullopt;
    return std::max(clock_duration{0}, clock_duration{schedule.begin()->first - scheduler().clock().now()});
  }

  /// Lets virtual time pass: every timer fires at its own moment, everything that follows from it runs before the next.
  void run_for(clock_duration time) {
    run_until([] { return false; }, time);
  }

  /// The same until `reached` holds (looked at when the actors rest) or `limit` has passed. True where it held.
  bool run_until(const std::function<bool()>& reached, clock_duration limit = std::chrono::hours{1}) {
    const auto end = now() + limit;
    for (;;) {
      drain();
      if (reached())
        return true;
      auto next = next_timer();
      if (!next || now() + *next > end)
        break;
      scheduler().advance_time(*next);
    }
    if (auto rest = end - now(); rest > clock_duration{0})
      scheduler().advance_time(rest);
    drain();
    return reached();
  }

  /// Sends a request; the answer appears in what is returned as the system runs. Waits for ever: that is the test's
  /// limit.
  template <class T, class Handle, class... Message> pending_answer<T> ask(const Handle& to, Message... message) {
    auto slot = std::make_shared<typename pending_answer<T>::slot>();
    track(system_.spawn([slot, to, message...](caf::event_based_actor* self) {
      self->request(to, caf::infinite, message...)
          .then(
              [slot](const T& v) {
                slot->value = v;
                slot->done = true;
              },
              [slot](caf::error& e) {
                slot->error = std::move(e);
                slot->done = true;
              });
    }));
    return pending_answer<T>{std::move(slot)};
  }

  template <class Handle, class... Message> void tell(const Handle& to, Message... message) {
    caf::anon_send(to, std::move(message)...);
  }

  /// Runs `work` once `delay` of virtual time has passed, as a step of its own among the actors' messages.
  void after(clock_duration delay, std::function<void()> work) {
    if (!errands_)
      errands_ =
          system_.spawn([](caf::event_based_actor*) -> caf::behavior { return {[](const errand& e) { e.work(); }}; });
    caf::delayed_anon_send(errands_, delay, errand{std::move(work)});
  }

  /// Ends one actor as its supervisor would.
  template <class Handle> void stop(const Handle& h, caf::exit_reason why = caf::exit_reason::user_shutdown) {
    caf::anon_send_exit(h, why);
  }

  /// The state of a stateful actor; only while nothing runs.
  template <class State, class Base, class Handle> State& state_of(const Handle& h) {
    return dynamic_cast<caf::stateful_actor<State, Base>&>(
               *caf::actor_cast<caf::abstract_actor*>(caf::actor_cast<caf::actor>(h)))
        .state;
  }

  /// A listener of any typed interface of reacts_to<Ts>...; what it hears stands in `into`.
  template <class Interface, class... Ts> Interface listener(std::shared_ptr<heard<Ts...>> into) {
    return track(system_.spawn([into](typename Interface::pointer) -> typename Interface::behavior_type {
      return {[into](const Ts& message) { std::get<std::vector<Ts>>(into->all).push_back(message); }...};
    }));
  }

  /// Kills what is tracked and still lives, and lets that run to its end.
  void end_actors() {
    if (errands_)
      caf::anon_send_exit(errands_, caf::exit_reason::kill);
    errands_ = nullptr;
    for (auto& weak : tracked_)
      if (auto strong = caf::actor_cast<caf::strong_actor_ptr>(weak))
        caf::anon_send_exit(strong, caf::exit_reason::kill);
    tracked_.clear();
    drain();
  }

private:
  struct testing_config : caf::actor_system_config {
    testing_config() { set("scheduler.policy", caf::atom("testing")); }
  };

  std::uint64_t seed_;
  std::mt19937_64 random_;
  std::uint64_t steps_ = 0;
  testing_config config_;
  caf::actor_system system_;
  std::vector<caf::weak_actor_ptr> tracked_;
  caf::actor errands_;
};

} // namespace caisson::tests
