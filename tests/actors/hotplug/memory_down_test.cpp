#include "tests/actors/hotplug/scene.hpp"

namespace caisson::tests {
namespace {

using strings = std::vector<std::string>;

TEST_F(hotplug_scene, virtio_mem_gives_memory_back) {
  use_virtio(1536 * mib);
  up();
  auto a = set_memory(768 * mib);
  auto took = until(a);
  ASSERT_TRUE(a.value()) << text_of(a.error());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(a->memory().plugged_bytes(), 256 * mib);
  EXPECT_EQ(a->memory().guest_bytes(), 768 * mib);
  EXPECT_LT(took, 1s);
}

TEST_F(hotplug_scene, whole_dimms_leave_one_after_another) {
  use_dimms({512, 256, 128, 128});
  up();
  auto a = set_memory(512 * mib + 256 * mib);
  auto took = until(a);
  ASSERT_TRUE(a.value()) << text_of(a.error());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(a->memory().slots_used(), a->memory().plugged_bytes() == 256 * mib ? vm->dimms.size() : 99u);
  EXPECT_EQ(vm->plugged(), 256 * mib);
  EXPECT_LT(took, 1s);
}

TEST_F(hotplug_scene, back_to_the_boot_size_and_up_again) {
  use_dimms({256, 128});
  up();
  auto a = set_memory(512 * mib);
  until(a);
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(a->memory().plugged_bytes(), 0u);
  auto b = set_memory(640 * mib, "op2");
  until(b);
  EXPECT_EQ(b->state(), v1::OPERATION_STATE_CONVERGED) << b->why();
  EXPECT_EQ(vm->dimms.size(), 1u);
}

TEST_F(hotplug_scene, a_size_that_no_set_of_dimms_makes_goes_to_the_next_above) {
  use_dimms({512, 256});
  up();
  auto a = set_memory(512 * mib + 128 * mib); // 640 to leave: 512 can
  until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_PARTLY);
  EXPECT_EQ(a->memory().plugged_bytes(), 256 * mib);
  EXPECT_NE(a->why().find("no set of the DIMMs"), std::string::npos) << a->why();
}

TEST_F(hotplug_scene, a_lost_event_is_made_up_for_by_looking) {
  for (bool dimm : {true, false}) {
    hotplug_scene::TearDown();
    vm = std::make_shared<model_vm>(sys);
    dimm ? use_dimms({256, 256}) : use_virtio(512 * mib);
    vm->lose_events = true;
    up();
    auto a = set_memory(512 * mib);
    auto took = until(a);
    ASSERT_TRUE(a.value());
    EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
    EXPECT_LT(took, 3s);
  }
}

TEST_F(hotplug_scene, a_dimm_that_was_refused_once_is_asked_again) {
  use_dimms({256});
  vm->refuses["old-1"] = 1;
  up();
  auto a = set_memory(512 * mib);
  auto took = until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(vm->verbs, (strings{"unplug old-1", "unplug old-1"}));
  EXPECT_GE(took, 1s);
  EXPECT_LT(took, 2s);
}

TEST_F(hotplug_scene, a_dimm_that_stays_is_named_with_the_reason) {
  use_dimms({256});
  vm->refuses["old-1"] = 100;
  up();
  auto a = set_memory(512 * mib);
  until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_FAILED);
  EXPECT_EQ(a->error().code(), "guest_refused");
  EXPECT_NE(a->why().find("old-1 (256 MiB)"), std::string::npos) << a->why();
  EXPECT_NE(a->why().find("device or resource busy"), std::string::npos) << a->why();
  EXPECT_EQ(a->memory().plugged_bytes(), 256 * mib);
  EXPECT_EQ(vm->verbs.size(), 2u);
}

TEST_F(hotplug_scene, other_dimms_leave_in_place_of_one_that_is_stubborn) {
  use_dimms({256, 128, 128, 256});
  vm->refuses["old-4"] = 100;
  up();
  auto a = set_memory(512 * mib + 512 * mib); // 256 to leave; the newest is tried first
  until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(vm->plugged(), 512 * mib);
}

TEST_F(hotplug_scene, a_guest_that_neither_gives_back_nor_refuses_ends_in_bounded_time) {
  for (bool dimm : {true, false}) {
    hotplug_scene::TearDown();
    vm = std::make_shared<model_vm>(sys);
    dimm ? use_dimms({256}) : use_virtio(256 * mib);
    vm->ignores_removal = true;
    vm->virtio_least = 256 * mib;
    up();
    auto a = set_memory(512 * mib);
    auto took = until(a);
    ASSERT_TRUE(a.value());
    EXPECT_EQ(a->state(), v1::OPERATION_STATE_FAILED);
    EXPECT_EQ(a->memory().plugged_bytes(), 256 * mib);
    EXPECT_LT(took, 60s);
  }
}

TEST_F(hotplug_scene, virtio_mem_that_holds_a_part_is_partly_and_goes_on_by_itself) {
  use_virtio(gib);
  vm->virtio_least = 300 * mib;
  up();
  auto a = set_memory(512 * mib);
  until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_PARTLY);
  EXPECT_EQ(a->memory().plugged_bytes(), 300 * mib);
  EXPECT_NE(a->why().find("300 MiB"), std::string::npos) << a->why();
  // Later the guest lets go; an event says so, and the status follows without anybody asking.
  vm->virtio_least = 0;
  vm->settle_virtio();
  sys.run_for(1s);
  EXPECT_EQ(status().plugged_bytes(), 0u);
  EXPECT_EQ(status().guest_bytes(), 512 * mib);
  EXPECT_EQ(status().target_bytes(), 512 * mib);
}

TEST_F(hotplug_scene, a_dimm_that_leaves_after_it_was_given_up_is_seen) {
  use_dimms({256});
  vm->ignores_removal = true;
  up();
  auto a = set_memory(512 * mib);
  until(a);
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_FAILED);
  EXPECT_EQ(a->memory().target_bytes(), 512 * mib) << "it may still come to that";
  vm->remove_dimm("old-1");
  sys.run_for(1s);
  EXPECT_EQ(status().plugged_bytes(), 0u);
}

TEST_F(hotplug_scene, a_guest_is_not_asked_for_what_it_uses) {
  for (bool dimm : {true, false}) {
    hotplug_scene::TearDown();
    vm = std::make_shared<model_vm>(sys);
    dimm ? use_dimms({512, 256, 256}) : use_virtio(gib);
    vm->used = 900 * mib; // of 1474: 574 available
    up();
    auto a = set_memory(512 * mib);
    auto took = until(a);
    ASSERT_TRUE(a.value());
    EXPECT_EQ(a->state(), v1::OPERATION_STATE_PARTLY);
    EXPECT_GE(vm->facts().memory().mem_available_bytes(), 32 * mib) << "or its kernel would kill something";
    EXPECT_NE(a->why().find("the guest uses too much"), std::string::npos) << a->why();
    EXPECT_LT(took, 5s) << "nothing is waited for";
    vm->used = 60 * mib;
    auto b = set_memory(512 * mib, "op2");
    until(b);
    EXPECT_EQ(b->state(), v1::OPERATION_STATE_CONVERGED) << b->why();
  }
}

TEST_F(hotplug_scene, the_same_request_wakes_virtio_mem_again) {
  use_virtio(gib);
  vm->virtio_requested = 0; // asked for before, and never followed
  up();
  auto a = set_memory(512 * mib);
  until(a);
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(vm->verbs, (strings{"virtio 1024", "virtio 0"}));
}

TEST_F(hotplug_scene, an_unplug_whose_answer_was_lost_is_watched_and_sent_again_only_when_nothing_happens) {
  for (auto f : {fault::lose_reply, fault::unknown_done, fault::unknown_not}) {
    hotplug_scene::TearDown();
    vm = std::make_shared<model_vm>(sys);
    use_dimms({256});
    vm->faults = {f};
    up();
    auto a = set_memory(512 * mib);
    until(a);
    ASSERT_TRUE(a.value());
    EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
    EXPECT_EQ(vm->verbs.size(), f == fault::unknown_not ? 2u : 1u);
  }
}

TEST_F(hotplug_scene, late_events_do_not_confuse_a_later_change) {
  use_dimms({256, 128});
  vm->event_delay = 3s;
  up();
  auto a = set_memory(512 * mib);
  until(a);
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  auto b = set_memory(gib, "op2");
  until(b);
  EXPECT_EQ(b->state(), v1::OPERATION_STATE_CONVERGED) << b->why();
  sys.run_for(10s);
  EXPECT_EQ(status().plugged_bytes(), vm->plugged());
}

TEST_F(hotplug_scene, an_agent_lost_on_the_way_down_leaves_the_vmms_figure_and_says_who_does_not_confirm) {
  use_virtio(512 * mib);
  up();
  vm->before_verb = [this] { vm->agent_silent = true; };
  auto a = set_memory(512 * mib);
  until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_PARTLY) << a->why();
  EXPECT_EQ(a->memory().plugged_bytes(), 0u);
}

TEST_F(hotplug_scene, death_while_memory_leaves) {
  for (bool dimm : {true, false}) {
    hotplug_scene::TearDown();
    vm = std::make_shared<model_vm>(sys);
    dimm ? use_dimms({256, 256}) : use_virtio(512 * mib);
    vm->ignores_removal = true;
    vm->virtio_least = gib;
    up();
    auto a = set_memory(512 * mib);
    sys.after(700ms, [this] { vm->die(); });
    EXPECT_LE(until(a), 701ms);
    ASSERT_TRUE(a.value());
    EXPECT_EQ(a->error().code(), "vmm_died");
    EXPECT_EQ(a->memory().plugged_bytes(), 512 * mib) << "the last size that was read back";
  }
}

} // namespace
} // namespace caisson::tests
