// One body over every line of the backends' registry: what backends/backend.hpp promises, asked of each in turn. The
// simulated line runs in several shapes, so that the body meets every kind of capability on any machine.

#include <algorithm>
#include <future>

#include "tests/conformance/conformance.hpp"

namespace caisson::tests {
TEST_P(conformance, says_what_it_can_do) {
  EXPECT_EQ(capabilities.backend(), GetParam().line);
  EXPECT_EQ(capabilities.architecture(), "x86_64");
  EXPECT_FALSE(capabilities.accelerator().empty());
  EXPECT_FALSE(capabilities.accelerator_reason().empty());
  EXPECT_FALSE(capabilities.vmm_version().empty());
  if (capabilities.dimm()) {
    EXPECT_EQ(capabilities.dimm_block_bytes() % (2 * mib), 0u);
    EXPECT_GT(capabilities.dimm_block_bytes(), 0u);
    EXPECT_GT(capabilities.dimm_max_slots(), 0u);
  } else {
    EXPECT_FALSE(capabilities.dimm_why_not().empty());
  }
  if (capabilities.virtio_mem()) {
    EXPECT_GT(capabilities.virtio_mem_granule_bytes(), 0u);
  } else {
    EXPECT_FALSE(capabilities.virtio_mem_why_not().empty());
  }
  if (!capabilities.vcpu_unplug()) {
    EXPECT_FALSE(capabilities.vcpu_unplug_why_not().empty());
  }
}

TEST_P(conformance, a_life_from_create_to_destroy_and_every_verb_twice) {
  const std::string id = "life";
  auto b = on->backend(id, news);
  const auto first = create(b, id);
  ASSERT_TRUE(first) << first.text();
  EXPECT_EQ(first->state(), v1::VM_STATE_RUNNING);
  EXPECT_EQ(first->boot_bytes(), boot_bytes);
  EXPECT_EQ(first->plugged_bytes(), 0u);
  EXPECT_EQ(first->plugged_vcpus(), 1u);
  EXPECT_EQ(first->max_vcpus(), 3u);
  EXPECT_FALSE(first->channels().agent().empty());
  EXPECT_EQ(first->accelerator(), capabilities.accelerator());
  const auto again = create(b, id);
  ASSERT_TRUE(again) << again.text();
  EXPECT_EQ(again->vmm_pid(), first->vmm_pid());
  EXPECT_EQ(again->vmm_start_ticks(), first->vmm_start_ticks());
  const auto ids = on->list(b);
  ASSERT_TRUE(ids) << ids.text();
  EXPECT_EQ(std::count(ids->sandbox_ids().begin(), ids->sandbox_ids().end(), id), 1);

  auto guest = on->guest(*first.value);
  ASSERT_TRUE(guest) << "the guest's agent did not answer";
  if (capabilities.pause())
    for (int round = 0; round < 2; ++round) {
      for (int twice = 0; twice < 2; ++twice) {
        const auto paused = simple<v1::PauseVm>(b, id);
        ASSERT_TRUE(paused) << paused.text();
        EXPECT_EQ(paused->state(), v1::VM_STATE_PAUSED);
      }
      EXPECT_EQ(on->inspect(b, id)->state(), v1::VM_STATE_PAUSED);
      for (int twice = 0; twice < 2; ++twice) {
        const auto resumed = simple<v1::ResumeVm>(b, id);
        ASSERT_TRUE(resumed) << resumed.text();
        EXPECT_EQ(resumed->state(), v1::VM_STATE_RUNNING);
      }
      v1::AgentRequest read;
      read.mutable_read_facts();
      EXPECT_TRUE(guest->ask(read, on->patience())) << "the guest does not answer after a resume: " << guest->lost();
    }

  const auto gone = on->destroy(b, id);
  ASSERT_TRUE(gone) << gone.text();
  EXPECT_EQ(gone->state(), v1::VM_STATE_ABSENT);
  EXPECT_EQ(gone->vmm_pid(), 0);
  EXPECT_TRUE(guest->await_lost(on->patience())) << "the channel of a destroyed VM stays open";
  const auto twice = on->destroy(b, id);
  ASSERT_TRUE(twice) << twice.text();
  EXPECT_EQ(twice->state(), v1::VM_STATE_ABSENT);
  EXPECT_EQ(on->inspect(b, id)->state(), v1::VM_STATE_ABSENT);
  const auto after = on->list(b);
  ASSERT_TRUE(after);
  EXPECT_EQ(std::count(after->sandbox_ids().begin(), after->sandbox_ids().end(), id), 0);
  if (first->vmm_pid() > 0) {
    EXPECT_NE(reactor::start_ticks_of(static_cast<pid_t>(first->vmm_pid())), first->vmm_start_ticks());
  }
}

TEST_P(conformance, a_sandbox_that_is_unknown) {
  const std::string id = "nobody";
  auto b = on->backend(id, news);
  const auto seen = on->inspect(b, id);
  ASSERT_TRUE(seen) << seen.text();
  EXPECT_EQ(seen->state(), v1::VM_STATE_ABSENT);
  EXPECT_EQ(seen->plugged_bytes(), 0u);
  const auto gone = on->destroy(b, id);
  ASSERT_TRUE(gone) << gone.text();
  EXPECT_EQ(gone->state(), v1::VM_STATE_ABSENT);
  EXPECT_EQ(code(dimm() ? plug(b, id, "dimm0", step_bytes()) : request(b, id, step_bytes())), ec::vmm_died);
  EXPECT_EQ(code(vcpus(b, id, 1)), ec::vmm_died);
  if (capabilities.pause()) {
    EXPECT_EQ(code(simple<v1::PauseVm>(b, id)), ec::vmm_died);
    EXPECT_EQ(code(simple<v1::ResumeVm>(b, id)), ec::vmm_died);
  }
}

TEST_P(conformance, destroy_and_inspect_while_a_verb_is_pending) {
  const std::string id = "hasty";
  auto b = on->backend(id, news);
  auto made_it = std::make_shared<std::promise<reply<v1::VmObserved>>>();
  auto made_answer = made_it->get_future();
  on->ask_later<v1::VmObserved>(b, create_message(id, 512 * mib, 1, 2),
                                [made_it](reply<v1::VmObserved> r) { made_it->set_value(std::move(r)); });
  const auto seen = on->inspect(b, id);
  EXPECT_TRUE(seen) << seen.text();
  const auto gone = on->destroy(b, id);
  ASSERT_TRUE(gone) << gone.text();
  EXPECT_EQ(gone->state(), v1::VM_STATE_ABSENT);
  ASSERT_EQ(made_answer.wait_for(on->patience()), std::future_status::ready) << "the create was never answered";
  const auto created = made_answer.get();
  EXPECT_TRUE(created || code(created) == ec::vmm_died) << created.text();
  const auto after = on->inspect(b, id);
  ASSERT_TRUE(after) << after.text();
  EXPECT_EQ(after->state(), v1::VM_STATE_ABSENT) << "a VM came to life after its destruction";
}

TEST_P(conformance, a_new_backend_finds_the_vm_as_it_is) {
  const std::string id = "found";
  auto b = on->backend(id, news);
  const auto vm = create(b, id, 1024 * mib, 2);
  ASSERT_TRUE(vm) << vm.text();
  {
    auto guest = on->guest(*vm.value);
    ASSERT_TRUE(guest);
    ASSERT_TRUE(dimm() ? plug(b, id, "dimm0", 128 * mib) : request(b, id, 128 * mib));
    const auto total = guest->await_memory(0, 0, std::chrono::seconds{1});
    ASSERT_TRUE(total);
    ASSERT_TRUE(guest->await_memory(total->boot_mem_total_bytes() + 128 * mib, 0, std::chrono::seconds{60}));
  }
  const auto before = on->inspect(b, id);
  ASSERT_TRUE(before) << before.text();
  b = nullptr;
  on->restart();
  news = std::make_shared<news_box>();
  b = on->backend(id, news);
  const auto ids = on->list(b);
  ASSERT_TRUE(ids) << ids.text();
  EXPECT_EQ(std::count(ids->sandbox_ids().begin(), ids->sandbox_ids().end(), id), 1);
  const auto after = on->inspect(b, id);
  ASSERT_TRUE(after) << after.text();
  EXPECT_EQ(after->state(), v1::VM_STATE_RUNNING);
  EXPECT_EQ(after->boot_bytes(), before->boot_bytes());
  EXPECT_EQ(after->plugged_bytes(), 128 * mib);
  EXPECT_EQ(after->dimms_size(), before->dimms_size());
  EXPECT_EQ(after->virtio_mem_requested_bytes(), before->virtio_mem_requested_bytes());
  EXPECT_EQ(after->vmm_pid(), before->vmm_pid());
  EXPECT_EQ(after->vmm_start_ticks(), before->vmm_start_ticks());
  auto guest = on->guest(*after.value);
  ASSERT_TRUE(guest) << "the guest does not answer a new host";
  on->kill_vmm(id, *after.value);
  EXPECT_TRUE(news->await(on->patience(), v1::VmEvent::KIND_VMM_DIED)) << "nobody tells the new listener";
}

TEST_P(conformance, a_vmm_that_dies) {
  const std::string id = "dies";
  auto b = on->backend(id, news);
  const auto vm = create(b, id);
  ASSERT_TRUE(vm) << vm.text();
  on->kill_vmm(id, *vm.value);
  ASSERT_TRUE(news->await(on->patience(), v1::VmEvent::KIND_VMM_DIED));
  const auto seen = on->inspect(b, id);
  ASSERT_TRUE(seen) << seen.text();
  EXPECT_TRUE(seen->state() == v1::VM_STATE_STOPPED || seen->state() == v1::VM_STATE_ABSENT) << seen.text();
  EXPECT_FALSE(seen->stop_reason().empty());
  EXPECT_EQ(code(dimm() ? plug(b, id, "dimm0", step_bytes()) : request(b, id, step_bytes())), ec::vmm_died);
  EXPECT_EQ(code(vcpus(b, id, 2)), ec::vmm_died);
  const auto gone = on->destroy(b, id);
  ASSERT_TRUE(gone) << gone.text();
  EXPECT_EQ(gone->state(), v1::VM_STATE_ABSENT);
}

TEST_P(conformance, a_guest_that_powers_off) {
  const std::string id = "off";
  auto b = on->backend(id, news);
  const auto vm = create(b, id);
  ASSERT_TRUE(vm) << vm.text();
  auto guest = on->guest(*vm.value);
  ASSERT_TRUE(guest) << "the guest's agent did not answer";
  v1::AgentRequest off;
  off.mutable_power_off();
  (void)guest->ask(off, std::chrono::seconds{5}); // the answer may never arrive
  ASSERT_TRUE(news->await(on->patience(), v1::VmEvent::KIND_GUEST_STOPPED));
  const auto seen = on->inspect(b, id);
  ASSERT_TRUE(seen) << seen.text();
  EXPECT_TRUE(seen->state() == v1::VM_STATE_STOPPED || seen->state() == v1::VM_STATE_ABSENT) << seen.text();
}

TEST_P(conformance, a_create_that_cannot_be_leaves_nothing) {
  const std::string id = "cannot";
  auto b = on->backend(id, news);
  auto m = create_message(id, 512 * mib, 1, 2);
  m.mutable_spec()->set_max_bytes(boot_bytes / 2);
  const auto refused = on->ask<v1::VmObserved>(b, m);
  EXPECT_FALSE(refused) << "a VM whose maximum is below its boot memory was made";
  const auto seen = on->inspect(b, id);
  ASSERT_TRUE(seen) << seen.text();
  EXPECT_EQ(seen->state(), v1::VM_STATE_ABSENT);
  const auto ids = on->list(b);
  ASSERT_TRUE(ids);
  EXPECT_EQ(std::count(ids->sandbox_ids().begin(), ids->sandbox_ids().end(), id), 0);
}

// What only a simulated VMM can be made to do on purpose.
TEST_P(conformance, an_answer_that_never_comes_is_unknown_and_the_truth_is_inspected) {
  if (!on->world())
    GTEST_SKIP() << GetParam().name << ": not tried, no real VMM loses its answers on request";
  const std::string id = "lost";
  auto b = on->backend(id, news);
  ASSERT_TRUE(create(b, id));
  auto plan = on->world()->plan();
  plan.lost = 1;
  on->world()->set_plan(plan);
  v1::SetVmVcpus m;
  m.set_sandbox_id(id);
  m.set_count(2);
  m.set_deadline_ms(200);
  EXPECT_EQ(code(on->ask<v1::VmObserved>(b, m)), ec::outcome_unknown);
  plan.lost = 0;
  plan.late = 1;
  plan.slow_ms = {50, 50};
  on->world()->set_plan(plan);
  m.set_count(3);
  EXPECT_EQ(code(on->ask<v1::VmObserved>(b, m)), ec::outcome_unknown);
  plan.late = 0;
  on->world()->set_plan(plan);
  EXPECT_GE(on->inspect(b, id)->plugged_vcpus(), 2u) << "what took effect is not seen";
  // A late verb does not come back from the dead.
  plan.late = 1;
  on->world()->set_plan(plan);
  m.set_count(1);
  EXPECT_EQ(code(on->ask<v1::VmObserved>(b, m)), ec::outcome_unknown);
  plan.late = 0;
  on->world()->set_plan(plan);
  ASSERT_TRUE(on->destroy(b, id));
  EXPECT_EQ(on->world()->verbs_under_way(), 0u);
}

INSTANTIATE_TEST_SUITE_P(
    backends, conformance,
    ::testing::Values(kind{"simulated_dimm", "simulated", "", v1::MEMORY_METHOD_DIMM},
                      kind{"simulated_virtio_mem", "simulated", "", v1::MEMORY_METHOD_VIRTIO_MEM},
                      kind{"simulated_one_way", "simulated", "dimm_slots=8,dimm_unplug=0,vcpu_unplug=0,pause=0",
                           v1::MEMORY_METHOD_DIMM},
                      kind{"simulated_one_way_virtio_mem", "simulated", "virtio_mem_shrink=0,slow=0.3,slow_ms=5..40",
                           v1::MEMORY_METHOD_VIRTIO_MEM},
                      kind{"qemu_dimm", "qemu", "", v1::MEMORY_METHOD_DIMM},
                      kind{"qemu_virtio_mem", "qemu", "", v1::MEMORY_METHOD_VIRTIO_MEM}),
    [](const auto& of) { return of.param.name; });

} // namespace caisson::tests
