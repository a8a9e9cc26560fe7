#include "tests/simulation/script.hpp"

#include <algorithm>
#include <sstream>

#include "actors/guest_agent/guest_link.hpp"

namespace caisson::tests {
namespace {

using namespace std::chrono_literals;
using std::chrono::nanoseconds;

constexpr std::uint64_t mib = 1u << 20;

} // namespace

script::script(script_options o)
    : options_{std::move(o)}, dice_{options_.seed * 0x9E3779B97F4A7C15u + 7}, house_{options_.seed, options_.plan} {
  house_.available_bytes = options_.available_bytes;
}

void script::problem(std::string text) {
  note("PROBLEM: " + text);
  result_.problems.push_back("seed " + std::to_string(options_.seed) + ": " + std::move(text));
}

void script::note(std::string text) {
  std::ostringstream line;
  line << (run_ ? std::chrono::duration_cast<std::chrono::milliseconds>(run_->sys().now()).count() : 0)
       << " ms: " << text << '\n';
  result_.trace += line.str();
}

void script::collect() {
  for (std::size_t i = 0; i < open_.size();) {
    if (open_[i].done()) {
      const auto then = std::move(open_[i].then);
      open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(i));
      then();
      i = 0;
    } else if (run_->sys().now() - open_[i].asked > open_[i].limit) {
      problem(open_[i].what + " was not answered within its time");
      open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
}

script::known* script::pick(bool only_answered) {
  std::vector<known*> some;
  for (auto& [name, k] : known_)
    if (!k.removed && (k.answered || !only_answered))
      some.push_back(&k);
  return some.empty() ? nullptr : some[dice_.next() % some.size()];
}

// ---- what the user does ----

void script::create() {
  const auto name = "s" + std::to_string(++created_);
  v1::CreateSandbox m;
  m.set_name(name);
  m.set_hypervisor("simulated");
  const std::uint64_t sizes[] = {0, 256 * mib, 512 * mib, 384 * mib, 1024 * mib, 100 * mib, 8192 * mib};
  m.set_memory_bytes(sizes[dice_.between(0, dice_.chance(0.9) ? 4 : 6)]);
  m.set_vcpus(static_cast<std::uint32_t>(dice_.between(0, dice_.chance(0.9) ? 2 : 9)));
  m.set_memory_method(static_cast<v1::MemoryMethod>(dice_.between(0, 2)));
  const bool follows = options_.autosize && dice_.chance(0.6);
  if (follows) {
    m.set_config_path(autosize_config_path());
    m.set_memory_bytes(256 * mib);
  }
  if (auto why = validate(m))
    return;
  auto& k = known_[name];
  k.name = name;
  k.follows = follows;
  ask<v1::SandboxStatus>(
      "create " + name, longest_answer,
      [this, name](const pending_answer<v1::SandboxStatus>& a) {
        auto& made = known_[name];
        if (!a.value()) {
          known_.erase(name);
          return;
        }
        ++result_.created;
        made.answered = true;
        made.id = a->id();
        made.boot_bytes = a->memory().boot_bytes();
        require(a->state() == v1::SANDBOX_STATE_RUNNING || made.ending || made.hurt || !options_.undisturbed,
                [&] { return name + ": created, and its state is " + v1::SandboxState_Name(a->state()); });
      },
      m);
}

void script::resize(known& k) {
  v1::ResizeSandbox m;
  m.set_sandbox(dice_.chance(0.5) ? k.name : k.id);
  if (dice_.chance(0.8))
    m.set_memory_bytes(dice_.chance(0.9) ? dice_.between(1, 32) * 128 * mib
                                         : dice_.between(1, 6000) * mib + dice_.between(0, 1));
  if (m.memory_bytes() == 0 || dice_.chance(0.4))
    m.set_vcpus(static_cast<std::uint32_t>(dice_.between(1, dice_.chance(0.9) ? 4 : 6)));
  m.set_dry_run(dice_.chance(0.1));
  if (auto why = validate(m))
    return;
  ++k.resizes_open;
  ask<v1::Operation>(
      "resize " + k.name + " to " + std::to_string(m.memory_bytes() / mib) + " MiB, " + std::to_string(m.vcpus()) +
          " vCPUs",
      longest_answer,
      [this, name = k.name, dry = m.dry_run()](const pending_answer<v1::Operation>& a) {
        const auto at = known_.find(name);
        if (at == known_.end())
          return;
        --at->second.resizes_open;
        if (!a.value())
          return;
        if (dry) {
          require(a->state() == v1::OPERATION_STATE_PLANNED, [&] { return name + ": a dry run is not PLANNED"; });
          return;
        }
        // Answers may come in another order than the operations began.
        if (a->generation() > at->second.last_generation) {
          at->second.last_generation = a->generation();
          at->second.last_operation = a->id();
        }
        await(at->second, *a.value());
      },
      m);
}

void script::await(known& k, const v1::Operation& op) {
  v1::WaitOperation m;
  m.set_operation_id(op.id());
  m.set_sandbox(k.id);
  m.set_wait_ms(300'000);
  ask<v1::Operation>(
      "wait for " + k.name + "'s " + op.id(), 320s,
      [this, name = k.name](const pending_answer<v1::Operation>& a) {
        const auto at = known_.find(name);
        if (at != known_.end() && a.value())
          check_end(at->second, *a.value());
      },
      m);
}

void script::check_end(known& k, const v1::Operation& op) {
  note(k.name + ": " + op.id() + " " + v1::OperationState_Name(op.state()) + " with " +
       std::to_string((op.memory().boot_bytes() + op.memory().plugged_bytes()) / mib) + " MiB and " +
       std::to_string(op.vcpus().online()) + " vCPUs; the VM really has " +
       std::to_string((house_.world->look(k.id).boot_bytes + house_.world->look(k.id).plugged_bytes) / mib) + " MiB. " +
       op.why());
  // An engine that follows a killed one lets the operations of a paused sandbox wait until it is resumed.
  if (op.state() == v1::OPERATION_STATE_RUNNING) {
    require(result_.kills > 0 && k.disturbed,
            [&] { return k.name + ": " + op.id() + " still runs after its deadline"; });
    return;
  }
  if (op.state() == v1::OPERATION_STATE_CONVERGED)
    ++result_.converged;
  else
    require(!op.why().empty(), [&] {
      return k.name + ": " + op.id() + " ended " + v1::OperationState_Name(op.state()) + " without a reason";
    });
  result_.partly += op.state() == v1::OPERATION_STATE_PARTLY;
  result_.failed += op.state() == v1::OPERATION_STATE_FAILED;
  if (k.last_operation != op.id())
    return;
  k.last = op;
  if (k.resizes_open > 0)
    return; // the next one may be at work already
  const auto real = house_.world->look(k.id);
  if (op.state() != v1::OPERATION_STATE_CONVERGED || real.state != v1::VM_STATE_RUNNING)
    return;
  if (op.memory_asked_bytes() > 0) {
    require(real.boot_bytes + real.plugged_bytes == op.memory_target_bytes(), [&] {
      return k.name + ": " + op.id() + " says CONVERGED at " + std::to_string(op.memory_target_bytes() / mib) +
             " MiB; the VMM has " + std::to_string((real.boot_bytes + real.plugged_bytes) / mib) + " MiB";
    });
    require(real.guest_plugged_bytes == real.plugged_bytes, [&] {
      return k.name + ": " + op.id() + " says CONVERGED; the guest uses " +
             std::to_string(real.guest_plugged_bytes / mib) + " of " + std::to_string(real.plugged_bytes / mib) +
             " plugged MiB";
    });
  }
  if (op.vcpus_asked() > 0)
    require(real.online_vcpus == op.vcpus_asked(), [&] {
      return k.name + ": " + op.id() + " says CONVERGED at " + std::to_string(op.vcpus_asked()) +
             " vCPUs; the guest runs " + std::to_string(real.online_vcpus);
    });
}

void script::exec(known& k) {
  auto ended = std::make_shared<bool>(false), hung_up = std::make_shared<bool>(false);
  auto keep = std::make_shared<std::shared_ptr<guest_exec>>();
  const bool cat = dice_.chance(0.5);
  ask<guest_link_ptr>(
      "exec in " + k.name, longest_answer,
      [this, ended, hung_up, keep, cat, name = k.name](const pending_answer<guest_link_ptr>& a) {
        if (!a.value() || !*a.value())
          return;
        auto out = std::make_shared<std::string>();
        v1::ExecStart start;
        start.add_argv(cat ? "cat" : "nproc");
        guest_exec_events e;
        e.on_started = [] {};
        e.on_stdout = [out](std::span<const std::byte> b) {
          out->append(reinterpret_cast<const char*>(b.data()), b.size());
        };
        e.on_stderr = [](std::span<const std::byte>) {};
        e.on_end = [this, ended, hung_up, out, cat, name](std::variant<v1::ExecExited, v1::Error> how) {
          *ended = true;
          // One that was hung up may have been cut off anywhere.
          if (cat && !*hung_up && how.index() == 0)
            require(*out == "hello\n", [&] { return name + ": cat gave \"" + *out + "\""; });
        };
        *keep = (*a.value())->exec(start, e);
        if (cat) {
          (*keep)->write_stdin("hello\n", {});
          (*keep)->close_stdin();
        }
        // A command in a paused sandbox stands still with it.
        open_.push_back(
            {"the end of a command in " + name, run_->sys().now(), longest_answer,
             [this, ended, name] { return *ended || house_.world->look(known_[name].id).state == v1::VM_STATE_PAUSED; },
             [keep, hung_up] {
               *hung_up = true;
               keep->reset();
             }});
      },
      link_atom::value, k.name);
}

// A workload takes memory for a while, more than there is at times.
void script::load(known& k) {
  ask<guest_link_ptr>(
      "load in " + k.name, longest_answer, [this, name = k.name, mib_held = dice_.between(50, 1500),
                                            seconds = dice_.between(1, 60)](const pending_answer<guest_link_ptr>& a) {
        if (!a.value() || !*a.value())
          return;
        v1::ExecStart start;
        for (const auto& word : {std::string{"hold"}, std::to_string(mib_held), std::to_string(seconds)})
          start.add_argv(word);
        guest_exec_events e;
        e.on_started = [] {};
        e.on_stdout = e.on_stderr = [](std::span<const std::byte>) {};
        e.on_end = [](std::variant<v1::ExecExited, v1::Error>) {};
        loads_.push_back((*a.value())->exec(start, e));
      },
      link_atom::value, k.name);
}

void script::act() {
  const auto what = dice_.between(0, 99);
  auto* k = pick(true);
  const auto forget_end = [this](const std::string& name, bool removal) {
    return [this, name, removal](const pending_answer<v1::SandboxStatus>& a) {
      const auto at = known_.find(name);
      if (at != known_.end() && a.value() && removal)
        at->second.removed = true;
    };
  };
  if (!k || (what < 20 && known_.size() < 5))
    return create();
  if (what < 50)
    return resize(*k);
  if (what < 62) {
    v1::GetSandbox m;
    m.set_sandbox(k->name);
    return ask<v1::SandboxStatus>("get " + k->name, 30s, {}, m);
  }
  if (what < 66)
    return ask<v1::SandboxList>("list", 30s, {}, v1::ListSandboxes{});
  if (what < 70) {
    k->ending = true;
    v1::StopSandbox m;
    m.set_sandbox(k->name);
    return ask<v1::SandboxStatus>("stop " + k->name, longest_answer, forget_end(k->name, false), m);
  }
  if (what < 75) {
    v1::RemoveSandbox m;
    m.set_sandbox(k->name);
    m.set_force(dice_.chance(0.7));
    k->ending = true; // a failed or stopped one goes without force too
    return ask<v1::SandboxStatus>("rm " + k->name, longest_answer, forget_end(k->name, true), m);
  }
  if (what < 79) {
    k->disturbed = true;
    v1::PauseSandbox m;
    m.set_sandbox(k->name);
    return ask<v1::SandboxStatus>("pause " + k->name, longest_answer, {}, m);
  }
  if (what < 85) {
    v1::ResumeSandbox m;
    m.set_sandbox(k->name);
    return ask<v1::SandboxStatus>("resume " + k->name, longest_answer, {}, m);
  }
  if (what < 93)
    return k->follows && dice_.chance(0.8) ? load(*k) : exec(*k);
  if (what < 95)
    return ask<std::string>("console " + k->name, 30s, {}, console_atom::value, k->name);
  if (what < 97 && !k->last_operation.empty()) {
    k->disturbed = true;
    v1::CancelOperation m;
    m.set_operation_id(k->last_operation);
    m.set_sandbox(k->id);
    return ask<v1::Operation>("cancel " + k->last_operation, longest_answer, {}, m);
  }
  if (!options_.accidents)
    return;
  k->hurt = true;
  if (dice_.chance(0.5)) {
    note("the VMM of " + k->name + " is killed");
    house_.world->kill_vmm(k->id);
  } else {
    note("the guest of " + k->name + " panics");
    house_.world->panic_guest(k->id);
  }
}

// ---- time, kills, rest ----

void script::advance() {
  auto& sys = run_->sys();
  if (dice_.chance(0.4)) {
    for (auto n = dice_.between(1, 150); n > 0 && sys.step(); --n)
      ++result_.steps;
  } else {
    sys.run_for(std::chrono::milliseconds{dice_.chance(0.8) ? dice_.between(1, 400) : dice_.between(400, 20'000)});
  }
  collect();
}

void script::kill_engine() {
  // Somewhere in the middle of what was asked, not after it: a moment of virtual time, message by message.
  const auto end = run_->sys().now() + std::chrono::milliseconds{dice_.between(0, 200)};
  for (auto n = dice_.between(0, 400); n > 0; --n) {
    if (run_->sys().step())
      continue;
    const auto next = run_->sys().next_timer();
    if (!next || run_->sys().now() + *next > end)
      break;
    run_->sys().scheduler().advance_time(*next);
  }
  collect();
  note("the engine is killed");
  for (const auto& id : house_.world->machines()) {
    const auto real = house_.world->look(id);
    note("VM " + id + " has " + std::to_string((real.boot_bytes + real.plugged_bytes) / mib) +
         " MiB, asked of virtio-mem: " + std::to_string(real.virtio_mem_requested_bytes / mib) + " MiB");
  }
  ++result_.kills;
  run_->kill();
  auto replayed = house_.journal->replay();
  const auto& written = std::get<v1::JournalContents>(replayed);
  for (auto& [name, k] : known_) {
    if (k.resizes_open > 0)
      k.disturbed = true; // asked and not answered: it may have been begun
    k.resizes_open = 0;
    const auto record = std::find_if(written.sandboxes().begin(), written.sandboxes().end(),
                                     [&, n = name](const auto& r) { return r.name() == n; });
    const bool there = record != written.sandboxes().end();
    require(!k.answered || k.ending || k.removed || there,
            [&, n = name] { return n + ": answered, and not in the journal"; });
    if (!k.answered) {
      // Between the record that it runs and the answer there is always a moment.
      k.must_exist = there && has_vm(record->state());
      if (there)
        k.id = record->id();
    }
  }
  open_.clear();
  loads_.clear();
  run_.reset();
  house_.unix_ms += static_cast<std::int64_t>(dice_.between(0, 5'000));
  run_ = std::make_unique<engine_run>(house_, dice_.next());
  note("another engine starts");
  for (auto& [name, k] : known_)
    if (k.answered && !k.last_operation.empty() && !k.ending && k.last.id() != k.last_operation) {
      v1::Operation op;
      op.set_id(k.last_operation);
      await(k, op);
    }
}

void script::settle() {
  house_.world->set_plan(options_.plan.calm());
  const bool quiet = run_->sys().run_until(
      [this] {
        collect();
        return open_.empty();
      },
      longest_answer + 60s);
  require(quiet,
          [&] { return std::to_string(open_.size()) + " requests have no answer, the first is: " + open_[0].what; });
  open_.clear();
  // Reconnections, late verbs, what recovers behind the answers.
  run_->sys().run_for(360s);
}

script_result script::run() {
  run_ = std::make_unique<engine_run>(house_, options_.seed);
  int kills = 0;
  for (int i = 0; i < options_.actions; ++i) {
    act();
    advance();
    const bool due =
        kills < options_.kills && dice_.chance(static_cast<double>(options_.kills) * 1.5 / options_.actions);
    const bool last_call = i + 1 == options_.actions && kills < options_.kills;
    if (due || last_call) {
      ++kills;
      kill_engine();
    }
  }
  settle();
  compare();
  loads_.clear();
  remove_everything();
  run_.reset();
  return std::move(result_);
}

} // namespace caisson::tests
