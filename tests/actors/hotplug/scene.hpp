#pragma once

#include <gtest/gtest.h>

#include <cstdlib>

#include "actors/memory_hotplug/memory_hotplug.hpp"
#include "actors/vcpu_hotplug/vcpu_hotplug.hpp"
#include "tests/support/hotplug_doubles.hpp"

namespace caisson::tests {

using namespace std::chrono_literals;

/// CAISSON_SEED runs everything in another order; every test must hold in all of them.
inline std::uint64_t seed_of_run() {
  const char* given = std::getenv("CAISSON_SEED");
  return given ? std::strtoull(given, nullptr, 10) : 7;
}

/// A model VM, its doubles and the two actors, in virtual time.
struct hotplug_scene : testing::Test {
  deterministic_system sys{seed_of_run()};
  model_ptr vm = std::make_shared<model_vm>(sys);
  std::shared_ptr<heard<v1::MemoryStatus, v1::VcpuStatus>> told =
      std::make_shared<heard<v1::MemoryStatus, v1::VcpuStatus>>();
  backend_actor backend;
  guest_agent_actor agent;
  resize_actor wishes; ///< of automatic memory; nobody unless a test has one
  memory_hotplug_actor memory;
  vcpu_hotplug_actor vcpus;

  void TearDown() override {
    sys.end_actors();
    // The model and the actors' handles hold each other.
    vm->emit = nullptr;
    vm->poke_agent = nullptr;
    vm->before_verb = nullptr;
  }

  void spawn() {
    backend = sys.track(sys.system().spawn(double_backend, vm));
    agent = sys.track(sys.system().spawn(double_agent, vm));
    vm->poke_agent = [this] { sys.tell(agent, std::uint64_t{0}, v1::GuestControl{}); };
    auto listener = sys.listener<hotplug_listener>(told);
    memory_hotplug::settings m;
    m.sandbox_id = "s1";
    m.wishes = wishes;
    memory = sys.track(sys.system().spawn(memory_hotplug::memory_hotplug, m, backend, agent, listener));
    vcpu_hotplug::settings c;
    c.sandbox_id = "s1";
    vcpus = sys.track(sys.system().spawn(vcpu_hotplug::vcpu_hotplug, c, backend, agent, listener));
    vm->emit = [this](v1::VmEvent e) {
      sys.tell(memory, e);
      sys.tell(vcpus, e);
    };
  }

  /// Spawns and makes ready.
  void up() {
    spawn();
    auto r = sys.ask<v1::MemoryStatus>(memory, vm->ready());
    auto c = sys.ask<v1::VcpuStatus>(vcpus, vm->ready());
    sys.drain();
    ASSERT_TRUE(r.value());
    ASSERT_TRUE(c.value());
  }

  void use_dimms(std::initializer_list<std::uint64_t> plugged_mib = {}) {
    vm->method = v1::MEMORY_METHOD_DIMM;
    int n = 0;
    for (auto size : plugged_mib) {
      v1::Dimm d;
      d.set_id("old-" + std::to_string(++n));
      d.set_size_bytes(size * mib);
      vm->dimms.push_back(d);
    }
    vm->online = vm->plugged();
  }

  void use_virtio(std::uint64_t plugged = 0) {
    vm->method = v1::MEMORY_METHOD_VIRTIO_MEM;
    vm->virtio_plugged = vm->virtio_requested = vm->online = plugged;
  }

  pending_answer<v1::HotplugOutcome> set_memory(std::uint64_t bytes, const std::string& id = "op1",
                                                std::chrono::milliseconds deadline = 0ms, bool plan_only = false) {
    v1::SetMemoryTarget m;
    m.set_operation_id(id);
    m.set_target_bytes(bytes);
    m.set_deadline_ms(static_cast<std::uint32_t>(deadline.count()));
    m.set_plan_only(plan_only);
    return sys.ask<v1::HotplugOutcome>(memory, m);
  }

  pending_answer<v1::HotplugOutcome> set_vcpus(std::uint32_t n, const std::string& id = "op1", bool plan_only = false) {
    v1::SetVcpuTarget m;
    m.set_operation_id(id);
    m.set_target(n);
    m.set_plan_only(plan_only);
    return sys.ask<v1::HotplugOutcome>(vcpus, m);
  }

  pending_answer<v1::HotplugOutcome> set_vcpus_milli(std::uint32_t milli, const std::string& id = "op1",
                                                     bool plan_only = false) {
    v1::SetVcpuTarget m;
    m.set_operation_id(id);
    m.set_target(milli / 1000 + (milli % 1000 > 0));
    m.set_target_milli(milli);
    m.set_plan_only(plan_only);
    return sys.ask<v1::HotplugOutcome>(vcpus, m);
  }

  pending_answer<v1::MemoryStatus> cancel_memory(const std::string& id) {
    v1::CancelOperation m;
    m.set_operation_id(id);
    return sys.ask<v1::MemoryStatus>(memory, m);
  }

  v1::MemoryStatus status(bool refresh = false) {
    v1::ReadHotplug m;
    m.set_refresh(refresh);
    auto a = sys.ask<v1::MemoryStatus>(memory, m);
    sys.run_until([&] { return a.done(); });
    return *a.operator->();
  }

  /// Lets time pass until the answer is there; how long that took.
  template <class T>
  std::chrono::milliseconds until(const pending_answer<T>& a, std::chrono::nanoseconds limit = 30min) {
    const auto from = sys.now();
    sys.run_until([&] { return a.done(); }, limit);
    return std::chrono::duration_cast<std::chrono::milliseconds>(sys.now() - from);
  }
};

} // namespace caisson::tests
