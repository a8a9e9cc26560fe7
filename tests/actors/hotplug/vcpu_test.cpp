#include "tests/actors/hotplug/scene.hpp"

namespace caisson::tests {
namespace {

using strings = std::vector<std::string>;

TEST_F(hotplug_scene, vcpus_are_plugged_and_brought_online) {
  up();
  auto a = set_vcpus(3);
  until(a);
  ASSERT_TRUE(a.value()) << text_of(a.error());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(a->vcpus().online(), 3u);
  EXPECT_EQ(a->vcpus().plugged(), 3u);
  EXPECT_EQ(a->vcpus().target(), 3u);
  EXPECT_EQ(a->vcpus().generation(), 1u);
  EXPECT_EQ(vm->verbs, strings{"vcpus 3"});
  EXPECT_EQ(told->of<v1::VcpuStatus>().back().online(), 3u);
}

TEST_F(hotplug_scene, vcpus_are_taken_offline_first_and_then_unplugged) {
  vm->vcpus = vm->cpus_online = 4;
  up();
  auto a = set_vcpus(2);
  until(a);
  ASSERT_TRUE(a.value()) << text_of(a.error());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(a->vcpus().online(), 2u);
  EXPECT_EQ(a->vcpus().plugged(), 2u);
  EXPECT_EQ(vm->agent_asked.back(), "cpus 2");
  EXPECT_EQ(vm->verbs, strings{"vcpus 2"});
}

TEST_F(hotplug_scene, an_unplug_is_over_when_the_guest_has_let_go_or_its_patience_has_ended) {
  vm->vcpus = vm->cpus_online = 4;
  vm->vcpus_leave_after_looks = 3;
  up();
  auto a = set_vcpus(2);
  until(a);
  ASSERT_TRUE(a.value()) << text_of(a.error());
  EXPECT_EQ(a->vcpus().plugged(), 2u) << a->why();
  EXPECT_EQ(a->why(), "");
  EXPECT_EQ(vm->verbs, strings{"vcpus 2"}) << "asked once";

  vm->vcpus_leave_after_looks = 1'000'000;
  auto b = set_vcpus(1, "op2");
  until(b);
  EXPECT_EQ(b->state(), v1::OPERATION_STATE_CONVERGED);
  EXPECT_EQ(b->vcpus().plugged(), 2u);
  EXPECT_NE(b->why().find("1 vCPU still plugged and offline"), std::string::npos) << b->why();
}

TEST_F(hotplug_scene, where_the_vmm_cannot_unplug_they_stay_offline_and_are_used_again) {
  vm->vcpu_unplug = false;
  vm->vcpus = vm->cpus_online = 3;
  up();
  auto a = set_vcpus(1);
  until(a);
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED);
  EXPECT_EQ(a->vcpus().online(), 1u);
  EXPECT_EQ(a->vcpus().plugged(), 3u);
  EXPECT_NE(a->why().find("this VMM never confirms it"), std::string::npos) << a->why();
  EXPECT_TRUE(vm->verbs.empty());
  auto b = set_vcpus(2, "op2");
  until(b);
  EXPECT_EQ(b->state(), v1::OPERATION_STATE_CONVERGED);
  EXPECT_TRUE(vm->verbs.empty()) << "nothing had to be plugged";
  auto c = set_vcpus(4, "op3");
  until(c);
  EXPECT_EQ(c->vcpus().online(), 4u);
  EXPECT_EQ(vm->verbs, strings{"vcpus 4"});
  EXPECT_EQ(vm->agent_asked, (strings{"cpus 1", "cpus 2", "cpus 3", "cpus 4"}));
}

TEST_F(hotplug_scene, bad_vcpu_targets_are_refused) {
  up();
  auto a = set_vcpus(0);
  auto b = set_vcpus(5);
  sys.drain();
  EXPECT_EQ(code_of(a.error()), ec::invalid_argument);
  EXPECT_EQ(code_of(b.error()), ec::out_of_range);
  EXPECT_NE(text_of(b.error()).find("default_maxvcpus"), std::string::npos);
}

TEST_F(hotplug_scene, a_guest_without_cpu_hotplug_is_told_so) {
  spawn();
  auto ready = vm->ready();
  ready.mutable_features()->set_cpu_hotplug(false);
  sys.ask<v1::VcpuStatus>(vcpus, ready);
  sys.drain();
  auto a = set_vcpus(2);
  until(a);
  EXPECT_EQ(code_of(a.error()), ec::unsupported);
  EXPECT_NE(text_of(a.error()).find("CONFIG_HOTPLUG_CPU"), std::string::npos);
}

TEST_F(hotplug_scene, a_vcpu_plan_changes_nothing) {
  up();
  auto a = set_vcpus(3, "dry", true);
  until(a);
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_PLANNED);
  EXPECT_EQ(a->plan().vcpus_target(), 3u);
  EXPECT_EQ(a->plan().steps_size(), 2);
  EXPECT_TRUE(vm->verbs.empty());
}

TEST_F(hotplug_scene, a_guest_that_runs_only_some_is_partly) {
  vm->cpus_most = 2;
  up();
  auto a = set_vcpus(4);
  auto took = until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_PARTLY);
  EXPECT_EQ(a->vcpus().online(), 2u);
  EXPECT_EQ(a->vcpus().plugged(), 4u);
  EXPECT_NE(a->why().find("runs 2"), std::string::npos) << a->why();
  EXPECT_LT(took, 60s);
}

TEST_F(hotplug_scene, a_lost_answer_about_vcpus_is_read_back) {
  for (auto f : {fault::lose_reply, fault::unknown_done, fault::lose_request, fault::unknown_not}) {
    hotplug_scene::TearDown();
    vm = std::make_shared<model_vm>(sys);
    vm->faults = {f};
    up();
    auto a = set_vcpus(2);
    until(a);
    ASSERT_TRUE(a.value());
    EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
    EXPECT_EQ(vm->verbs.size(), f == fault::lose_reply || f == fault::unknown_done ? 1u : 2u);
  }
}

TEST_F(hotplug_scene, an_unplug_that_the_vmm_refuses_is_no_failure) {
  vm->vcpus = vm->cpus_online = 3;
  vm->faults = {fault::refuse};
  up();
  auto a = set_vcpus(1);
  until(a);
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED);
  EXPECT_EQ(a->vcpus().plugged(), 3u);
  EXPECT_NE(a->why().find("the VMM says no"), std::string::npos) << a->why();
}

TEST_F(hotplug_scene, a_plug_that_the_vmm_refuses_is_one) {
  vm->faults = {fault::refuse};
  up();
  auto a = set_vcpus(2);
  until(a);
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_FAILED);
  EXPECT_EQ(a->error().code(), "backend_refused");
}

TEST_F(hotplug_scene, vcpus_and_a_dead_vm_or_a_silent_agent) {
  up();
  vm->agent_silent = true;
  auto a = set_vcpus(2);
  EXPECT_LT(until(a), 60s);
  EXPECT_EQ(a->error().code(), "guest_unresponsive");
  EXPECT_TRUE(vm->verbs.empty());
  auto b = set_vcpus(2, "op2");
  sys.after(300ms, [this] { vm->die(); });
  EXPECT_LT(until(b), 400ms);
  EXPECT_EQ(b->error().code(), "vmm_died");
}

TEST_F(hotplug_scene, vcpu_targets_supersede_each_other_too) {
  vm->cpus_most = 1;
  up();
  auto a = set_vcpus(2, "op1");
  sys.run_for(1s);
  auto b = set_vcpus(3, "op2");
  sys.drain();
  auto c = set_vcpus(1, "op3");
  sys.drain();
  EXPECT_EQ(b->state(), v1::OPERATION_STATE_CANCELLED);
  until(c);
  EXPECT_EQ(c->state(), v1::OPERATION_STATE_CONVERGED) << c->why();
  EXPECT_TRUE(a.done());
  EXPECT_NE(a->state(), v1::OPERATION_STATE_CONVERGED);
}

TEST_F(hotplug_scene, everybody_is_answered_when_the_vcpu_actor_ends) {
  for (auto reason : {caf::exit_reason::user_shutdown, caf::exit_reason::kill}) {
    hotplug_scene::TearDown();
    vm = std::make_shared<model_vm>(sys);
    vm->cpus_most = 1;
    up();
    auto a = set_vcpus(2, "op1");
    sys.run_for(500ms);
    auto b = set_vcpus(3, "op2");
    sys.drain();
    sys.stop(vcpus, reason);
    sys.drain();
    EXPECT_EQ(code_of(a.error()), ec::not_running);
    EXPECT_EQ(code_of(b.error()), ec::not_running);
  }
}

// ---- parts of a vCPU ----

TEST_F(hotplug_scene, one_and_a_half_is_two_and_a_quota) {
  vm->features.set_workload_cgroup(true);
  up();
  auto a = set_vcpus_milli(1500);
  until(a);
  ASSERT_TRUE(a.value()) << text_of(a.error());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(a->vcpus().online(), 2u);
  EXPECT_EQ(a->vcpus().target(), 2u);
  EXPECT_EQ(a->vcpus().target_milli(), 1500u);
  EXPECT_EQ(a->vcpus().quota_milli(), 1500u);
  EXPECT_EQ(vm->agent_asked, (strings{"quota 1500", "cpus 2"})) << "never more than was asked";
  auto b = set_vcpus_milli(2250, "op2");
  until(b);
  EXPECT_EQ(b->state(), v1::OPERATION_STATE_CONVERGED) << b->why();
  EXPECT_EQ(vm->agent_asked, (strings{"quota 1500", "cpus 2", "cpus 3", "quota 2250"})) << "more comes last";
}

TEST_F(hotplug_scene, giving_back_lowers_the_quota_then_takes_offline_then_unplugs) {
  vm->features.set_workload_cgroup(true);
  vm->vcpus = vm->cpus_online = 4;
  strings before_unplug;
  vm->before_verb = [&] { before_unplug = vm->agent_asked; };
  up();
  auto a = set_vcpus_milli(1500);
  until(a);
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  EXPECT_EQ(before_unplug, (strings{"quota 1500", "cpus 2"}));
  EXPECT_EQ(vm->verbs, strings{"vcpus 2"});
  auto b = set_vcpus(3, "op2");
  until(b);
  EXPECT_EQ(b->state(), v1::OPERATION_STATE_CONVERGED) << b->why();
  EXPECT_EQ(b->vcpus().quota_milli(), 0u) << "whole vCPUs need none";
  EXPECT_EQ(b->vcpus().target_milli(), 3000u);
  EXPECT_EQ(vm->agent_asked.back(), "quota 0");
}

TEST_F(hotplug_scene, cancelled_the_target_is_what_the_workload_has) {
  vm->features.set_workload_cgroup(true);
  up();
  auto a = set_vcpus_milli(1500);
  until(a);
  ASSERT_EQ(a->state(), v1::OPERATION_STATE_CONVERGED) << a->why();
  vm->cpus_most = 2;
  auto b = set_vcpus(4, "op2");
  sys.run_for(500ms);
  v1::CancelOperation m;
  m.set_operation_id("op2");
  sys.ask<v1::VcpuStatus>(vcpus, m);
  until(b);
  EXPECT_EQ(b->state(), v1::OPERATION_STATE_CANCELLED);
  EXPECT_EQ(b->vcpus().online(), 2u);
  EXPECT_EQ(b->vcpus().quota_milli(), 1500u);
  EXPECT_EQ(b->vcpus().target_milli(), 1500u) << "nobody wants more, and the quota still stands";
}

TEST_F(hotplug_scene, of_vcpus_that_failed_none_stays_wanted) {
  vm->vcpus = vm->cpus_online = 2;
  up();
  vm->agent_silent = true;
  auto a = set_vcpus(4);
  until(a);
  ASSERT_TRUE(a.value()) << text_of(a.error());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_FAILED);
  EXPECT_EQ(a->vcpus().target(), 2u);
}

TEST_F(hotplug_scene, a_part_of_a_vcpu_needs_a_guest_with_a_cgroup) {
  up();
  auto a = set_vcpus_milli(1500);
  until(a);
  ASSERT_FALSE(a.value());
  EXPECT_EQ(code_of(a.error()), ec::unsupported);
  EXPECT_NE(text_of(a.error()).find("CONFIG_CFS_BANDWIDTH"), std::string::npos) << text_of(a.error());
  EXPECT_TRUE(vm->verbs.empty());
}

TEST_F(hotplug_scene, a_quota_that_the_guest_does_not_show_is_no_success) {
  vm->features.set_workload_cgroup(true);
  vm->ignores_quota = true;
  up();
  auto a = set_vcpus_milli(1500);
  until(a);
  ASSERT_TRUE(a.value());
  EXPECT_EQ(a->state(), v1::OPERATION_STATE_FAILED);
  EXPECT_NE(a->why().find("set the workload's quota to 1.5 vCPUs and shows none"), std::string::npos) << a->why();
  EXPECT_TRUE(vm->verbs.empty());
}

TEST_F(hotplug_scene, a_quota_is_found_again_after_a_recovery) {
  vm->features.set_workload_cgroup(true);
  vm->quota_milli = 1500;
  vm->vcpus = vm->cpus_online = 2;
  spawn();
  auto ready = vm->ready();
  ready.mutable_facts()->clear_cpu_quota_milli(); // a greeting does not tell it
  ready.set_vcpu_target(2);
  ready.set_vcpu_target_milli(1500);
  sys.ask<v1::VcpuStatus>(vcpus, ready);
  sys.drain();
  const auto now = told->of<v1::VcpuStatus>().back();
  EXPECT_EQ(now.quota_milli(), 1500u);
  EXPECT_EQ(now.target_milli(), 1500u);
  EXPECT_EQ(now.target(), 2u);
}

} // namespace
} // namespace caisson::tests
