#include "backends/cloud-hypervisor/provider.hpp"

#include <sys/utsname.h>

#include <atomic>
#include <map>
#include <utility>
#include <variant>

namespace caisson::cloud_hypervisor {
namespace {

/// The contract, and what the reactor's thread sends: an answer under the actor's own number.
using vm_actor = backend_actor::extend<caf::reacts_to<v1::BackendAnswer>>;

using any_promise =
    std::variant<caf::typed_response_promise<v1::VmObserved>, caf::typed_response_promise<v1::Capabilities>,
                 caf::typed_response_promise<v1::VmList>>;

std::atomic<std::uint64_t> last_ticket{0};

void deliver(caf::typed_response_promise<v1::VmObserved>& p, const v1::BackendAnswer& a) {
  p.deliver(a.observed());
}
void deliver(caf::typed_response_promise<v1::Capabilities>& p, const v1::BackendAnswer& a) {
  p.deliver(a.capabilities());
}
void deliver(caf::typed_response_promise<v1::VmList>& p, const v1::BackendAnswer& a) {
  p.deliver(a.list());
}

struct vm_state {
  static constexpr auto name = "cloud_hypervisor_backend";
  std::shared_ptr<driver> at;
  std::uint64_t ticket = 0;
  std::uint64_t last_call = 0;
  std::map<std::uint64_t, any_promise> open;

  ~vm_state() {
    for (auto& [id, promise] : open)
      std::visit([](auto& p) { p.deliver(make_error(ec::backend_lost, "this sandbox's backend actor has ended")); },
                 promise);
    if (at)
      at->unlisten(ticket);
  }
};

using self_ptr = vm_actor::stateful_pointer<vm_state>;

template <class Result> caf::typed_response_promise<Result> submit(self_ptr self, v1::BackendCall call) {
  auto& st = self->state;
  auto promise = self->make_response_promise<caf::typed_response_promise<Result>>();
  const auto number = ++st.last_call;
  st.open.emplace(number, promise);
  st.at->submit(std::move(call), [me = caf::actor_cast<vm_actor>(self), number](v1::BackendAnswer answer) {
    answer.set_id(number);
    caf::anon_send(me, std::move(answer));
  });
  return promise;
}

void on_answer(self_ptr self, const v1::BackendAnswer& answer) {
  auto call = self->state.open.extract(answer.id());
  if (call.empty())
    return;
  std::visit(
      [&](auto& promise) {
        if (answer.has_error()) {
          const auto* known = row_by_name(answer.error().code());
          promise.deliver(make_error(known ? known->code : ec::backend_refused, answer.error().text()));
        } else {
          deliver(promise, answer);
        }
      },
      call.mapped());
}

template <class Result, class Message> auto verb(self_ptr self, Message* (v1::BackendCall::*slot)()) {
  return [self, slot](const Message& m) {
    v1::BackendCall call;
    *(call.*slot)() = m;
    return submit<Result>(self, std::move(call));
  };
}

vm_actor::behavior_type vm_body(self_ptr self, std::shared_ptr<driver> at, std::string sandbox_id,
                                const vm_listener& listener) {
  self->state.at = std::move(at);
  self->state.ticket = ++last_ticket;
  if (listener)
    self->state.at->listen(self->state.ticket, std::move(sandbox_id),
                           [listener](const v1::VmEvent& event) { caf::anon_send(listener, event); });
  using call = v1::BackendCall;
  return {
      verb<v1::Capabilities>(self, &call::mutable_describe),
      verb<v1::VmObserved>(self, &call::mutable_create),
      verb<v1::VmObserved>(self, &call::mutable_inspect),
      verb<v1::VmObserved>(self, &call::mutable_apply_memory_step),
      verb<v1::VmObserved>(self, &call::mutable_set_vcpus),
      verb<v1::VmObserved>(self, &call::mutable_pause),
      verb<v1::VmObserved>(self, &call::mutable_resume),
      verb<v1::VmObserved>(self, &call::mutable_attach),
      verb<v1::VmObserved>(self, &call::mutable_detach),
      verb<v1::VmObserved>(self, &call::mutable_destroy),
      verb<v1::VmList>(self, &call::mutable_list),
      [self](const v1::BackendAnswer& answer) { on_answer(self, answer); },
  };
}

class ch_provider final : public backends::provider {
public:
  ch_provider(const backends::environment& e, driver_settings settings)
      : system_{*e.system}, shared_{dynamic_cast<reactor::reactor*>(e.channels)},
        own_{shared_ ? nullptr : std::make_unique<reactor::reactor>(e.log)}, channels_{e.channels ? e.channels
                                                                                                  : own_.get()},
        driver_{std::make_shared<driver>(shared_ ? *shared_ : *own_, std::move(settings))} {
    driver_->start();
  }

  ~ch_provider() override { driver_->end(); }

  backend_actor spawn(const std::string& sandbox_id, vm_listener listener) override {
    return system_.spawn(vm_body, driver_, sandbox_id, std::move(listener));
  }

  pipe_opener& channels() override { return *channels_; }

private:
  caf::actor_system& system_;
  reactor::reactor* shared_;
  std::unique_ptr<reactor::reactor> own_;
  pipe_opener* channels_;
  std::shared_ptr<driver> driver_;
};

} // namespace

std::unique_ptr<backends::provider> make_provider(const backends::environment& e) {
  return make_provider(e, {});
}

std::unique_ptr<backends::provider> make_provider(const backends::environment& e, driver_settings settings) {
  settings.directory = e.run_directory + "/cloud-hypervisor";
  settings.log = e.log;
  if (settings.host_architecture.empty()) {
    utsname u{};
    ::uname(&u);
    settings.host_architecture = u.machine;
  }
  return std::make_unique<ch_provider>(e, std::move(settings));
}

} // namespace caisson::cloud_hypervisor
