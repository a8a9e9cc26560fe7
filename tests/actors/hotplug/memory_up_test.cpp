#include "tests/actors/hotplug/scene.hpp"

namespace caisson::tests {
namespace {

using strings = std::vector<std::string>;

TEST_F(hotplug_scene, virtio_mem_grows_to_what_was_asked_and_the_guest_confirms_it) {
  up();
  auto a = set_memory(2 * gib);
  auto took = until(a);
  ASSERT_TRUE(a.value()) << text_of(a.error());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(a->memory().boot_bytes(), 512 * mib);
  EXPECT_EQ(a->memory().plugged_bytes(), 1536 * mib);
  EXPECT_EQ(a->memory().guest_bytes(), 2 * gib);
  EXPECT_EQ(a->memory().target_bytes(), 2 * gib);
  EXPECT_EQ(a->memory().generation(), 1u);
  EXPECT_EQ(vm->verbs, strings{"virtio 1536"});
  EXPECT_LT(took, 1s);
  ASSERT_FALSE(told->of<v1::MemoryStatus>().empty());
  EXPECT_EQ(told->of<v1::MemoryStatus>().back().guest_bytes(), 2 * gib);
}

TEST_F(hotplug_scene, dimms_are_plugged_together_and_confirmed_once) {
  use_dimms();
  up();
  auto a = set_memory(512 * mib + gib);
  until(a);
  ASSERT_TRUE(a.value()) << text_of(a.error());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(a->memory().guest_bytes(), 1536 * mib);
  EXPECT_EQ(a->memory().slots_used(), 4u);
  EXPECT_EQ(a->memory().slots_total(), 10u);
  EXPECT_EQ(vm->verbs, (strings{"plug dimm-1-0 512", "plug dimm-1-1 256", "plug dimm-1-2 128", "plug dimm-1-3 128"}));
  EXPECT_EQ(vm->agent_asked.size(), 1u);
  ASSERT_EQ(a->plan().steps_size(), 1);
  EXPECT_EQ(a->plan().steps(0).dimms(), 4u);
}

TEST_F(hotplug_scene, a_small_guest_grows_in_several_steps_of_one_change) {
  vm->boot = 128 * mib;
  vm->boot_total = 100 * mib;
  vm->used = 60 * mib; // 40 MiB available: 8 of them for a memory map, that is 512 MiB
  up();
  auto a = set_memory(8 * gib);
  until(a);
  ASSERT_TRUE(a.value()) << text_of(a.error());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(a->memory().guest_bytes(), 8 * gib);
  EXPECT_EQ(vm->verbs, (strings{"virtio 512", "virtio 8064"}));
  EXPECT_EQ(a->plan().steps_size(), 2);
}

TEST_F(hotplug_scene, a_guest_that_brings_only_part_online_is_reported_as_it_is) {
  use_dimms();
  vm->online_most = 512 * mib;
  up();
  auto a = set_memory(512 * mib + gib);
  auto took = until(a);
  ASSERT_TRUE(a.value()) << text_of(a.error());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_PARTLY);
  EXPECT_EQ(a->memory().plugged_bytes(), gib);
  EXPECT_EQ(a->memory().guest_bytes(), gib);
  EXPECT_NE(a->why().find("4 memory blocks"), std::string::npos) << a->why();
  EXPECT_NE(a->why().find("1 GiB"), std::string::npos) << a->why();
  EXPECT_LT(took, 60s);

  // The same target once more: nothing is left to plug, but a guest that has come round is confirmed.
  vm->online_most = UINT64_MAX;
  sys.after(5s, [this] { vm->guest_takes(); });
  const auto verbs = vm->verbs.size();
  auto b = set_memory(512 * mib + gib, "op2");
  until(b);
  ASSERT_TRUE(b.value());
  EXPECT_EQ(b->state(), v1::OPERATION_STATE_CONVERGED) << b->why();
  EXPECT_EQ(vm->verbs.size(), verbs);
}

TEST_F(hotplug_scene, virtio_mem_that_stops_half_way_is_partly_with_the_vmms_figure) {
  vm->virtio_most = 300 * mib;
  up();
  auto a = set_memory(gib);
  until(a);
  ASSERT_TRUE(a.value()) << text_of(a.error());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_PARTLY);
  EXPECT_EQ(a->memory().plugged_bytes(), 300 * mib);
  EXPECT_EQ(a->memory().target_bytes(), gib);
}

TEST_F(hotplug_scene, a_lost_reply_is_read_back_and_nothing_is_plugged_twice) {
  for (auto f : {fault::lose_reply, fault::unknown_done, fault::lose_request, fault::unknown_not}) {
    for (auto method : {v1::MEMORY_METHOD_DIMM, v1::MEMORY_METHOD_VIRTIO_MEM}) {
      hotplug_scene::TearDown();
      vm = std::make_shared<model_vm>(sys);
      vm->method = method;
      vm->faults = {f};
      up();
      auto a = set_memory(768 * mib);
      until(a);
      ASSERT_TRUE(a.value()) << text_of(a.error());
      EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << static_cast<int>(f) << ": " << a->why();
      EXPECT_EQ(a->memory().plugged_bytes(), 256 * mib);
      const bool done = f == fault::lose_reply || f == fault::unknown_done;
      if (method == v1::MEMORY_METHOD_VIRTIO_MEM)
        EXPECT_EQ(vm->verbs.size(), done ? 1u : 2u);
      else
        EXPECT_EQ(vm->verbs[1] == vm->verbs[0], !done)
            << "a step is sent again only where it was not done, as the same DIMM";
    }
  }
}

TEST_F(hotplug_scene, a_step_that_the_vmm_takes_never_ends_in_bounded_time) {
  vm->faults = {fault::lose_request, fault::lose_request};
  up();
  auto a = set_memory(gib);
  auto took = until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_FAILED);
  EXPECT_EQ(a->error().code(), "outcome_unknown");
  EXPECT_EQ(a->memory().plugged_bytes(), 0u);
  EXPECT_LT(took, 5min);
}

TEST_F(hotplug_scene, a_silent_vmm_ends_the_change_in_bounded_time_with_the_last_figures) {
  vm->faults = {fault::lose_reply};
  up();
  vm->before_verb = [this] { vm->silent_looks = 100; };
  auto a = set_memory(gib);
  auto took = until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_FAILED);
  EXPECT_EQ(a->error().code(), "outcome_unknown");
  EXPECT_EQ(a->memory().boot_bytes(), 512 * mib);
  EXPECT_LT(took, 3min);
}

TEST_F(hotplug_scene, what_the_vmm_refuses_is_said_with_its_words) {
  vm->faults = {fault::refuse};
  up();
  auto a = set_memory(gib);
  until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_FAILED);
  EXPECT_EQ(a->error().code(), "backend_refused");
  EXPECT_NE(a->error().text().find("the VMM says no"), std::string::npos);
}

TEST_F(hotplug_scene, the_second_dimm_refused_leaves_the_first_one_counted) {
  use_dimms();
  vm->faults = {fault::none, fault::refuse};
  up();
  auto a = set_memory(512 * mib + 512 * mib);
  until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_PARTLY) << a->why();
  EXPECT_EQ(a->memory().plugged_bytes(), 256 * mib);
  EXPECT_EQ(a->memory().guest_bytes(), 768 * mib);
}

TEST_F(hotplug_scene, a_silent_agent_means_that_nothing_is_plugged) {
  up();
  vm->agent_silent = true;
  auto a = set_memory(gib);
  auto took = until(a);
  ASSERT_TRUE(a.value()) << text_of(a.error());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_FAILED);
  EXPECT_EQ(a->error().code(), "guest_unresponsive");
  EXPECT_TRUE(vm->verbs.empty());
  EXPECT_LT(took, 60s);
}

TEST_F(hotplug_scene, an_agent_lost_in_the_middle_leaves_the_vmms_figure_standing) {
  up();
  vm->before_verb = [this] { vm->agent_silent = true; };
  auto a = set_memory(gib);
  auto took = until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_PARTLY) << a->why();
  EXPECT_EQ(a->memory().plugged_bytes(), 512 * mib);
  EXPECT_EQ(a->memory().guest_bytes(), 512 * mib);
  EXPECT_LT(took, 2min);
}

TEST_F(hotplug_scene, an_agent_that_comes_back_is_asked_again) {
  up();
  vm->before_verb = [this] { vm->agent_silent = true; };
  auto a = set_memory(gib);
  sys.run_for(12s);
  EXPECT_FALSE(a.done());
  vm->before_verb = nullptr;
  vm->agent_silent = false;
  until(a);
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
}

TEST_F(hotplug_scene, a_pushed_fact_stands_for_an_answer_that_was_lost) {
  up();
  vm->before_verb = [this] { vm->agent_silent = true; };
  auto a = set_memory(gib);
  sys.run_for(1s);
  EXPECT_FALSE(a.done());
  sys.tell(memory, vm->facts());
  sys.run_for(1s);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
}

TEST_F(hotplug_scene, the_death_of_the_vm_ends_the_change_at_once_wherever_it_is) {
  for (auto method : {v1::MEMORY_METHOD_DIMM, v1::MEMORY_METHOD_VIRTIO_MEM})
    for (auto when : {0ms, 30ms, 99ms, 101ms, 2'000ms}) {
      hotplug_scene::TearDown();
      vm = std::make_shared<model_vm>(sys);
      vm->method = method;
      vm->online_most = 0;
      up();
      auto a = set_memory(gib);
      sys.after(when, [this] { vm->die(); });
      EXPECT_LE(until(a), when + 1ms);
      ASSERT_TRUE(a.value()) << text_of(a.error());
      EXPECT_EQ(a->state(), v1::OPERATION_STATE_FAILED);
      EXPECT_EQ(a->error().code(), "vmm_died");
      EXPECT_NE(a->why().find("killed by signal 9"), std::string::npos);
      EXPECT_EQ(a->memory().boot_bytes(), 512 * mib);
      auto b = set_memory(gib, "op2");
      sys.drain();
      EXPECT_EQ(code_of(b.error()), ec::vmm_died);
    }
}

TEST_F(hotplug_scene, a_vm_that_dies_of_the_step_is_told_by_the_answer_too) {
  vm->faults = {fault::die};
  vm->lose_events = true;
  up();
  auto a = set_memory(gib);
  until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->error().code(), "vmm_died");
}

TEST_F(hotplug_scene, a_restarted_backend_is_asked_what_there_is) {
  vm->faults = {fault::lose_reply};
  up();
  auto a = set_memory(gib);
  sys.run_for(200ms);
  EXPECT_FALSE(a.done());
  vm->event(v1::VmEvent::KIND_BACKEND_RESTARTED);
  EXPECT_LT(until(a), 1s);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(vm->verbs.size(), 1u);
}

TEST_F(hotplug_scene, a_guest_that_claims_what_was_not_plugged_is_not_believed) {
  vm->virtio_most = 0;
  up();
  vm->before_verb = [this] { vm->boot_total += 512 * mib; }; // MemTotal rises, the device has plugged nothing
  auto a = set_memory(gib);
  auto took = until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_FAILED) << a->why();
  EXPECT_EQ(a->memory().plugged_bytes(), 0u);
  EXPECT_EQ(vm->verbs.size(), 1u);
  EXPECT_LT(took, 2min);
}

TEST_F(hotplug_scene, the_deadline_bounds_the_whole_change) {
  vm->online_most = 0;
  up();
  auto a = set_memory(gib, "op1", 4s);
  auto took = until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_PARTLY);
  EXPECT_LE(took, 5s);
}

} // namespace
} // namespace caisson::tests
