#include "tests/actors/hotplug/scene.hpp"

// What the guest does so that memory can leave: its workload makes room, blocks go offline; and limits that follow.

namespace caisson::tests {
namespace {

using strings = std::vector<std::string>;

struct room_scene : hotplug_scene {
  room_scene() { prepare(); }
  void prepare() {
    vm->features.set_workload_cgroup(true);
    vm->before_verb = [this] { asked_before_verbs.push_back(vm->agent_asked); };
  }
  void use_dimms_with_addresses(std::initializer_list<std::uint64_t> plugged_mib) {
    use_dimms(plugged_mib);
    std::uint64_t at = 4 * gib;
    for (auto& d : vm->dimms) {
      d.set_address(at);
      at += d.size_bytes();
    }
  }
  std::vector<strings> asked_before_verbs;
};

TEST_F(room_scene, the_workload_is_held_to_its_room_before_anything_leaves) {
  use_virtio(gib);
  vm->workload = 100 * mib;
  vm->workload_cache = 900 * mib;
  up();
  auto a = set_memory(512 * mib);
  until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  ASSERT_EQ(asked_before_verbs.size(), 1u);
  ASSERT_EQ(asked_before_verbs[0].size(), 1u);
  EXPECT_EQ(asked_before_verbs[0][0].find("high "), 0u);
  EXPECT_LT(vm->workload + vm->workload_cache, 450 * mib) << "it was reclaimed";
  sys.drain();
  EXPECT_EQ(vm->agent_asked.back(), "high 0");
  EXPECT_EQ(vm->workload_high, 0u) << "and is free again";
}

TEST_F(room_scene, a_workload_that_holds_too_much_is_left_alive_and_named) {
  for (bool dimm : {true, false}) {
    TearDown();
    vm = std::make_shared<model_vm>(sys);
    prepare();
    dimm ? use_dimms_with_addresses({512, 256, 256}) : use_virtio(gib);
    vm->workload = 700 * mib;
    up();
    auto a = set_memory(512 * mib);
    until(a);
    ASSERT_TRUE(a.value());
    EXPECT_EQ(a->state(), v1::OPERATION_STATE_PARTLY);
    EXPECT_NE(a->why().find("the workload holds 700 MiB"), std::string::npos) << a->why();
    EXPECT_LT(a->memory().plugged_bytes(), gib);
    EXPECT_GE(vm->facts().memory().mem_available_bytes(), 32 * mib);
    EXPECT_EQ(a->memory().workload_bytes(), 700 * mib);
    sys.drain();
    EXPECT_EQ(vm->workload_high, 0u);
  }
}

TEST_F(room_scene, a_dimms_memory_goes_offline_before_the_vmm_is_asked) {
  use_dimms_with_addresses({256});
  up();
  auto a = set_memory(512 * mib);
  until(a);
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(vm->verbs, strings{"unplug old-1"});
  ASSERT_EQ(asked_before_verbs.size(), 1u);
  EXPECT_EQ(asked_before_verbs[0].back(), "offline old-1");
}

TEST_F(room_scene, a_dimm_whose_memory_does_not_go_offline_once_is_asked_again) {
  use_dimms_with_addresses({256});
  vm->keeps_online["old-1"] = 1;
  up();
  auto a = set_memory(512 * mib);
  const auto took = until(a);
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(vm->verbs, strings{"unplug old-1"});
  EXPECT_GE(took, 1s);
}

TEST_F(room_scene, a_dimm_that_is_held_is_not_unplugged_and_its_blocks_are_told) {
  use_dimms_with_addresses({256});
  vm->keeps_online["old-1"] = 100;
  up();
  auto a = set_memory(512 * mib);
  until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_FAILED);
  EXPECT_EQ(a->error().code(), "guest_refused");
  for (const auto* text : {"old-1 (256 MiB)", "memory41 at 0x148000000 (zone Movable): Device or resource busy",
                           "0x100000000 online Movable, 0x108000000 online Movable"})
    EXPECT_NE(a->why().find(text), std::string::npos) << text << " in: " << a->why();
  EXPECT_EQ(vm->verbs, strings{});
  EXPECT_EQ(vm->online, 256 * mib);
}

TEST_F(room_scene, other_dimms_leave_in_place_of_one_that_is_held) {
  use_dimms_with_addresses({256, 128, 128, 256});
  vm->keeps_online["old-4"] = 100;
  up();
  auto a = set_memory(512 * mib + 512 * mib);
  until(a);
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(vm->plugged(), 512 * mib);
  EXPECT_EQ(std::ranges::count(vm->verbs, "unplug old-4"), 0);
}

TEST_F(room_scene, what_went_offline_for_nothing_is_online_again) {
  use_dimms_with_addresses({256});
  vm->refuses["old-1"] = 100;
  up();
  auto a = set_memory(512 * mib);
  until(a);
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_FAILED);
  EXPECT_EQ(vm->verbs.size(), 2u);
  EXPECT_EQ(vm->online, 256 * mib);
  EXPECT_EQ(a->memory().guest_bytes(), 768 * mib);

  vm->refuses.clear();
  vm->ignores_removal = true;
  auto b = set_memory(512 * mib, "op2");
  until(b);
  EXPECT_EQ(b->state(), v1::OPERATION_STATE_FAILED);
  EXPECT_EQ(vm->online, 256 * mib);
  EXPECT_EQ(b->memory().guest_bytes(), 768 * mib);
}

TEST_F(room_scene, an_older_agent_and_an_unknown_address_go_the_former_way) {
  for (bool old : {true, false}) {
    TearDown();
    vm = std::make_shared<model_vm>(sys);
    old ? use_dimms_with_addresses({256, 128}) : use_dimms({256, 128});
    vm->old_agent = old;
    up();
    auto a = set_memory(512 * mib);
    until(a);
    EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
    EXPECT_EQ(vm->verbs.size(), 2u);
    EXPECT_EQ(vm->agent_asked, strings{}) << "a guest without a cgroup for its workload is asked for no limits";
  }
}

TEST_F(room_scene, a_hard_limit_follows_what_was_plugged) {
  use_virtio();
  vm->workload_max = 300 * mib;
  up();
  auto a = set_memory(gib);
  until(a);
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  sys.drain();
  EXPECT_EQ(vm->workload_max, 812 * mib) << "raised when the guest had the memory";
  ASSERT_EQ(asked_before_verbs.size(), 1u);
  EXPECT_EQ(asked_before_verbs[0], strings{});
  auto b = set_memory(512 * mib, "op2");
  until(b);
  EXPECT_EQ(b->state(), v1::OPERATION_STATE_CONVERGED) << b->why();
  sys.drain();
  EXPECT_EQ(vm->workload_max, 300 * mib);
}

TEST_F(room_scene, a_refused_dimm_event_of_before_does_not_count_against_the_blocks) {
  use_dimms_with_addresses({256});
  vm->refuses["old-1"] = 1;
  vm->event_delay = 900ms; // comes while the memory is taken offline for the second time
  up();
  auto a = set_memory(512 * mib);
  until(a);
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
}

TEST_F(room_scene, a_silent_agent_ends_a_shrink_before_it_began) {
  use_virtio(512 * mib);
  up();
  vm->agent_silent = true;
  auto a = set_memory(512 * mib);
  const auto took = until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_FAILED);
  EXPECT_EQ(a->error().code(), "guest_unresponsive");
  EXPECT_EQ(vm->verbs, strings{});
  EXPECT_LT(took, 90s);
}

TEST_F(room_scene, death_while_the_guest_makes_room) {
  use_dimms_with_addresses({256});
  up();
  vm->agent_silent = true;
  auto a = set_memory(512 * mib);
  sys.after(5s, [this] { vm->die(); });
  EXPECT_LE(until(a), 5001ms);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->error().code(), "vmm_died");
}

} // namespace
} // namespace caisson::tests
