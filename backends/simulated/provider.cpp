#include "backends/simulated/provider.hpp"

#include <map>
#include <mutex>
#include <set>
#include <utility>
#include <variant>

#include "backends/simulated/pipes.hpp"

namespace caisson::backends::simulated {
namespace {

using wake_atom = caf::atom_constant<caf::atom("wake")>;

/// Brings an actor system's time into the world: one timer for the next thing that is due there.
struct ticker_state {
  static constexpr auto name = "simulated_time";
  std::shared_ptr<world> where;
  world::user_id user = 0;
  std::set<std::chrono::nanoseconds> timers; // under way, by the time when they fire
};

void arm(caf::stateful_actor<ticker_state>* self) {
  auto& st = self->state;
  const auto delay = st.where->arm(st.user);
  if (!delay)
    return;
  const std::chrono::nanoseconds due = self->clock().now().time_since_epoch() + *delay;
  if (!st.timers.empty() && *st.timers.begin() <= due)
    return;
  st.timers.insert(due);
  self->delayed_send(self, *delay, tick_atom::value, static_cast<std::int64_t>(due.count()));
}

caf::behavior ticker(caf::stateful_actor<ticker_state>* self, std::shared_ptr<world> where) {
  self->state.where = std::move(where);
  return {
      [self](tick_atom, std::int64_t due) {
        self->state.timers.erase(std::chrono::nanoseconds{due});
        arm(self);
      },
      [self](wake_atom) { arm(self); },
      [self](wake_atom, std::uint64_t user) {
        self->state.user = user;
        arm(self);
      },
  };
}

/// What a provider's actors share: its place in the world, and who listens for which VM.
class attachment : public std::enable_shared_from_this<attachment> {
public:
  attachment(caf::actor_system& system, std::shared_ptr<world> w) : where{std::move(w)} {
    ticker_ = system.spawn<caf::hidden>(ticker, where);
    const auto started = system.clock().now();
    world_user u;
    u.clock = [&system, started] { return timeline::time{system.clock().now() - started}; };
    u.on_event = [this](const v1::VmEvent& e) { tell(e); };
    u.on_wake = [t = ticker_] { caf::anon_send(t, wake_atom::value); };
    user = where->attach(std::move(u));
    caf::anon_send(ticker_, wake_atom::value, static_cast<std::uint64_t>(user));
  }

  ~attachment() { end(); }

  void end() {
    if (!ticker_)
      return;
    where->detach(user);
    caf::anon_send_exit(ticker_, caf::exit_reason::user_shutdown);
    ticker_ = nullptr;
    std::lock_guard lock{mutex_};
    for (auto& [number, a] : actors_)
      if (auto strong = caf::actor_cast<caf::strong_actor_ptr>(a.backend))
        caf::anon_send_exit(strong, caf::exit_reason::user_shutdown);
  }

  std::uint64_t add(const std::string& id, const caf::strong_actor_ptr& backend, const vm_listener& listener) {
    std::lock_guard lock{mutex_};
    actors_[++last_] = {caf::actor_cast<caf::weak_actor_ptr>(backend), id};
    if (listener)
      listeners_[id] = {last_, caf::actor_cast<caf::weak_actor_ptr>(listener)};
    return last_;
  }

  void remove(std::uint64_t number) {
    std::lock_guard lock{mutex_};
    const auto it = actors_.find(number);
    if (it == actors_.end())
      return;
    if (const auto l = listeners_.find(it->second.id); l != listeners_.end() && l->second.number == number)
      listeners_.erase(l);
    actors_.erase(it);
  }

  const std::shared_ptr<world> where;
  world::user_id user = 0;

private:
  struct one {
    caf::weak_actor_ptr backend;
    std::string id;
  };
  struct listening {
    std::uint64_t number;
    caf::weak_actor_ptr listener;
  };

  void tell(const v1::VmEvent& e) {
    caf::strong_actor_ptr to;
    {
      std::lock_guard lock{mutex_};
      const auto it = listeners_.find(e.sandbox_id());
      if (it != listeners_.end())
        to = caf::actor_cast<caf::strong_actor_ptr>(it->second.listener);
    }
    if (to)
      caf::anon_send(caf::actor_cast<vm_listener>(to), e);
  }

  caf::actor ticker_;
  std::mutex mutex_;
  std::uint64_t last_ = 0;
  std::map<std::uint64_t, one> actors_;
  std::map<std::string, listening> listeners_;
};

using simulated_vm_actor = backend_actor::extend<caf::reacts_to<v1::BackendAnswer>>;

using any_promise =
    std::variant<caf::typed_response_promise<v1::VmObserved>, caf::typed_response_promise<v1::Capabilities>,
                 caf::typed_response_promise<v1::VmList>>;

struct vm_state {
  static constexpr auto name = "simulated_backend";
  std::shared_ptr<attachment> at;
  std::uint64_t number = 0, last_call = 0;
  std::map<std::uint64_t, any_promise> waiting;

  ~vm_state() {
    for (auto& [id, p] : waiting)
      std::visit(
          [](auto& promise) { promise.deliver(make_error(ec::backend_lost, "simulated backend: it has ended")); }, p);
    if (at)
      at->remove(number);
  }
};

using self_ptr = simulated_vm_actor::stateful_pointer<vm_state>;

template <class T> caf::typed_response_promise<T> ask(self_ptr self, v1::BackendCall call) {
  auto& st = self->state;
  auto promise = self->make_response_promise<caf::typed_response_promise<T>>();
  call.set_id(++st.last_call);
  st.waiting.emplace(st.last_call, promise);
  st.at->where->submit(st.at->user, std::move(call),
                       [weak = caf::actor_cast<caf::weak_actor_ptr>(self)](v1::BackendAnswer a) {
                         if (auto strong = caf::actor_cast<caf::strong_actor_ptr>(weak))
                           caf::anon_send(caf::actor_cast<simulated_vm_actor>(strong), std::move(a));
                       });
  return promise;
}

void on_answer(self_ptr self, const v1::BackendAnswer& a) {
  const auto it = self->state.waiting.find(a.id());
  if (it == self->state.waiting.end())
    return;
  auto promise = std::move(it->second);
  self->state.waiting.erase(it);
  std::visit(
      [&](auto& p) {
        if (a.has_error())
          p.deliver(make_error(a.error()));
        else if constexpr (std::is_same_v<std::decay_t<decltype(p)>, caf::typed_response_promise<v1::VmObserved>>)
          p.deliver(a.observed());
        else if constexpr (std::is_same_v<std::decay_t<decltype(p)>, caf::typed_response_promise<v1::Capabilities>>)
          p.deliver(a.capabilities());
        else
          p.deliver(a.list());
      },
      promise);
}

template <class T, class Message> auto forward(self_ptr self, Message* (v1::BackendCall::*slot)()) {
  return [self, slot](const Message& m) {
    v1::BackendCall call;
    *(call.*slot)() = m;
    return ask<T>(self, std::move(call));
  };
}

simulated_vm_actor::behavior_type simulated_vm(self_ptr self, std::shared_ptr<attachment> at, const std::string& id,
                                               const vm_listener& listener) {
  self->state.at = std::move(at);
  self->state.number = self->state.at->add(id, caf::actor_cast<caf::strong_actor_ptr>(self), listener);
  using call = v1::BackendCall;
  return {
      forward<v1::Capabilities>(self, &call::mutable_describe),
      forward<v1::VmObserved>(self, &call::mutable_create),
      forward<v1::VmObserved>(self, &call::mutable_inspect),
      forward<v1::VmObserved>(self, &call::mutable_apply_memory_step),
      forward<v1::VmObserved>(self, &call::mutable_set_vcpus),
      forward<v1::VmObserved>(self, &call::mutable_pause),
      forward<v1::VmObserved>(self, &call::mutable_resume),
      forward<v1::VmObserved>(self, &call::mutable_destroy),
      forward<v1::VmList>(self, &call::mutable_list),
      forward<v1::VmObserved>(self, &call::mutable_attach),
      forward<v1::VmObserved>(self, &call::mutable_detach),
      [self](const v1::BackendAnswer& a) { on_answer(self, a); },
  };
}

class simulated_provider final : public provider {
public:
  simulated_provider(caf::actor_system& system, std::shared_ptr<world> where)
      : system_{system}, at_{std::make_shared<attachment>(system, where)}, opener_{system, std::move(where),
                                                                                   at_->user} {}

  ~simulated_provider() override { at_->end(); }

  backend_actor spawn(const std::string& sandbox_id, vm_listener listener) override {
    return system_.spawn(simulated_vm, at_, sandbox_id, std::move(listener));
  }

  pipe_opener& channels() override { return opener_; }

private:
  caf::actor_system& system_;
  std::shared_ptr<attachment> at_;
  world_opener opener_;
};

} // namespace

std::unique_ptr<provider> make_simulated(caf::actor_system& system, std::shared_ptr<world> where) {
  return std::make_unique<simulated_provider>(system, std::move(where));
}

std::unique_ptr<provider> make_simulated(const environment& e) {
  std::string problem;
  auto where = world_of(e.state_directory, problem);
  if (!problem.empty() && e.log)
    e.log("simulated backend: CAISSON_SIMULATED_FAULTS: " + problem + "; no faults are simulated");
  return make_simulated(*e.system, std::move(where));
}

} // namespace caisson::backends::simulated
