// How an operation ends: its parts, the target and the promise that hold from then on, the journal, those who wait.

#include <fmt/format.h>

#include "actors/sandbox/internal.hpp"

namespace caisson::sandbox {
namespace {

constexpr std::size_t most_ended_operations = 4096;

// The worst part decides.
int weight(v1::OperationState s) {
  switch (s) {
  case v1::OPERATION_STATE_FAILED:
    return 4;
  case v1::OPERATION_STATE_CANCELLED:
    return 3;
  case v1::OPERATION_STATE_PARTLY:
    return 2;
  default:
    return 1;
  }
}

void end_operation(self_ptr self, const std::string& id) {
  auto& st = self->state;
  auto at = st.operations.find(id);
  if (at == st.operations.end())
    return;
  auto& op = at->second.operation;
  op.set_state(v1::OPERATION_STATE_CONVERGED);
  for (const auto& part : at->second.outcomes) {
    if (weight(part.state()) > weight(op.state()))
      op.set_state(part.state());
    if (!part.why().empty())
      op.set_why(op.why().empty() ? part.why() : op.why() + "; " + part.why());
    if (part.has_error() && !op.has_error())
      *op.mutable_error() = part.error();
  }
  // Its actor may have heard of the end before it was known why.
  if (op.error().code() == to_string(ec::vmm_died) && op.why().find(st.gone_why) == std::string::npos) {
    op.set_why(op.why() + "; " + st.gone_why);
    op.mutable_error()->set_text(op.error().text() + "; " + st.gone_why);
  }
  op.set_ended_unix_ms(st.set.now_unix_ms());
  take_status(self, op);
  v1::JournalRecord what;
  if (!st.finishing) {
    *what.mutable_operation() = op;
    if (op.state() == v1::OPERATION_STATE_CANCELLED || op.state() == v1::OPERATION_STATE_FAILED)
      *what.mutable_upsert() = st.record; // its target, see take_target_back()
  }
  constexpr std::string_view words[] = {"", "planned", "progress", "converged", "partly", "failed", "cancelled"};
  auto* event = what.add_events();
  *event = make_event(self, fmt::format("operation.{}", words[op.state()]), op.why());
  *event->mutable_operation() = op;
  journal(self, std::move(what), [self, id](const caf::error& why) {
    auto& s = self->state;
    auto here = s.operations.find(id);
    if (here == s.operations.end())
      return;
    if (why)
      warn(self, text_of(why));
    here->second.parts_open = 0;
    for (auto& p : std::exchange(here->second.waiting, {}))
      p.deliver(here->second.operation);
    s.ended_operations.push_back(id);
    if (s.ended_operations.size() > most_ended_operations) {
      s.operations.erase(s.ended_operations.front());
      s.ended_operations.pop_front();
    }
  });
}

/// Nobody wants the rest of a change that was cancelled or has failed: its actor has taken the target back as far as that
/// is safe, and so does the record, on which the promise of the host's memory rests.
void take_target_back(self_ptr self, const std::string& id) {
  auto& st = self->state;
  bool memory_wanted = st.memory_accepted > 0, vcpus_wanted = st.vcpus_accepted > 0; // by another one
  for (const auto& [other, running] : st.operations)
    if (other != id && !ended(running.operation)) {
      memory_wanted = memory_wanted || running.operation.memory_asked_bytes() > 0;
      vcpus_wanted = vcpus_wanted || running.operation.vcpus_asked() > 0;
    }
  for (const auto& part : st.operations[id].outcomes) {
    if (part.state() != v1::OPERATION_STATE_CANCELLED && part.state() != v1::OPERATION_STATE_FAILED)
      continue;
    if (!memory_wanted && part.memory().target_bytes() > 0)
      st.record.set_memory_target_bytes(part.memory().target_bytes());
    if (!vcpus_wanted && part.vcpus().target() > 0) {
      st.record.set_vcpu_target(part.vcpus().target());
      st.record.set_vcpu_target_milli(part.vcpus().target_milli());
    }
  }
}

} // namespace

void take_status(self_ptr self, v1::Operation& op) {
  const auto& st = self->state;
  *op.mutable_memory() = st.memory_status;
  op.mutable_memory()->set_host_bytes(st.host_bytes);
  op.mutable_memory()->set_promised_bytes(st.promised_bytes);
  *op.mutable_vcpus() = st.vcpu_status;
}

void part_ended(self_ptr self, const std::string& id, v1::HotplugOutcome outcome) {
  auto at = self->state.operations.find(id);
  if (at == self->state.operations.end())
    return;
  if (outcome.has_memory())
    self->state.memory_status = outcome.memory();
  if (outcome.has_vcpus())
    self->state.vcpu_status = outcome.vcpus();
  at->second.outcomes.push_back(std::move(outcome));
  if (static_cast<int>(at->second.outcomes.size()) != at->second.parts_open)
    return;
  take_target_back(self, id);
  const auto end = [self, id] {
    if (self->state.explaining)
      self->state.when_explained.push_back([self, id] { end_operation(self, id); });
    else
      end_operation(self, id);
  };
  if (at->second.operation.memory_asked_bytes() == 0 || self->state.observed.vmm_pid() <= 0) {
    settle_promise(self);
    return end();
  }
  measure_host_bytes(self, end); // the host's other work for this sandbox comes behind it
  settle_promise(self);
}

} // namespace caisson::sandbox
