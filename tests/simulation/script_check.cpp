// What is compared when all is quiet: the engine's words with the world.

#include <algorithm>
#include <set>

#include "tests/simulation/script.hpp"

namespace caisson::tests {

using namespace std::chrono_literals;

// What is promised is what the sandboxes have a right to, and never more than the host can give.
void script::check_budget() {
  v1::SandboxList list;
  ask<v1::SandboxList>(
      "list", 60s,
      [&](const pending_answer<v1::SandboxList>& a) {
        if (a.value())
          list = *a.value();
        else
          problem("list: " + text_of(a.error()));
      },
      v1::ListSandboxes{});
  run_->sys().run_for(10s);
  collect();
  std::uint64_t needed = 0;
  for (const auto& s : list.sandboxes()) {
    if (!has_vm(s.state())) {
      require(s.memory().promised_bytes() == 0, [&] { return s.name() + ": it has ended, and memory is promised to it"; });
      continue;
    }
    const auto real = house_.world->look(s.id());
    const auto least = std::max(s.memory().target_bytes(), real.boot_bytes + real.plugged_bytes);
    require(s.memory().promised_bytes() >= least, [&] {
      return s.name() + ": " + std::to_string(s.memory().promised_bytes() / (1 << 20)) + " MiB are promised to it, and " +
             std::to_string(least / (1 << 20)) + " MiB are its target or plugged";
    });
    needed += s.memory().promised_bytes();
  }
  ask<v1::EngineStatus>(
      "engine", 60s,
      [this, needed](const pending_answer<v1::EngineStatus>& a) {
        if (!a.value())
          return problem("engine: " + text_of(a.error()));
        const auto& b = a->budget();
        require(b.promised_bytes() == needed, [&] {
          return "the budget has promised " + std::to_string(b.promised_bytes() / (1 << 20)) + " MiB, the sandboxes know of " +
                 std::to_string(needed / (1 << 20)) + " MiB";
        });
        require(b.promised_bytes() + b.reserve_bytes() <= options_.available_bytes || b.promised_bytes() == 0,
                [&] { return "more is promised than the host has"; });
      },
      v1::GetEngine{});
  run_->sys().run_for(10s);
  collect();
}

void script::compare() {
  v1::SandboxList list;
  ask<v1::SandboxList>(
      "list", 60s,
      [&](const pending_answer<v1::SandboxList>& a) {
        if (a.value())
          list = *a.value();
        else
          problem("list: " + text_of(a.error()));
      },
      v1::ListSandboxes{});
  run_->sys().run_for(60s);
  collect();

  std::set<std::string> with_vm;
  for (const auto& listed : list.sandboxes()) {
    std::optional<v1::SandboxStatus> got;
    v1::GetSandbox m;
    m.set_sandbox(listed.id());
    // The first look may be what finds that a resume of unknown outcome took effect late; the agent is met after it.
    for (int look = 0; look < 2; ++look) {
      got.reset();
      ask<v1::SandboxStatus>(
          "get " + listed.name(), 60s,
          [&](const pending_answer<v1::SandboxStatus>& a) {
            if (a.value())
              got = *a.value();
            else
              problem("get " + listed.name() + ": " + text_of(a.error()));
          },
          m);
      run_->sys().run_for(30s);
      collect();
    }
    if (!got)
      continue;
    const auto& s = *got;
    const auto real = house_.world->look(s.id());
    const auto says = [&](const std::string& what, std::uint64_t engine, std::uint64_t truth) {
      require(engine == truth, [&] {
        return s.name() + ": the engine says " + what + " " + std::to_string(engine) + ", it is " +
               std::to_string(truth);
      });
    };
    note(s.name() + " is " + v1::SandboxState_Name(s.state()));
    result_.autosized += !s.operation().cause().empty();
    if (s.memory().has_autosize())
      require(real.boot_bytes + real.plugged_bytes <= s.memory().autosize().ceiling_bytes(),
              [&] { return s.name() + ": automatic memory has gone above its ceiling"; });
    if (has_vm(s.state())) {
      with_vm.insert(s.id());
      require(real.state == (s.state() == v1::SANDBOX_STATE_RUNNING ? v1::VM_STATE_RUNNING : v1::VM_STATE_PAUSED), [&] {
        return s.name() + ": " + v1::SandboxState_Name(s.state()) + ", and its VM is " + v1::VmState_Name(real.state);
      });
      says("boot bytes", s.memory().boot_bytes(), real.boot_bytes);
      says("plugged bytes", s.memory().plugged_bytes(), real.plugged_bytes);
      says("plugged vCPUs", s.vcpus().plugged(), real.plugged_vcpus);
      if (s.state() == v1::SANDBOX_STATE_RUNNING) {
        require(s.agent_connected() || !real.agent_answers,
                [&] { return s.name() + ": its agent answers, and is not connected"; });
        if (s.agent_connected()) {
          says("guest bytes", s.memory().guest_bytes(), real.boot_bytes + real.guest_plugged_bytes);
          says("online vCPUs", s.vcpus().online(), real.online_vcpus);
        }
      }
    } else {
      require(s.state() == v1::SANDBOX_STATE_STOPPED || s.state() == v1::SANDBOX_STATE_FAILED,
              [&] { return s.name() + ": it rests in " + v1::SandboxState_Name(s.state()); });
      require(real.state == v1::VM_STATE_ABSENT, [&] {
        return s.name() + ": " + v1::SandboxState_Name(s.state()) + ", and its VM is " + v1::VmState_Name(real.state);
      });
      require(!s.stop_reason().empty(), [&] { return s.name() + ": no reason for its end"; });
    }
    const auto k = known_.find(s.name());
    if (k == known_.end()) {
      problem(s.name() + ": listed, and nobody was told of it");
      continue;
    }
    if (!k->second.last_operation.empty()) {
      v1::GetOperation ask_again;
      ask_again.set_operation_id(k->second.last_operation);
      ask_again.set_sandbox(s.id());
      ask<v1::Operation>(
          "get " + ask_again.operation_id(), 60s,
          [&](const pending_answer<v1::Operation>& a) {
            require(a.value() != nullptr,
                    [&] { return s.name() + ": its operation cannot be read again: " + text_of(a.error()); });
            require(!a.value() || a->state() != v1::OPERATION_STATE_RUNNING || s.state() == v1::SANDBOX_STATE_PAUSED,
                    [&] {
                      return s.name() + ": " + a->id() + " runs for ever in a sandbox that is " +
                             v1::SandboxState_Name(s.state());
                    });
          },
          ask_again);
      run_->sys().run_for(10s);
      collect();
    }
    if (options_.undisturbed && k->second.answered && !k->second.ending && !k->second.hurt) {
      const auto& known_sandbox = k->second;
      require(has_vm(s.state()), [&] {
        return s.name() + ": it was answered, nobody ended it, and it is " + v1::SandboxState_Name(s.state()) + " (" +
               s.stop_reason() + ")";
      });
      says("boot bytes", s.memory().boot_bytes(), known_sandbox.boot_bytes);
      const auto& last = known_sandbox.last;
      if (has_vm(s.state()) && !known_sandbox.disturbed && !known_sandbox.last_operation.empty()) {
        require(last.id() == known_sandbox.last_operation, [&] { return s.name() + ": its last operation was lost"; });
        // A shrink that no whole DIMMs make moves nothing, and says so.
        const bool no_dimm_fits = real.dimms > 0 && real.boot_bytes + real.plugged_bytes > last.memory_asked_bytes();
        require(last.state() == v1::OPERATION_STATE_CONVERGED || last.state() == v1::OPERATION_STATE_PARTLY ||
                    no_dimm_fits,
                [&] {
                  return s.name() + ": its last operation is " + v1::OperationState_Name(last.state()) +
                         " without any fault: " + last.why();
                });
        if (last.state() == v1::OPERATION_STATE_CONVERGED && last.memory_asked_bytes() > 0)
          says("memory", last.memory_target_bytes(), real.boot_bytes + real.plugged_bytes);
      }
    }
  }
  check_budget();
  for (const auto& [name, k] : known_) {
    const bool listed = std::any_of(list.sandboxes().begin(), list.sandboxes().end(),
                                    [&, n = name](const auto& s) { return s.name() == n; });
    if (k.answered && !k.ending && !k.removed)
      require(listed, [&, n = name] { return n + ": it was answered, nobody removed it, and it is lost"; });
    if (k.removed)
      require(!listed, [&, n = name] { return n + ": removed, and still listed"; });
    if (k.must_exist && !k.ending && !k.removed)
      require(listed == *k.must_exist || (*k.must_exist && !options_.undisturbed), [&, n = name] {
        return n + (listed ? ": its creation was never answered, and it is there"
                           : ": the journal had it running, and it is lost");
      });
  }
  for (const auto& id : house_.world->machines())
    require(with_vm.contains(id), [&] { return "VM " + id + " belongs to no running sandbox"; });
}

void script::remove_everything() {
  std::vector<std::string> names;
  ask<v1::SandboxList>(
      "list", 60s,
      [&](const pending_answer<v1::SandboxList>& a) {
        if (a.value())
          for (const auto& s : a.value()->sandboxes())
            names.push_back(s.name());
      },
      v1::ListSandboxes{});
  run_->sys().run_for(60s);
  collect();
  for (const auto& name : names) {
    v1::RemoveSandbox m;
    m.set_sandbox(name);
    m.set_force(true);
    ask<v1::SandboxStatus>(
        "rm --force " + name, longest_answer,
        [this, name](const pending_answer<v1::SandboxStatus>& a) {
          require(a.value() != nullptr, [&] { return "rm --force " + name + ": " + text_of(a.error()); });
        },
        m);
  }
  settle();
  check_budget();
  for (const auto& id : house_.world->machines())
    problem("VM " + id + " is left");
  require(house_.world->verbs_under_way() == 0, [&] { return "verbs are left under way in the world"; });
  require(house_.world->connections() == 0,
          [&] { return std::to_string(house_.world->connections()) + " connections are left"; });
  for (const auto& path : house_.directories)
    problem("directory " + path + " is left");
  const auto replayed = house_.journal->replay();
  for (const auto& r : std::get<v1::JournalContents>(replayed).sandboxes())
    problem(r.name() + " is left in the journal");
}

} // namespace caisson::tests
