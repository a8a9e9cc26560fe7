#include "tests/actors/hotplug/scene.hpp"

// Automatic memory in the actor: what it looks at, whom it tells its wish, and the limit that holds the workload until
// memory is there.

namespace caisson::tests {
namespace {

/// Stands for the sandbox: makes an operation of every wish, or refuses it.
struct wisher {
  std::vector<v1::ResizeSandbox> heard;
  std::vector<v1::HotplugOutcome> ended;
  bool refuses = false;
  memory_hotplug_actor memory;
};

resize_actor::behavior_type wisher_body(resize_actor::pointer self, std::shared_ptr<wisher> w) {
  return {[self, w](const v1::ResizeSandbox& m) -> caf::result<v1::Operation> {
    w->heard.push_back(m);
    if (w->refuses)
      return make_error(ec::host_resources, "the host has no more");
    v1::SetMemoryTarget target;
    target.set_operation_id("op" + std::to_string(w->heard.size()));
    target.set_target_bytes(m.memory_bytes());
    self->request(w->memory, std::chrono::seconds{3600}, target)
        .then([w](const v1::HotplugOutcome& out) { w->ended.push_back(out); }, [](caf::error&) {});
    v1::Operation op;
    op.set_id(target.operation_id());
    op.set_state(v1::OPERATION_STATE_RUNNING);
    return op;
  }};
}

struct autosize_scene : hotplug_scene {
  std::shared_ptr<wisher> sandbox = std::make_shared<wisher>();

  static v1::AutosizePolicy policy() {
    v1::AutosizePolicy p;
    p.set_enabled(true);
    p.set_floor_bytes(512 * mib);
    p.set_ceiling_bytes(2 * gib);
    p.set_step_bytes(128 * mib);
    p.set_headroom_bytes(128 * mib);
    p.set_cool_down_ms(10'000);
    return p;
  }

  void follow(bool pressure = true) {
    vm->features.set_workload_cgroup(true);
    vm->features.set_pressure(pressure);
    use_virtio();
    wishes = sys.track(sys.system().spawn(wisher_body, sandbox));
    spawn();
    sandbox->memory = memory;
    auto ready = vm->ready();
    *ready.mutable_autosize() = policy();
    auto r = sys.ask<v1::MemoryStatus>(memory, ready);
    sys.drain();
    ASSERT_TRUE(r.value());
    EXPECT_TRUE(r->autosize().enabled());
  }

  void TearDown() override {
    hotplug_scene::TearDown();
    sandbox->memory = nullptr;
    wishes = nullptr;
  }

  void press() {
    v1::MemoryPressure p;
    p.set_stalled_us(100'000);
    *p.mutable_memory() = vm->facts().memory();
    sys.tell(memory, p);
  }

  std::uint64_t has() const { return vm->boot + vm->plugged(); }
};

TEST_F(autosize_scene, a_workload_that_stalls_gets_memory_and_then_a_higher_limit) {
  follow();
  sys.run_for(2s);
  const auto low = vm->workload_high;
  EXPECT_EQ(low, 390 * mib - 450 * mib / 8) << "what the guest has, less its own use and a reserve";
  vm->workload = low; // as far as it may
  press();
  sys.run_for(2s);
  ASSERT_FALSE(sandbox->heard.empty());
  EXPECT_TRUE(sandbox->heard[0].autosize());
  EXPECT_NE(sandbox->heard[0].cause().find("the workload stalls"), std::string::npos) << sandbox->heard[0].cause();
  EXPECT_GT(has(), 512 * mib);
  EXPECT_GE(vm->workload_high, low + (has() - 512 * mib) * 9 / 10);
  EXPECT_GE(vm->facts().memory().mem_available_bytes(), 128 * mib);
}

TEST_F(autosize_scene, without_pressure_notices_it_looks_more_often) {
  follow(false);
  vm->workload = 350 * mib;
  sys.run_for(1s);
  EXPECT_GT(has(), 512 * mib);
}

TEST_F(autosize_scene, a_peak_comes_and_goes) {
  follow();
  for (vm->workload = 0; vm->workload < 1024 * mib; sys.run_for(1s))
    vm->workload = std::min({vm->workload + 100 * mib, vm->workload_high, 1024 * mib});
  sys.run_for(5s);
  const auto peak = has();
  EXPECT_GE(peak, 1024 * mib + 128 * mib);
  EXPECT_LE(peak, 2 * gib);
  vm->workload = 20 * mib;
  sys.run_for(5s);
  EXPECT_EQ(has(), peak) << "not before the cool-down";
  sys.run_for(60s);
  EXPECT_LE(has(), 640 * mib);
  const auto changes = sandbox->heard.size();
  sys.run_for(600s);
  EXPECT_EQ(sandbox->heard.size(), changes) << "it rests";
}

TEST_F(autosize_scene, a_guest_that_cries_for_ever_gets_its_ceiling_and_no_more) {
  follow();
  vm->workload = 400 * mib;
  for (int i = 0; i < 2'000; ++i) {
    press();
    sys.run_for(50ms);
    vm->workload = 330 * mib + vm->online - vm->online / 64; // whatever there is, it takes
    ASSERT_LE(has(), 2 * gib);
  }
  EXPECT_EQ(has(), 2 * gib);
  EXPECT_LE(sandbox->heard.size(), 20u);
}

TEST_F(autosize_scene, an_explicit_target_ends_it_and_the_limit_goes) {
  follow();
  sys.run_for(2s);
  EXPECT_GT(vm->workload_high, 0u);
  sys.tell(memory, v1::AutosizePolicy{});
  sys.run_for(1s);
  EXPECT_EQ(vm->workload_high, 0u);
  vm->workload = 380 * mib;
  press();
  sys.run_for(60s);
  EXPECT_TRUE(sandbox->heard.empty());
  sys.tell(memory, policy());
  sys.run_for(5s);
  EXPECT_FALSE(sandbox->heard.empty());
}

TEST_F(autosize_scene, what_the_host_refuses_is_asked_again_at_a_bounded_rate) {
  follow();
  sandbox->refuses = true;
  vm->workload = 350 * mib;
  for (int i = 0; i < 600; ++i) {
    press();
    sys.run_for(500ms);
  }
  EXPECT_GE(sandbox->heard.size(), 8u);
  EXPECT_LE(sandbox->heard.size(), 14u);
  sandbox->refuses = false;
  sys.run_for(61s);
  EXPECT_GT(has(), 512 * mib);
}

TEST_F(autosize_scene, a_silent_agent_and_a_dead_vm_end_quietly) {
  follow();
  vm->agent_silent = true;
  sys.run_for(60s);
  vm->agent_silent = false;
  vm->workload = 350 * mib;
  sys.run_for(30s);
  EXPECT_GT(has(), 512 * mib) << "it looks again";
  vm->die();
  const auto heard_then = sandbox->heard.size();
  sys.run_for(600s);
  EXPECT_EQ(sandbox->heard.size(), heard_then);
}

} // namespace
} // namespace caisson::tests
