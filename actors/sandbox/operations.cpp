// A resize as an operation: planned first (what cannot work is refused at once), durable before it is answered, done by
// the two hotplug actors, re-readable afterwards. Each part keeps its own rule for a change that is already under way
// (actors/memory_hotplug/memory_hotplug.hpp).

#include <fmt/format.h>

#include <algorithm>

#include "actors/sandbox/internal.hpp"
#include "messages/validate.hpp"

namespace caisson::sandbox {
namespace {

constexpr std::int64_t between_progress_events_ms = 500;

void add_plan(v1::ResizePlan& whole, const v1::ResizePlan& part) {
  if (part.memory_target_bytes() > 0) {
    whole.set_memory_target_bytes(part.memory_target_bytes());
    whole.set_memory_asked_bytes(part.memory_asked_bytes());
  }
  if (part.vcpus_target() > 0)
    whole.set_vcpus_target(part.vcpus_target());
  for (const auto& step : part.steps())
    *whole.add_steps() = step;
  for (const auto& note : part.notes())
    whole.add_notes(note);
}

// Whole vCPUs of what was asked; a part of one is a quota beside them.
std::uint32_t vcpus_of(const v1::ResizeSandbox& m) {
  return m.vcpus_milli() > 0 ? m.vcpus_milli() / 1000 + (m.vcpus_milli() % 1000 > 0 ? 1 : 0) : m.vcpus();
}

// 0: the actor knows no VM yet.
void put(v1::HotplugOutcome& outcome, const v1::MemoryStatus& status) {
  if (status.target_bytes() > 0)
    *outcome.mutable_memory() = status;
}

void put(v1::HotplugOutcome& outcome, const v1::VcpuStatus& status) {
  if (status.target() > 0)
    *outcome.mutable_vcpus() = status;
}

// One part by its actor; an actor that cannot answer gives a failed part with the figures that are known.
template <class Status, class Actor, class Message>
void run_part(self_ptr self, const Actor& actor, Message m, milliseconds deadline, std::string doing) {
  auto id = m.operation_id();
  m.set_deadline_ms(static_cast<std::uint32_t>(deadline.count()));
  self->request(actor, deadline + self->state.set.verb_deadline * 2, std::move(m))
      .then([self, id](const v1::HotplugOutcome& outcome) { part_ended(self, id, outcome); },
            [self, id, doing, actor](const caf::error& why) {
              v1::HotplugOutcome failed;
              failed.set_operation_id(id);
              failed.set_state(v1::OPERATION_STATE_FAILED);
              *failed.mutable_error() = to_proto(why, doing);
              failed.set_why(failed.error().text());
              // An error says nothing of the target that is now in force.
              self->request(actor, self->state.set.verb_deadline, v1::ReadHotplug{})
                  .then(
                      [self, id, failed](const Status& now) mutable {
                        put(failed, now);
                        part_ended(self, id, std::move(failed));
                      },
                      [self, id, failed](const caf::error&) { part_ended(self, id, failed); });
            });
}

// Asks both actors for their plans, then goes on with the whole one or the first refusal.
void plan_parts(self_ptr self, const v1::ResizeSandbox& m,
                std::function<void(const caf::error&, const v1::ResizePlan&)> then) {
  auto& st = self->state;
  struct gathering {
    v1::ResizePlan plan;
    caf::error refused;
    int open = 0;
  };
  auto g = std::make_shared<gathering>();
  g->open = (m.memory_bytes() > 0) + (vcpus_of(m) > 0);
  auto done = [g, then] {
    if (--g->open == 0)
      then(g->refused, g->plan);
  };
  auto took = [g, done](const v1::HotplugOutcome& outcome) {
    if (outcome.state() == v1::OPERATION_STATE_FAILED && !g->refused)
      g->refused = outcome.has_error() ? make_error(outcome.error()) : make_error(ec::out_of_range, outcome.why());
    add_plan(g->plan, outcome.plan());
    done();
  };
  auto refused = [g, done](const caf::error& why) {
    const auto said = to_proto(why, "planning the resize");
    g->refused = g->refused ? make_error(code_of(g->refused), text_of(g->refused) + "; and " + said.text())
                            : make_error(said); // both parts are told at once
    done();
  };
  if (m.memory_bytes() > 0) {
    v1::SetMemoryTarget ask;
    ask.set_target_bytes(m.memory_bytes());
    ask.set_plan_only(true);
    ask.set_deadline_ms(static_cast<std::uint32_t>(st.set.verb_deadline.count()));
    self->request(st.memory, st.set.verb_deadline * 2, ask).then(took, refused);
  }
  if (vcpus_of(m) > 0) {
    v1::SetVcpuTarget ask;
    ask.set_target(vcpus_of(m));
    ask.set_target_milli(m.vcpus_milli());
    ask.set_plan_only(true);
    ask.set_deadline_ms(static_cast<std::uint32_t>(st.set.verb_deadline.count()));
    self->request(st.vcpus, st.set.verb_deadline * 2, ask).then(took, refused);
  }
}

v1::Operation new_operation(self_ptr self, const v1::ResizeSandbox& m, const v1::ResizePlan& plan) {
  auto& st = self->state;
  v1::Operation op;
  op.set_id(
      fmt::format("{}-{}-{:08x}", st.record.id(), ++st.operations_begun, static_cast<std::uint32_t>(st.set.random())));
  op.set_sandbox_id(st.record.id());
  op.set_state(m.dry_run() ? v1::OPERATION_STATE_PLANNED : v1::OPERATION_STATE_RUNNING);
  op.set_memory_asked_bytes(m.memory_bytes());
  op.set_memory_target_bytes(plan.memory_target_bytes());
  op.set_vcpus_asked(vcpus_of(m));
  if (m.vcpus_milli() % 1000 > 0)
    op.set_vcpus_asked_milli(m.vcpus_milli());
  take_status(self, op);
  *op.mutable_plan() = plan;
  op.set_started_unix_ms(st.set.now_unix_ms());
  op.set_generation(st.record.generation());
  op.set_idempotency_key(m.idempotency_key());
  op.set_cause(m.cause());
  return op;
}

} // namespace

void begin_operation(self_ptr self, v1::Operation operation, milliseconds deadline) {
  auto& st = self->state;
  auto id = operation.id();
  auto& running = st.operations[id];
  running.operation = operation;
  running.parts_open = (operation.memory_asked_bytes() > 0) + (operation.vcpus_asked() > 0);
  if (operation.memory_asked_bytes() > 0) {
    v1::SetMemoryTarget ask;
    ask.set_operation_id(id);
    ask.set_target_bytes(operation.memory_asked_bytes());
    run_part<v1::MemoryStatus>(self, st.memory, ask, deadline, "changing the memory");
  }
  if (operation.vcpus_asked() > 0) {
    v1::SetVcpuTarget ask;
    ask.set_operation_id(id);
    ask.set_target(operation.vcpus_asked());
    ask.set_target_milli(operation.vcpus_asked_milli());
    run_part<v1::VcpuStatus>(self, st.vcpus, ask, deadline, "changing the vCPUs");
  }
}

void resume_operations(self_ptr self) {
  auto& st = self->state;
  for (auto& [id, running] : std::map{st.operations})
    if (!ended(running.operation) && running.parts_open == 0)
      begin_operation(self, running.operation, st.set.operation_deadline);
}

void end_unbegun_operations(self_ptr self, const std::string& why) {
  for (auto& [id, running] : std::map{self->state.operations}) {
    if (ended(running.operation) || running.parts_open > 0)
      continue;
    v1::HotplugOutcome outcome;
    outcome.set_operation_id(id);
    outcome.set_state(v1::OPERATION_STATE_CANCELLED);
    outcome.set_why(why);
    self->state.operations[id].parts_open = 1;
    part_ended(self, id, std::move(outcome));
  }
}

namespace {

using kept_operation = std::shared_ptr<kept_promise<v1::Operation>>;

// Automatic memory asks for another size by itself; an explicit target goes before it.
bool is_wish(const v1::ResizeSandbox& m) {
  return m.autosize() && !m.cause().empty();
}

// What may have changed while a resize was planned or promised.
caf::error overtaken(self_ptr self, const v1::ResizeSandbox& m) {
  const auto& record = self->state.record;
  if (record.state() != v1::SANDBOX_STATE_RUNNING)
    return not_running(self, "resize");
  if (m.if_generation() > 0 && m.if_generation() != record.generation())
    return make_error(ec::conflict,
                      fmt::format("resize: sandbox {} is at generation {}, not {}; read its status and ask again",
                                  record.name(), record.generation(), m.if_generation()));
  if (is_wish(m) && !autosize_policy(self).enabled())
    return make_error(ec::conflict, fmt::format("resize: sandbox {} has an explicit target", record.name()));
  return {};
}

void tell_autosize_refused(self_ptr self, const v1::ResizeSandbox& m, const caf::error& why) {
  auto& st = self->state;
  if (!is_wish(m) || code_of(why) != ec::host_resources || std::exchange(st.autosize_refused, true))
    return;
  v1::JournalRecord what;
  *what.add_events() = make_event(self, "autosize.refused", m.cause() + ". " + text_of(why));
  journal(self, std::move(what), [](const caf::error&) {});
}

void accept_resize(self_ptr self, const v1::ResizeSandbox& m, const v1::ResizePlan& plan, const kept_operation& kept) {
  auto& st = self->state;
  st.record.set_generation(st.record.generation() + 1);
  if (m.memory_bytes() > 0) {
    st.record.set_memory_target_bytes(plan.memory_target_bytes());
    const bool was = autosize_policy(self).enabled();
    if (m.autosize() && m.cause().empty())
      st.record.mutable_config()->mutable_sandbox()->set_autosize(true);
    if (m.cause().empty())
      st.record.set_autosize_ended(!m.autosize());
    if (const auto policy = autosize_policy(self); policy.enabled() != was)
      self->send(st.memory, policy);
    if (is_wish(m))
      st.autosize_refused = false;
  }
  if (vcpus_of(m) > 0) {
    st.record.set_vcpu_target(vcpus_of(m));
    st.record.set_vcpu_target_milli(m.vcpus_milli());
  }
  auto op = new_operation(self, m, plan);
  v1::JournalRecord what;
  *what.mutable_upsert() = st.record;
  *what.mutable_operation() = op;
  auto* event = what.add_events();
  *event = make_event(self, "operation.started", m.cause());
  *event->mutable_operation() = op;
  auto deadline = m.deadline_ms() > 0 ? milliseconds{m.deadline_ms()} : st.set.operation_deadline;
  const int memory = m.memory_bytes() > 0, vcpus = vcpus_of(m) > 0;
  st.memory_accepted += memory;
  st.vcpus_accepted += vcpus;
  journal(self, std::move(what), [self, kept, op, deadline, memory, vcpus](const caf::error& why) {
    self->state.memory_accepted -= memory;
    self->state.vcpus_accepted -= vcpus;
    if (why)
      return kept->deliver(why);
    begin_operation(self, op, deadline);
    kept->deliver(op);
  });
}

void promise_resize(self_ptr self, const v1::ResizeSandbox& m, const v1::ResizePlan& plan, const kept_operation& kept) {
  const auto what = is_wish(m) ? std::string{"automatic memory"}
                               : "a resize to " + show_bytes(plan.memory_target_bytes());
  ask_promise(self, plan.memory_target_bytes(), what, m.dry_run(),
              [self, m, plan, kept](const caf::error& why) {
                if (m.dry_run()) {
                  auto told = plan;
                  if (why)
                    told.add_notes("it would be refused now: " + text_of(why));
                  return kept->deliver(new_operation(self, m, told));
                }
                if (why) {
                  tell_autosize_refused(self, m, why);
                  return kept->deliver(why);
                }
                if (auto no = overtaken(self, m))
                  return kept->deliver(no);
                accept_resize(self, m, plan, kept);
              });
}

} // namespace

caf::result<v1::Operation> on_resize(self_ptr self, const v1::ResizeSandbox& asked) {
  auto& st = self->state;
  if (st.record.state() == v1::SANDBOX_STATE_RECOVERING)
    return park<v1::Operation>(self, asked);
  if (st.record.state() != v1::SANDBOX_STATE_RUNNING)
    return not_running(self, "resize");
  auto m = asked;
  if (!m.idempotency_key().empty())
    for (const auto& [id, known] : st.operations)
      if (known.operation.idempotency_key() == m.idempotency_key())
        return known.operation;
  if (m.autosize() && m.cause().empty()) {
    if (st.record.spec().max_bytes() <= st.record.spec().boot_bytes())
      return make_error(ec::unsupported,
                        fmt::format("resize: sandbox {} can have no more memory than at boot ({}), so that there is "
                                    "nothing for automatic memory to do; start one with a larger default_maxmemory",
                                    st.record.name(), show_bytes(st.record.spec().boot_bytes())));
    if (m.memory_bytes() == 0) // from what there is on
      m.set_memory_bytes(st.memory_status.boot_bytes() + st.memory_status.plugged_bytes());
  }
  if (auto no = overtaken(self, m))
    return no;
  auto promise = self->make_response_promise<v1::Operation>();
  auto kept = keep(promise);
  plan_parts(self, m, [self, kept, m](const caf::error& refused, const v1::ResizePlan& plan) {
    if (refused)
      return kept->deliver(refused);
    if (auto no = overtaken(self, m))
      return kept->deliver(no);
    promise_resize(self, m, plan, kept);
  });
  return promise;
}

void start_after_boot_operation(self_ptr self) {
  auto& st = self->state;
  const auto& config = st.record.config().sandbox();
  auto has = st.memory_status.boot_bytes() + st.memory_status.plugged_bytes();
  v1::ResizeSandbox m;
  m.set_sandbox(st.record.id());
  if (config.after_boot_memory_target_bytes() > has)
    m.set_memory_bytes(std::min(config.after_boot_memory_target_bytes(), st.record.spec().max_bytes()));
  if (config.after_boot_vcpu_target() > st.vcpu_status.online())
    m.set_vcpus(std::min(config.after_boot_vcpu_target(), st.record.spec().max_vcpus()));
  if (m.memory_bytes() == 0 && m.vcpus() == 0)
    return;
  m.set_cause("the containers' limits, known since the boot");
  if (config.after_boot_memory_target_bytes() > st.record.spec().max_bytes())
    warn(self, fmt::format("the containers' limits come to {} bytes, above the maximum of {} bytes (default_maxmemory)",
                           config.after_boot_memory_target_bytes(), st.record.spec().max_bytes()));
  if (config.after_boot_vcpu_target() > st.record.spec().max_vcpus())
    warn(self, fmt::format("the containers' limits come to {} vCPUs, above the maximum of {} (default_maxvcpus)",
                           config.after_boot_vcpu_target(), st.record.spec().max_vcpus()));
  self->request(caf::actor_cast<sandbox_actor>(self->ctrl()), st.set.verb_deadline * 4, m)
      .then([](const v1::Operation&) {}, [self](const caf::error& why) { warn(self, text_of(why)); });
}

void on_progress(self_ptr self) {
  auto& st = self->state;
  auto now = st.set.now_unix_ms();
  for (auto& [id, running] : st.operations) {
    if (running.parts_open == 0)
      continue;
    take_status(self, running.operation);
    if (ended(running.operation) || now - running.last_progress_unix_ms < between_progress_events_ms)
      continue;
    running.last_progress_unix_ms = now;
    v1::JournalRecord what;
    auto* event = what.add_events();
    *event = make_event(self, "operation.progress");
    *event->mutable_operation() = running.operation;
    journal(self, std::move(what), [](const caf::error&) {});
  }
}

caf::result<v1::Operation> on_get_operation(self_ptr self, const std::string& id) {
  auto& st = self->state;
  auto at = st.operations.find(id);
  if (at == st.operations.end())
    return make_error(ec::not_found,
                      fmt::format("operation {}: sandbox {} has no such operation", id, st.record.name()));
  return at->second.operation;
}

caf::result<v1::Operation> on_wait_operation(self_ptr self, const v1::WaitOperation& m) {
  auto& st = self->state;
  auto at = st.operations.find(m.operation_id());
  if (at == st.operations.end() || ended(at->second.operation) || m.wait_ms() == 0)
    return on_get_operation(self, m.operation_id());
  auto promise = self->make_response_promise<v1::Operation>();
  at->second.waiting.push_back(promise);
  after(self, milliseconds{m.wait_ms()}, [self, promise, id = m.operation_id()]() mutable {
    if (!promise.pending())
      return;
    auto here = self->state.operations.find(id);
    if (here != self->state.operations.end())
      promise.deliver(here->second.operation);
  });
  return promise;
}

caf::result<v1::Operation> on_cancel_operation(self_ptr self, const v1::CancelOperation& m) {
  auto& st = self->state;
  auto at = st.operations.find(m.operation_id());
  if (at == st.operations.end() || ended(at->second.operation))
    return on_get_operation(self, m.operation_id());
  auto promise = self->make_response_promise<v1::Operation>();
  at->second.waiting.push_back(promise);
  if (at->second.parts_open == 0) {
    end_unbegun_operations(self, "cancelled before it went on after a restart of the engine");
    return promise;
  }
  if (at->second.operation.memory_asked_bytes() > 0)
    self->request(st.memory, st.set.verb_deadline, m)
        .then([](const v1::MemoryStatus&) {}, [self](const caf::error& why) { warn(self, text_of(why)); });
  if (at->second.operation.vcpus_asked() > 0)
    self->request(st.vcpus, st.set.verb_deadline, m)
        .then([](const v1::VcpuStatus&) {}, [self](const caf::error& why) { warn(self, text_of(why)); });
  return promise;
}

} // namespace caisson::sandbox
