#include "backends/host/remote_backend.hpp"

#include <atomic>

#include "backends/host/server.hpp"

namespace caisson::host {
namespace {

using self_ptr = remote_backend_actor::stateful_pointer<remote_backend_state>;

std::atomic<std::uint64_t> last_ticket{0};

template <class Result> const Result* result_in(const v1::BackendAnswer& answer);
template <> const v1::VmObserved* result_in(const v1::BackendAnswer& answer) {
  return answer.has_observed() ? &answer.observed() : nullptr;
}
template <> const v1::Capabilities* result_in(const v1::BackendAnswer& answer) {
  return answer.has_capabilities() ? &answer.capabilities() : nullptr;
}
template <> const v1::VmList* result_in(const v1::BackendAnswer& answer) {
  return answer.has_list() ? &answer.list() : nullptr;
}

// A backend in another language fills in a code and a text; the rest of the row is ours.
caf::error error_in(const v1::BackendAnswer& answer, const std::string& what) {
  if (!answer.has_error())
    return make_error(ec::backend_refused,
                      what + ": the backend has answered with something that is no answer to this verb");
  const auto* known = row_by_name(answer.error().code());
  auto error = error_message(known ? known->code : ec::backend_refused, answer.error().text());
  *error.mutable_console_tail() = answer.error().console_tail();
  return make_error(error);
}

template <class Result> caf::result<Result> submit(self_ptr self, v1::BackendCall call) {
  auto& state = self->state;
  auto tag = ++state.last_tag;
  auto promise = self->template make_response_promise<Result>();
  auto sandbox = sandbox_of(call);
  auto what = std::string{verb_name(call)} + (sandbox.empty() ? "" : " of sandbox " + sandbox);
  state.open.emplace(tag,
                     remote_backend_state::open_call{what, [promise, what](const v1::BackendAnswer& answer) mutable {
                                                       if (const auto* result = result_in<Result>(answer))
                                                         promise.deliver(*result);
                                                       else
                                                         promise.deliver(error_in(answer, what));
                                                     }});
  auto me = caf::actor_cast<remote_backend_actor>(self);
  state.process->call(std::move(call), [me, tag](v1::BackendAnswer answer) {
    answer.set_id(tag);
    caf::anon_send(me, std::move(answer));
  });
  return promise;
}

} // namespace

void remote_backend_state::reply(std::uint64_t tag, const v1::BackendAnswer& with) {
  if (auto call = open.extract(tag))
    call.mapped().reply(with);
}

remote_backend_state::~remote_backend_state() {
  while (!open.empty())
    reply(open.begin()->first,
          failure("backend_lost", open.begin()->second.what + ": this sandbox's backend actor has ended"));
  if (process)
    process->unlisten(ticket);
}

remote_backend_actor::behavior_type remote_backend(self_ptr self, std::shared_ptr<backend_process> process,
                                                   std::string sandbox_id, vm_listener listener) {
  self->state.process = std::move(process);
  self->state.ticket = ++last_ticket;
  if (listener)
    self->state.process->listen(self->state.ticket, std::move(sandbox_id),
                                [listener](const v1::VmEvent& event) { caf::anon_send(listener, event); });
  return {
      [self](const v1::DescribeBackend& m) {
        v1::BackendCall call;
        *call.mutable_describe() = m;
        return submit<v1::Capabilities>(self, std::move(call));
      },
      [self](const v1::CreateVm& m) {
        v1::BackendCall call;
        *call.mutable_create() = m;
        return submit<v1::VmObserved>(self, std::move(call));
      },
      [self](const v1::InspectVm& m) {
        v1::BackendCall call;
        *call.mutable_inspect() = m;
        return submit<v1::VmObserved>(self, std::move(call));
      },
      [self](const v1::ApplyMemoryStep& m) {
        v1::BackendCall call;
        *call.mutable_apply_memory_step() = m;
        return submit<v1::VmObserved>(self, std::move(call));
      },
      [self](const v1::SetVmVcpus& m) {
        v1::BackendCall call;
        *call.mutable_set_vcpus() = m;
        return submit<v1::VmObserved>(self, std::move(call));
      },
      [self](const v1::PauseVm& m) {
        v1::BackendCall call;
        *call.mutable_pause() = m;
        return submit<v1::VmObserved>(self, std::move(call));
      },
      [self](const v1::ResumeVm& m) {
        v1::BackendCall call;
        *call.mutable_resume() = m;
        return submit<v1::VmObserved>(self, std::move(call));
      },
      [self](const v1::DestroyVm& m) {
        v1::BackendCall call;
        *call.mutable_destroy() = m;
        return submit<v1::VmObserved>(self, std::move(call));
      },
      [self](const v1::ListVms& m) {
        v1::BackendCall call;
        *call.mutable_list() = m;
        return submit<v1::VmList>(self, std::move(call));
      },
      [self](const v1::AttachDevice& m) {
        v1::BackendCall call;
        *call.mutable_attach() = m;
        return submit<v1::VmObserved>(self, std::move(call));
      },
      [self](const v1::DetachDevice& m) {
        v1::BackendCall call;
        *call.mutable_detach() = m;
        return submit<v1::VmObserved>(self, std::move(call));
      },
      [self](const v1::BackendAnswer& answer) { self->state.reply(answer.id(), answer); },
  };
}

} // namespace caisson::host
