#include "actors/budget/budget_keeper.hpp"

#include <fmt/format.h>

namespace caisson::budget {
namespace {

using self_ptr = budget_actor::stateful_pointer<keeper_state>;

void read_host(self_ptr self);
void read_processes(self_ptr self, std::size_t count, const host_memory& host);

void decide(keeper_state& st, const keeper_state::waiting& w, const host_memory& host) {
  if (w.asked.sandbox_id().empty()) {
    v1::MemoryPromised seen;
    *seen.mutable_budget() = st.promises.figures(host, w.within);
    return w.promise->deliver(std::move(seen));
  }
  const auto no = st.promises.promise(w.asked.sandbox_id(), w.asked.bytes(), host, w.within, w.asked.what(),
                                      w.asked.dry_run());
  if (no)
    return w.promise->fail(ec::host_resources, no->text);
  v1::MemoryPromised yes;
  *yes.mutable_budget() = st.promises.figures(host, w.within);
  w.promise->deliver(std::move(yes));
}

// The reading is over: as many are decided as had come when it began, in their order.
void decide_all(self_ptr self, std::size_t count, const host_memory& host) {
  auto& st = self->state;
  bool looked = false;
  for (; count > 0 && !st.queue.empty(); --count) {
    const auto w = std::move(st.queue.front());
    st.queue.pop_front();
    looked = looked || w.asked.sandbox_id().empty();
    decide(st, w, host);
  }
  st.reading = false;
  if (!st.queue.empty())
    return read_host(self);
  // Who looks does not wait for processes to be measured; who looks again sees what they hold.
  const auto now = self->clock().now();
  if (looked && !st.vmms.empty() && now - st.processes_read >= st.set.processes_fresh) {
    st.reading = true;
    read_processes(self, 0, host);
  }
}

void fail_all(self_ptr self, const caf::error& why) {
  auto& st = self->state;
  const auto text = fmt::format("the host's memory could not be read, so nothing is promised: {}",
                                to_proto(why, "reading the host's memory").text());
  for (auto& w : std::exchange(st.queue, {}))
    w.promise->fail(code_of(why), text);
  st.reading = false;
}

void read_processes(self_ptr self, std::size_t count, const host_memory& host) {
  auto& st = self->state;
  st.processes_open = st.vmms.size() + 1;
  st.processes_read = self->clock().now();
  auto one_less = [self, count, host] {
    if (--self->state.processes_open == 0)
      decide_all(self, count, host);
  };
  for (const auto& [id, measure] : st.vmms)
    self->request(st.set.host, st.set.host_deadline, measure)
        .then(
            [self, id = id, one_less](const v1::ProcessFigures& f) {
              self->state.promises.holds(id, f.pss_bytes());
              one_less();
            },
            // One that cannot be read holds nothing: everything that it was promised is owed.
            [self, id = id, one_less](caf::error&) {
              self->state.promises.holds(id, 0);
              one_less();
            });
  one_less();
}

// Would all of them get it if no VMM held anything? Then nobody needs to be measured.
bool plenty(const keeper_state& st, std::size_t count, const host_memory& host) {
  std::uint64_t asked = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto& w = st.queue[i];
    asked += w.asked.bytes();
    const auto rest = host.available_bytes - std::min(host.available_bytes, w.within.reserve_bytes);
    if (w.asked.sandbox_id().empty()) // somebody looks
      continue;
    if (w.within.overcommit_percent < 100 || st.promises.promised_bytes() + asked > rest)
      return false;
  }
  return true;
}

void read_host(self_ptr self) {
  auto& st = self->state;
  st.reading = true;
  self->request(st.set.host, st.set.host_deadline, v1::MeasureHost{})
      .then(
          [self](const v1::HostFigures& f) {
            const host_memory host{f.total_bytes(), f.available_bytes()};
            const auto count = self->state.queue.size();
            if (plenty(self->state, count, host))
              decide_all(self, count, host);
            else
              read_processes(self, count, host);
          },
          [self](const caf::error& why) { fail_all(self, why); });
}

caf::result<v1::MemoryPromised> on_promise(self_ptr self, const v1::PromiseMemory& m, const v1::SandboxConfig& config) {
  auto& st = self->state;
  auto promise = self->make_response_promise<v1::MemoryPromised>();
  const limits within{config.host_reserve_bytes(),
                      config.overcommit_percent() == 0 ? 100 : config.overcommit_percent()};
  st.queue.push_back({m, within, keep(promise)});
  if (!st.reading)
    read_host(self);
  return promise;
}

void on_statement(self_ptr self, const v1::PromiseMemory& m) {
  auto& st = self->state;
  st.promises.state(m.sandbox_id(), m.bytes());
  if (m.bytes() > 0)
    return;
  st.vmms.erase(m.sandbox_id());
  // A sandbox that is gone gets nothing any more, or it would keep it for ever.
  for (auto& w : st.queue)
    if (w.asked.sandbox_id() == m.sandbox_id()) {
      w.promise->fail(ec::cancelled, "the sandbox has ended before its memory was promised");
      w.asked.set_dry_run(true);
    }
}

} // namespace

budget_actor::behavior_type budget_keeper(self_ptr self, settings set) {
  self->state.set = std::move(set);
  return {
      [self](const v1::PromiseMemory& m, const v1::SandboxConfig& within) { return on_promise(self, m, within); },
      [self](const v1::PromiseMemory& m) { on_statement(self, m); },
      [self](const std::string& sandbox_id, const v1::MeasureProcess& vmm) { self->state.vmms[sandbox_id] = vmm; },
  };
}

} // namespace caisson::budget
