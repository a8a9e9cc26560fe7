#include "actors/engine/engine.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <set>

#include "actors/budget/budget.hpp"
#include "actors/kept_promise.hpp"
#include "actors/sandbox/lifecycle.hpp"
#include "messages/validate.hpp"

namespace caisson {
namespace {

using self_ptr = engine_actor::stateful_pointer<engine_state>;
using std::chrono::milliseconds;

constexpr milliseconds config_deadline{10'000};
// Over the longest way through a sandbox's own deadlines, each of which ends earlier with a better text.
constexpr milliseconds create_deadline{600'000};
constexpr milliseconds end_deadline{600'000};
constexpr milliseconds plan_deadline{120'000};
constexpr milliseconds look_deadline{10'000};
constexpr milliseconds longest_wait{3'600'000};

engine_state::entry* find(self_ptr self, const std::string& id_or_name) {
  auto& st = self->state;
  auto named = st.ids_by_name.find(id_or_name);
  auto at = st.sandboxes.find(named != st.ids_by_name.end() ? named->second : id_or_name);
  return at == st.sandboxes.end() ? nullptr : &at->second;
}

caf::error unknown(self_ptr self, const std::string& selector) {
  std::string known;
  for (const auto& [name, id] : self->state.ids_by_name) {
    if (known.size() > 200) {
      known += ", ...";
      break;
    }
    known += (known.empty() ? "" : ", ") + name;
  }
  return make_error(ec::not_found,
                    fmt::format("sandbox {}: there is none with this name or id; {}", escape_guest_text(selector, 80),
                                known.empty() ? "there is no sandbox at all" : "there are: " + known));
}

// Passes a request on to the sandbox that it names and its answer back; the sandbox's end is an answer too.
template <class Reply, class... Parts>
caf::result<Reply> pass_on(self_ptr self, const std::string& selector, milliseconds deadline, std::string doing,
                           const Parts&... parts) {
  auto* entry = find(self, selector);
  if (!entry)
    return unknown(self, selector);
  if (!entry->actor)
    return make_error(ec::busy,
                      fmt::format("{}: sandbox {} is just being made; try again when it runs", doing, entry->name));
  auto promise = self->make_response_promise<Reply>();
  auto kept = keep(promise);
  self->request(entry->actor, deadline, parts...)
      .then([kept](const Reply& reply) { kept->deliver(reply); },
            [kept, doing, name = entry->name](const caf::error& why) {
              kept->deliver(make_error(to_proto(why, fmt::format("{} {}", doing, name))));
            });
  return promise;
}

void tell_count(self_ptr self) {
  if (self->state.set.count_changed)
    self->state.set.count_changed(self->state.sandboxes.size());
}

void state_promise(self_ptr self, const std::string& id, std::uint64_t bytes) {
  self->send(self->state.set.sandbox.budget, budget::statement(id, bytes));
}

void forget(self_ptr self, const std::string& id) {
  auto& st = self->state;
  auto at = st.sandboxes.find(id);
  if (at == st.sandboxes.end())
    return;
  if (st.set.sandbox.budget)
    state_promise(self, id, 0);
  st.ids_by_name.erase(at->second.name);
  st.sandboxes.erase(at);
  tell_count(self);
}

std::string hex(std::uint64_t value) {
  return fmt::format("{:012x}", value & 0xffff'ffff'ffffull);
}

std::string free_name(self_ptr self, const std::string& id) {
  auto name = "sandbox-" + id.substr(0, 6);
  for (int n = 2; self->state.ids_by_name.count(name) > 0; ++n)
    name = fmt::format("sandbox-{}-{}", id.substr(0, 6), n);
  return name;
}

v1::ResolveConfig resolve_request(const v1::CreateSandbox& m) {
  v1::ResolveConfig ask;
  ask.set_path(m.config_path());
  *ask.mutable_annotations() = m.annotations();
  *ask.mutable_limits() = m.container_limits();
  auto add = [&](std::string key, std::string value) {
    auto* o = ask.add_overrides();
    o->set_key(std::move(key));
    o->set_value(std::move(value));
  };
  if (!m.hypervisor().empty())
    add("runtime.hypervisor_name", m.hypervisor());
  if (!m.architecture().empty())
    add("architecture", m.architecture());
  return ask;
}

caf::error prepare(self_ptr self, v1::SandboxRecord& record, backends::provider*& provider) {
  auto& st = self->state;
  const auto& config = record.config().sandbox();
  std::string why;
  provider = st.set.provider(config.hypervisor(), why);
  if (!provider)
    return make_error(ec::unsupported, why);
  sandbox::guest_assets guest;
  if (config.guest() != v1::GUEST_SOURCE_FILE)
    if (auto e = st.set.guest(config.architecture(), config.guest_directory(), guest))
      return e;
  return sandbox::build_spec(record, guest, {st.set.about.run_directory()});
}

sandbox_actor spawn_sandbox(self_ptr self, backends::provider* provider) {
  auto settings = self->state.set.sandbox;
  settings.provider = provider;
  settings.engine = caf::actor_cast<sandbox::last_word_listener>(self->ctrl());
  auto actor = self->spawn(sandbox::sandbox, std::move(settings));
  self->monitor(actor);
  return actor;
}

caf::result<v1::SandboxStatus> on_create(self_ptr self, const v1::CreateSandbox& m) {
  auto& st = self->state;
  if (!m.idempotency_key().empty())
    for (const auto& [id, entry] : st.sandboxes)
      if (entry.idempotency_key == m.idempotency_key()) {
        v1::GetSandbox get;
        get.set_sandbox(id);
        return pass_on<v1::SandboxStatus>(self, id, look_deadline, "create", get);
      }
  if (!m.name().empty() && (st.ids_by_name.count(m.name()) > 0 || st.sandboxes.count(m.name()) > 0))
    return make_error(ec::already_exists,
                      fmt::format("sandbox {}: the name is taken; give another, or remove that one with "
                                  "caisson rm {}",
                                  m.name(), m.name()));
  if (st.sandboxes.size() >= st.set.most_sandboxes)
    return make_error(
        ec::host_resources,
        fmt::format("create: there are {} sandboxes already, the most that one engine keeps", st.sandboxes.size()));
  auto id = hex(st.set.sandbox.random());
  while (st.sandboxes.count(id) > 0)
    id = hex(st.set.sandbox.random());
  v1::SandboxRecord record;
  record.set_id(id);
  record.set_name(m.name().empty() ? free_name(self, id) : m.name());
  *record.mutable_request() = m;
  record.set_created_unix_ms(st.set.sandbox.now_unix_ms());
  st.sandboxes[id] = {id, record.name(), {}, record.created_unix_ms(), m.idempotency_key()};
  st.ids_by_name[record.name()] = id;
  tell_count(self);

  auto promise = self->make_response_promise<v1::SandboxStatus>();
  auto kept = keep(promise);
  self->request(st.set.config, config_deadline, resolve_request(m))
      .then(
          [self, kept, record](const v1::ResolvedConfig& config) mutable {
            *record.mutable_config() = config;
            backends::provider* provider = nullptr;
            if (auto why = prepare(self, record, provider)) {
              forget(self, record.id());
              return kept->deliver(why);
            }
            auto& entry = self->state.sandboxes[record.id()];
            entry.actor = spawn_sandbox(self, provider);
            v1::BootSandbox boot;
            *boot.mutable_record() = record;
            self->request(entry.actor, create_deadline, std::move(boot))
                .then([kept](const v1::SandboxStatus& status) { kept->deliver(status); },
                      [kept, name = record.name()](const caf::error& why) {
                        kept->deliver(make_error(to_proto(why, "creating sandbox " + name)));
                      });
          },
          [self, kept, id](const caf::error& why) {
            forget(self, id);
            kept->deliver(make_error(to_proto(why, "reading the configuration")));
          });
  return promise;
}

// The way of a creation up to the backend's answer, and no further.
caf::result<v1::Capabilities> on_describe(self_ptr self, const v1::DescribeHost& m) {
  v1::CreateSandbox as_if;
  as_if.set_config_path(m.config_path());
  as_if.set_hypervisor(m.hypervisor());
  as_if.set_architecture(m.architecture());
  auto promise = self->make_response_promise<v1::Capabilities>();
  auto kept = keep(promise);
  self->request(self->state.set.config, config_deadline, resolve_request(as_if))
      .then(
          [self, kept](const v1::ResolvedConfig& config) {
            v1::SandboxRecord record;
            *record.mutable_config() = config;
            backends::provider* provider = nullptr;
            if (auto why = prepare(self, record, provider))
              return kept->deliver(why);
            auto backend = provider->spawn("describe", vm_listener{});
            auto deadline = self->state.set.sandbox.describe_deadline;
            auto end = [self, backend] { self->send_exit(backend, caf::exit_reason::user_shutdown); };
            self->request(backend, deadline * 2, sandbox::describe_request(record.spec(), deadline))
                .then(
                    [kept, end](const v1::Capabilities& can) {
                      kept->deliver(can);
                      end();
                    },
                    [kept, end](const caf::error& why) {
                      kept->deliver(make_error(to_proto(why, "asking what the hypervisor can do")));
                      end();
                    });
          },
          [kept](const caf::error& why) { kept->deliver(make_error(to_proto(why, "reading the configuration"))); });
  return promise;
}

caf::result<v1::SandboxList> on_list(self_ptr self) {
  auto& st = self->state;
  auto promise = self->make_response_promise<v1::SandboxList>();
  struct gathering {
    v1::SandboxList list;
    std::size_t open = 1;
  };
  auto kept = keep(promise);
  auto g = std::make_shared<gathering>();
  auto done = [g, kept] {
    if (--g->open > 0)
      return;
    std::sort(g->list.mutable_sandboxes()->begin(), g->list.mutable_sandboxes()->end(),
              [](const auto& a, const auto& b) {
                return std::pair{a.created_unix_ms(), a.id()} < std::pair{b.created_unix_ms(), b.id()};
              });
    kept->deliver(std::move(g->list));
  };
  v1::GetSandbox get;
  get.set_cached(true);
  for (auto& [id, entry] : st.sandboxes) {
    auto bare = [g, done, id = entry.id, name = entry.name, created = entry.created_unix_ms] {
      auto* s = g->list.add_sandboxes();
      s->set_id(id);
      s->set_name(name);
      s->set_created_unix_ms(created);
      s->set_state(v1::SANDBOX_STATE_CREATING);
      done();
    };
    ++g->open;
    if (!entry.actor) {
      bare();
      continue;
    }
    self->request(entry.actor, look_deadline, get)
        .then(
            [g, done](const v1::SandboxStatus& s) {
              *g->list.add_sandboxes() = s;
              done();
            },
            // One that ends just now is no part of the list.
            [done](const caf::error&) { done(); });
  }
  done();
  return promise;
}

// Which sandbox an operation belongs to stands at the head of its id.
std::string owner_of(const std::string& sandbox, const std::string& operation_id) {
  return sandbox.empty() ? operation_id.substr(0, operation_id.find('-')) : sandbox;
}

void sweep_backend(self_ptr self, const std::string& name) {
  std::string why;
  auto* provider = self->state.set.provider(name, why);
  if (!provider)
    return;
  auto backend = provider->spawn("sweep", vm_listener{});
  v1::ListVms list;
  list.set_deadline_ms(static_cast<std::uint32_t>(look_deadline.count()));
  self->request(backend, look_deadline * 2, list)
      .then(
          [self, provider, backend](const v1::VmList& vms) {
            for (const auto& id : vms.sandbox_ids()) {
              if (self->state.sandboxes.count(id) > 0)
                continue;
              auto one = provider->spawn(id, vm_listener{});
              v1::DestroyVm destroy;
              destroy.set_sandbox_id(id);
              destroy.set_deadline_ms(static_cast<std::uint32_t>(self->state.set.sandbox.verb_deadline.count()));
              auto end = [self, one] { self->send_exit(one, caf::exit_reason::user_shutdown); };
              self->request(one, self->state.set.sandbox.verb_deadline * 2, destroy)
                  .then([end](const v1::VmObserved&) { end(); }, [end](const caf::error&) { end(); });
              v1::JournalRecord what;
              auto* event = what.add_events();
              event->set_unix_ms(self->state.set.sandbox.now_unix_ms());
              event->set_sandbox_id(id);
              event->set_type("sandbox.orphan_removed");
              event->set_text("a VM that belongs to no sandbox was found and removed");
              self->request(self->state.set.sandbox.journal, look_deadline, std::move(what))
                  .then(
                      [self](const v1::JournalRecorded& written) {
                        v1::EventBatch batch;
                        *batch.mutable_events() = written.events();
                        self->send(self->state.set.sandbox.events, std::move(batch));
                      },
                      [](const caf::error&) {});
            }
            self->send_exit(backend, caf::exit_reason::user_shutdown);
          },
          [self, backend](const caf::error&) { self->send_exit(backend, caf::exit_reason::user_shutdown); });
}

v1::Capabilities accelerator_of(const v1::VmSpec& spec) {
  v1::Capabilities can;
  can.set_accelerator(spec.accelerator());
  return can;
}

bool promises_memory(self_ptr self, const v1::SandboxRecord& record) {
  const auto& set = self->state.set.sandbox;
  return set.budget && sandbox::has_vm(record.state()) && record.boot_id() == set.host_boot_id &&
         (set.modelled_memory_counts || !record.spec().modelled_memory());
}

void answer_engine(self_ptr self, const std::shared_ptr<kept_promise<v1::EngineStatus>>& kept, v1::EngineStatus about) {
  v1::PromiseMemory look;
  look.set_dry_run(true);
  self->request(self->state.set.sandbox.budget, look_deadline, std::move(look), self->state.limits)
      .then(
          [kept, about](const v1::MemoryPromised& seen) mutable {
            *about.mutable_budget() = seen.budget();
            kept->deliver(std::move(about));
          },
          [kept, about](const caf::error&) { kept->deliver(about); });
}

// With what the default configuration says of reserve and overcommit; every command asks, so it is not read each time.
caf::result<v1::EngineStatus> on_engine(self_ptr self) {
  constexpr std::int64_t fresh_ms = 10'000;
  auto& st = self->state;
  auto about = st.set.about;
  about.set_sandboxes(static_cast<std::uint32_t>(st.sandboxes.size()));
  if (!st.set.sandbox.budget)
    return about;
  auto promise = self->make_response_promise<v1::EngineStatus>();
  auto kept = keep(promise);
  const auto now = st.set.sandbox.now_unix_ms();
  if (st.limits_unix_ms > 0 && now - st.limits_unix_ms < fresh_ms) {
    answer_engine(self, kept, std::move(about));
    return promise;
  }
  self->request(st.set.config, config_deadline, v1::ResolveConfig{})
      .then(
          [self, kept, about, now](const v1::ResolvedConfig& config) {
            self->state.limits = config.sandbox();
            self->state.limits_unix_ms = now;
            answer_engine(self, kept, about);
          },
          [self, kept, about](const caf::error&) { answer_engine(self, kept, about); });
  return promise;
}

void adopt_all(self_ptr self, const v1::JournalContents& found) {
  auto& st = self->state;
  std::set<std::string> sweep{st.set.sweep.begin(), st.set.sweep.end()};
  for (const auto& record : found.sandboxes()) {
    std::string why;
    auto* provider = st.set.provider(record.config().sandbox().hypervisor(), why);
    if (!provider)
      continue; // its record stays in the journal until an engine with that backend comes
    sweep.insert(record.config().sandbox().hypervisor());
    auto& entry = st.sandboxes[record.id()];
    entry = {record.id(), record.name(), spawn_sandbox(self, provider), record.created_unix_ms(),
             record.request().idempotency_key()};
    st.ids_by_name[record.name()] = record.id();
    // Whatever runs keeps its memory: it is promised before anything new can ask. The sandbox tells better figures soon.
    if (promises_memory(self, record))
      state_promise(self, record.id(),
                    budget::promise_bytes(record.spec(), accelerator_of(record.spec()),
                                          std::max(record.memory_target_bytes(), record.spec().boot_bytes())));
    v1::AdoptSandbox adopt;
    *adopt.mutable_record() = record;
    for (const auto& op : found.operations())
      if (op.sandbox_id() == record.id())
        *adopt.add_operations() = op;
    self->request(entry.actor, create_deadline, std::move(adopt))
        .then([](const v1::SandboxStatus&) {}, [](const caf::error&) {});
  }
  for (const auto& name : sweep)
    sweep_backend(self, name);
}

} // namespace

engine_actor::behavior_type engine_keeper(self_ptr self, engine_settings set, v1::JournalContents found) {
  self->state.set = std::move(set);
  self->set_down_handler([self](caf::down_msg& down) {
    // A sandbox's actor that ended without its last word (a fault of ours): its record stays in the journal.
    for (auto& [id, entry] : self->state.sandboxes)
      if (entry.actor && entry.actor.address() == down.source)
        return forget(self, std::string{id});
  });
  self->set_exit_handler([self](caf::exit_msg& e) {
    for (auto& [id, entry] : self->state.sandboxes)
      if (entry.actor)
        self->send_exit(entry.actor, e.reason);
    self->quit(std::move(e.reason));
  });
  adopt_all(self, found);
  tell_count(self);
  return {
      [self](const v1::CreateSandbox& m) { return on_create(self, m); },
      [self](const v1::GetSandbox& m) {
        return pass_on<v1::SandboxStatus>(self, m.sandbox(), look_deadline, "status", m);
      },
      [self](const v1::ListSandboxes&) { return on_list(self); },
      [self](const v1::StopSandbox& m) {
        return pass_on<v1::SandboxStatus>(self, m.sandbox(), end_deadline, "stop", m);
      },
      [self](const v1::RemoveSandbox& m) {
        return pass_on<v1::SandboxStatus>(self, m.sandbox(), end_deadline, "rm", m);
      },
      [self](const v1::PauseSandbox& m) {
        return pass_on<v1::SandboxStatus>(self, m.sandbox(), plan_deadline, "pause", m);
      },
      [self](const v1::ResumeSandbox& m) {
        return pass_on<v1::SandboxStatus>(self, m.sandbox(), plan_deadline, "resume", m);
      },
      [self](const v1::ResizeSandbox& m) {
        return pass_on<v1::Operation>(self, m.sandbox(), plan_deadline, "resize", m);
      },
      [self](const v1::GetOperation& m) {
        return pass_on<v1::Operation>(self, owner_of(m.sandbox(), m.operation_id()), look_deadline, "operation", m);
      },
      [self](const v1::WaitOperation& m) {
        auto wait = std::min(milliseconds{m.wait_ms()}, longest_wait) + look_deadline;
        return pass_on<v1::Operation>(self, owner_of(m.sandbox(), m.operation_id()), wait, "operation", m);
      },
      [self](const v1::CancelOperation& m) {
        return pass_on<v1::Operation>(self, owner_of(m.sandbox(), m.operation_id()), plan_deadline, "cancel", m);
      },
      [self](link_atom, const std::string& s) {
        return pass_on<guest_link_ptr>(self, s, plan_deadline, "exec", link_atom::value);
      },
      [self](console_atom, const std::string& s) {
        return pass_on<std::string>(self, s, look_deadline, "console", console_atom::value);
      },
      [self](const v1::EventsFrom& m, const event_sink_ptr& sink) {
        return self->delegate(self->state.set.sandbox.events, m, sink);
      },
      [self](unsub_atom, const event_sink_ptr& sink) {
        self->send(self->state.set.sandbox.events, unsub_atom::value, sink);
      },
      [self](const v1::GetEngine&) { return on_engine(self); },
      [self](const v1::DescribeHost& m) { return on_describe(self, m); },
      [self](const v1::SandboxStatus& last) { forget(self, last.id()); },
  };
}

} // namespace caisson
