#include "tests/actors/hotplug/scene.hpp"

namespace caisson::tests {
namespace {

TEST_F(hotplug_scene, nothing_is_planned_before_the_guest_has_booted) {
  spawn();
  auto a = set_memory(gib);
  sys.drain();
  EXPECT_EQ(code_of(a.error()), ec::not_running);
}

TEST_F(hotplug_scene, bad_targets_are_refused_before_anything_is_done) {
  up();
  struct {
    std::uint64_t bytes;
    ec code;
    const char* words;
  } cases[] = {{0, ec::invalid_argument, "0 bytes"},
               {256 * mib, ec::out_of_range, "default_memory"},
               {9 * gib, ec::out_of_range, "default_maxmemory"},
               {std::uint64_t{1} << 60, ec::out_of_range, "above everything"}};
  for (auto& c : cases) {
    auto a = set_memory(c.bytes);
    sys.drain();
    EXPECT_EQ(code_of(a.error()), c.code);
    EXPECT_NE(text_of(a.error()).find(c.words), std::string::npos) << text_of(a.error());
  }
  EXPECT_TRUE(vm->verbs.empty());
  EXPECT_EQ(status().generation(), 0u);
  EXPECT_EQ(status().target_bytes(), 512 * mib);
}

TEST_F(hotplug_scene, a_target_between_two_granules_is_rounded_up_and_both_are_reported) {
  use_dimms();
  up();
  auto a = set_memory(700 * mib);
  until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(a->memory().target_bytes(), 768 * mib);
  EXPECT_EQ(a->plan().memory_asked_bytes(), 700 * mib);
  EXPECT_EQ(a->plan().memory_target_bytes(), 768 * mib);
  ASSERT_EQ(a->plan().notes_size(), 1);
  EXPECT_NE(a->plan().notes(0).find("rounded up"), std::string::npos);
}

TEST_F(hotplug_scene, a_plan_changes_nothing) {
  up();
  auto a = set_memory(gib + 1, "dry", 0ms, true);
  until(a);
  ASSERT_TRUE(a.value()) << text_of(a.error());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_PLANNED);
  ASSERT_EQ(a->plan().steps_size(), 1);
  EXPECT_EQ(a->plan().steps(0).bytes(), 514 * mib);
  EXPECT_EQ(a->plan().notes_size(), 1);
  EXPECT_TRUE(vm->verbs.empty());
  EXPECT_EQ(status().generation(), 0u);
  EXPECT_EQ(status().target_bytes(), 512 * mib);
}

TEST_F(hotplug_scene, a_guest_that_lacks_what_is_needed_is_told_by_the_option_s_name) {
  struct {
    v1::MemoryMethod method;
    void (*take)(v1::GuestFeatures&);
    const char* option;
    std::uint64_t target;
  } cases[] = {
      {v1::MEMORY_METHOD_DIMM, [](v1::GuestFeatures& f) { f.set_acpi_memory_hotplug(false); },
       "CONFIG_ACPI_HOTPLUG_MEMORY", gib},
      {v1::MEMORY_METHOD_VIRTIO_MEM, [](v1::GuestFeatures& f) { f.set_virtio_mem(false); }, "CONFIG_VIRTIO_MEM", gib},
      {v1::MEMORY_METHOD_DIMM, [](v1::GuestFeatures& f) { f.set_memory_hotremove(false); }, "CONFIG_MEMORY_HOTREMOVE",
       512 * mib}};
  for (auto& c : cases) {
    hotplug_scene::TearDown();
    vm = std::make_shared<model_vm>(sys);
    c.method == v1::MEMORY_METHOD_DIMM ? use_dimms({256}) : use_virtio();
    spawn();
    auto ready = vm->ready();
    c.take(*ready.mutable_features());
    sys.ask<v1::MemoryStatus>(memory, ready);
    sys.drain();
    for (bool plan_only : {true, false}) {
      auto a = set_memory(c.target, "op", 0ms, plan_only);
      until(a);
      EXPECT_EQ(code_of(a.error()), ec::unsupported);
      EXPECT_NE(text_of(a.error()).find(c.option), std::string::npos) << text_of(a.error());
    }
    EXPECT_TRUE(vm->verbs.empty());
    EXPECT_EQ(status().target_bytes(), vm->boot + vm->plugged()) << "a refused target is no target";
  }
}

TEST_F(hotplug_scene, a_vmm_that_lacks_the_method_says_why) {
  spawn();
  auto ready = vm->ready();
  ready.mutable_capabilities()->set_virtio_mem(false);
  ready.mutable_capabilities()->set_virtio_mem_why_not("this build has no virtio-mem device");
  sys.ask<v1::MemoryStatus>(memory, ready);
  sys.drain();
  auto a = set_memory(gib);
  until(a);
  EXPECT_EQ(code_of(a.error()), ec::unsupported);
  EXPECT_NE(text_of(a.error()).find("this build has no virtio-mem device"), std::string::npos);
}

TEST_F(hotplug_scene, no_slot_left_is_said_with_what_to_do) {
  vm->slots = 2;
  use_dimms({128, 128});
  up();
  auto a = set_memory(gib);
  until(a);
  EXPECT_EQ(code_of(a.error()), ec::conflict);
  EXPECT_NE(text_of(a.error()).find("2 of 2"), std::string::npos) << text_of(a.error());
  EXPECT_NE(text_of(a.error()).find("memory_slots"), std::string::npos);
}

TEST_F(hotplug_scene, a_paused_sandbox_is_not_resized) {
  up();
  vm->vm_state = v1::VM_STATE_PAUSED;
  auto a = set_memory(gib);
  until(a);
  EXPECT_EQ(code_of(a.error()), ec::not_running);
  EXPECT_TRUE(vm->verbs.empty());
}

TEST_F(hotplug_scene, the_newest_target_wins) {
  vm->takes = 2s;
  up();
  auto a = set_memory(gib, "op1");
  sys.run_for(500ms);
  auto b = set_memory(2 * gib, "op2");
  sys.drain();
  auto c = set_memory(3 * gib, "op3");
  sys.drain();
  ASSERT_TRUE(b.value()) << "one that waits and is superseded ends at once";
  EXPECT_EQ(b->state(), v1::OPERATION_STATE_CANCELLED);
  EXPECT_NE(b->why().find("superseded by operation op3"), std::string::npos) << b->why();
  EXPECT_FALSE(a.done()) << "the step that is under way is finished";
  until(c);
  ASSERT_TRUE(a.value());
  // Its step reached its target, so that is what it says.
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  ASSERT_TRUE(c.value());
  EXPECT_EQ(c->state(), v1::OPERATION_STATE_CONVERGED) << c->why();
  EXPECT_EQ(c->memory().plugged_bytes(), 3 * gib - 512 * mib);
  EXPECT_EQ(c->memory().generation(), 3u);
}

TEST_F(hotplug_scene, a_superseded_change_stops_between_two_steps) {
  vm->boot = 128 * mib;
  vm->boot_total = 100 * mib;
  vm->takes = 2s;
  up();
  auto a = set_memory(8 * gib, "op1");
  sys.run_for(500ms);
  auto b = set_memory(512 * mib, "op2");
  until(b);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CANCELLED);
  EXPECT_NE(a->why().find("superseded by operation op2"), std::string::npos) << a->why();
  EXPECT_EQ(b->state(), v1::OPERATION_STATE_CONVERGED) << b->why();
  EXPECT_EQ(vm->plugged(), 384 * mib);
}

TEST_F(hotplug_scene, a_refused_target_supersedes_nothing) {
  vm->takes = 2s;
  up();
  auto a = set_memory(gib, "op1");
  sys.run_for(500ms);
  auto b = set_memory(99 * gib, "op2");
  auto plan = set_memory(2 * gib, "op3", 0ms, true);
  sys.drain();
  EXPECT_EQ(code_of(b.error()), ec::out_of_range);
  ASSERT_TRUE(plan.value());
  until(a);
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED);
  EXPECT_EQ(a->memory().generation(), 1u);
}

TEST_F(hotplug_scene, a_cancelled_change_ends_after_its_step_and_is_wanted_no_more) {
  vm->boot = 128 * mib;
  vm->boot_total = 100 * mib;
  vm->takes = 2s;
  up();
  auto a = set_memory(8 * gib, "op1");
  sys.run_for(500ms);
  auto c = cancel_memory("op1");
  sys.drain();
  ASSERT_TRUE(c.value());
  until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CANCELLED);
  EXPECT_EQ(a->memory().plugged_bytes(), 512 * mib);
  EXPECT_EQ(a->memory().target_bytes(), 640 * mib);
  EXPECT_EQ(vm->verbs.size(), 1u);
  auto again = cancel_memory("op1");
  sys.drain();
  EXPECT_EQ(code_of(again.error()), ec::not_found);
}

TEST_F(hotplug_scene, of_a_change_that_failed_nothing_stays_wanted) {
  for (const bool dimm : {true, false}) {
    hotplug_scene::TearDown();
    vm = std::make_shared<model_vm>(sys);
    dimm ? use_dimms({256}) : use_virtio(256 * mib);
    up();
    vm->agent_silent = true;
    auto a = set_memory(4 * gib);
    until(a);
    ASSERT_TRUE(a.value()) << text_of(a.error());
    EXPECT_EQ(a->state(), v1::OPERATION_STATE_FAILED);
    EXPECT_TRUE(vm->verbs.empty());
    EXPECT_EQ(a->memory().target_bytes(), 768 * mib);
    EXPECT_EQ(status().target_bytes(), 768 * mib);
  }
}

TEST_F(hotplug_scene, what_the_guest_may_go_on_following_stays_wanted) {
  vm->virtio_most = 0;
  up();
  auto a = set_memory(gib);
  until(a);
  ASSERT_TRUE(a.value()) << text_of(a.error());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_FAILED);
  EXPECT_EQ(a->memory().plugged_bytes(), 0u);
  ASSERT_EQ(vm->virtio_requested, 512 * mib);
  EXPECT_EQ(a->memory().target_bytes(), gib);
}

TEST_F(hotplug_scene, a_change_whose_end_the_vmm_does_not_tell_keeps_its_target) {
  up();
  vm->silent_looks = 1'000;
  auto a = set_memory(gib);
  until(a);
  ASSERT_TRUE(a.value()) << text_of(a.error());
  EXPECT_EQ(a->error().code(), "outcome_unknown");
  EXPECT_EQ(a->memory().target_bytes(), gib);
}

TEST_F(hotplug_scene, a_target_refused_after_one_that_failed_leaves_what_there_is) {
  up();
  vm->agent_silent = true;
  auto a = set_memory(4 * gib, "op1");
  sys.run_for(500ms);
  auto b = set_memory(2 * gib, "op2");
  sys.drain();
  vm->agent_silent = false;
  vm->vm_state = v1::VM_STATE_PAUSED;
  until(a);
  until(b);
  ASSERT_TRUE(a.value()) << text_of(a.error());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CANCELLED);
  EXPECT_EQ(code_of(b.error()), ec::not_running);
  EXPECT_EQ(status().target_bytes(), 512 * mib);
}

TEST_F(hotplug_scene, a_waiting_change_can_be_cancelled) {
  vm->takes = 2s;
  up();
  auto a = set_memory(gib, "op1");
  sys.run_for(500ms);
  auto b = set_memory(2 * gib, "op2");
  sys.drain();
  cancel_memory("op2");
  sys.drain();
  ASSERT_TRUE(b.value());
  EXPECT_EQ(b->state(), v1::OPERATION_STATE_CANCELLED);
  until(a);
  sys.run_for(10s);
  EXPECT_EQ(vm->plugged(), 512 * mib);
  EXPECT_EQ(status().target_bytes(), gib);
}

TEST_F(hotplug_scene, everybody_is_answered_when_the_actor_ends) {
  for (auto reason : {caf::exit_reason::user_shutdown, caf::exit_reason::kill}) {
    hotplug_scene::TearDown();
    vm = std::make_shared<model_vm>(sys);
    vm->takes = 10s;
    up();
    auto a = set_memory(gib, "op1");
    sys.run_for(500ms);
    auto b = set_memory(2 * gib, "op2");
    vm->agent_silent = true;
    v1::ReadHotplug read;
    read.set_refresh(true);
    auto c = sys.ask<v1::MemoryStatus>(memory, read);
    auto d = set_memory(2 * gib, "op3", 0ms, true);
    sys.drain();
    sys.stop(memory, reason);
    sys.drain();
    EXPECT_EQ(code_of(a.error()), ec::not_running);
    EXPECT_EQ(code_of(b.error()), ec::not_running);
    EXPECT_TRUE(c.done());
    EXPECT_TRUE(d.done());
  }
}

TEST_F(hotplug_scene, a_refresh_asks_both_and_answers_though_the_guest_is_silent) {
  up();
  vm->virtio_plugged = 128 * mib;
  vm->agent_silent = true;
  EXPECT_EQ(status().plugged_bytes(), 0u);
  EXPECT_EQ(status(true).plugged_bytes(), 128 * mib);
}

TEST_F(hotplug_scene, after_a_recovery_figures_and_target_go_on) {
  use_virtio(512 * mib);
  vm->virtio_requested = gib;
  spawn();
  auto ready = vm->ready();
  ready.set_guest_boot_mem_total_bytes(vm->boot_total);
  ready.mutable_facts()->mutable_memory()->set_boot_mem_total_bytes(0);
  ready.set_memory_target_bytes(1536 * mib);
  ready.set_generation(7);
  auto r = sys.ask<v1::MemoryStatus>(memory, ready);
  sys.drain();
  EXPECT_EQ(r->target_bytes(), 1536 * mib);
  EXPECT_EQ(r->guest_bytes(), gib);
  EXPECT_EQ(r->generation(), 7u);
  auto a = set_memory(1536 * mib);
  until(a);
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(a->memory().generation(), 8u);
}

TEST_F(hotplug_scene, a_new_dimm_never_takes_the_name_of_one_that_is_there) {
  use_dimms({128});
  vm->dimms[0].set_id("dimm-1-0"); // of an engine that died before its generation was kept
  up();
  auto a = set_memory(512 * mib + 256 * mib);
  until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(vm->dimms.size(), 2u);
}

TEST_F(hotplug_scene, without_an_agent_the_vmms_word_stands_alone_until_the_guest_answers) {
  use_virtio(512 * mib);
  spawn();
  vm->agent_silent = true;
  auto ready = vm->ready();
  ready.clear_facts();
  ready.clear_features();
  ready.set_guest_boot_mem_total_bytes(vm->boot_total);
  auto r = sys.ask<v1::MemoryStatus>(memory, ready);
  auto c = sys.ask<v1::VcpuStatus>(vcpus, ready);
  sys.drain();
  EXPECT_EQ(r->plugged_bytes(), 512 * mib);
  EXPECT_EQ(r->guest_bytes(), 0u);
  EXPECT_EQ(c->plugged(), 1u);
  auto dry = set_memory(2 * gib, "dry", 0ms, true);
  until(dry);
  EXPECT_EQ(code_of(dry.error()), ec::guest_unresponsive) << text_of(dry.error());
  vm->agent_silent = false;
  sys.ask<v1::MemoryStatus>(memory, vm->ready());
  sys.drain();
  auto a = set_memory(2 * gib);
  until(a);
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
}

TEST_F(hotplug_scene, a_flood_of_events_costs_few_looks) {
  up();
  for (int i = 0; i < 1000; ++i)
    vm->event(v1::VmEvent::KIND_MEMORY_SIZE, "", 0);
  const auto before = sys.steps();
  sys.run_for(1s);
  EXPECT_LT(sys.steps() - before, 2'100u);
}

} // namespace
} // namespace caisson::tests
