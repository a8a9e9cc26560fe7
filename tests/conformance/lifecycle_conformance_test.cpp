// One body over every line of the backends' registry: what backends/backend.hpp promises, asked of each in turn. Here:
// what it says of itself, and a VM's life. The simulated line runs in several shapes, so that the body meets every kind
// of capability on any machine.

#include <future>

#include "tests/conformance/conformance.hpp"

namespace caisson::tests {

TEST_P(conformance, says_what_it_can_do) {
  EXPECT_EQ(capabilities.backend(), GetParam().line);
  EXPECT_EQ(capabilities.architecture(), GetParam().architecture);
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
  if (!capabilities.vcpu_plug()) {
    EXPECT_FALSE(capabilities.vcpu_plug_why_not().empty());
  }
  if (!capabilities.vcpu_unplug()) {
    EXPECT_FALSE(capabilities.vcpu_unplug_why_not().empty());
  }
  if (!capabilities.disks() || !capabilities.nets() || !capabilities.shares()) {
    EXPECT_FALSE(capabilities.devices_why_not().empty());
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
  EXPECT_EQ(first->max_vcpus(), capabilities.vcpu_plug() ? 3u : 1u);
  if (on->here().agent) {
    EXPECT_FALSE(first->channels().agent().empty());
  }
  EXPECT_EQ(first->vmm_pid() > 0, on->here().process);
  EXPECT_EQ(first->accelerator(), capabilities.accelerator());
  const auto again = create(b, id);
  ASSERT_TRUE(again) << again.text();
  EXPECT_EQ(again->vmm_pid(), first->vmm_pid());
  EXPECT_EQ(again->vmm_start_ticks(), first->vmm_start_ticks());
  const auto ids = on->list(b);
  ASSERT_TRUE(ids) << ids.text();
  EXPECT_EQ(std::count(ids->sandbox_ids().begin(), ids->sandbox_ids().end(), id), 1);

  std::unique_ptr<guest_client> guest;
  ASSERT_TRUE(meet(guest, *first.value));
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
      if (!guest)
        continue;
      v1::AgentRequest read;
      read.mutable_read_facts();
      EXPECT_TRUE(guest->ask(read, on->patience())) << "the guest does not answer after a resume: " << guest->lost();
    }

  const auto gone = on->destroy(b, id);
  ASSERT_TRUE(gone) << gone.text();
  EXPECT_EQ(gone->state(), v1::VM_STATE_ABSENT);
  EXPECT_EQ(gone->vmm_pid(), 0);
  if (guest) {
    EXPECT_TRUE(guest->await_lost(on->patience())) << "the channel of a destroyed VM stays open";
  }
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
  for (const auto& verb : verbs(b, id))
    EXPECT_EQ(code(verb.send(0)), ec::vmm_died) << verb.name;
}

TEST_P(conformance, what_it_cannot_do_it_refuses_and_changes_nothing) {
  const std::string id = "limits";
  auto b = on->backend(id, news);
  const auto vm = create(b, id);
  ASSERT_TRUE(vm) << vm.text();
  if (!grows()) {
    EXPECT_EQ(code(plug(b, id, "dimm0", 128 * mib)), ec::unsupported);
    EXPECT_EQ(code(request(b, id, 2 * mib)), ec::unsupported);
  } else {
    // The method that the VM was not made with does nothing.
    EXPECT_TRUE(refused(dimm() ? request(b, id, 2 * mib) : plug(b, id, "dimm9", 128 * mib)));
  }
  if (!capabilities.vcpu_plug()) {
    EXPECT_TRUE(refused(vcpus(b, id, 2)));
  }
  if (!capabilities.disks()) {
    EXPECT_EQ(code(attach_disk(b, id, "data", on->image("data"))), ec::unsupported);
  }
  if (!capabilities.nets()) {
    EXPECT_EQ(code(attach_net(b, id, "eth0", "tap0")), ec::unsupported);
  }
  if (!capabilities.pause()) {
    EXPECT_EQ(code(simple<v1::PauseVm>(b, id)), ec::unsupported);
  }
  const auto seen = fresh(b, id);
  ASSERT_TRUE(seen) << seen.text();
  EXPECT_EQ(seen->state(), v1::VM_STATE_RUNNING);
  EXPECT_EQ(seen->plugged_bytes(), 0u);
  EXPECT_EQ(seen->plugged_vcpus(), 1u);
  EXPECT_EQ(seen->devices_size(), 0);
}

TEST_P(conformance, the_same_name_for_another_vm) {
  const std::string id = "twin";
  auto b = on->backend(id, news);
  const auto vm = create(b, id);
  ASSERT_TRUE(vm) << vm.text();
  auto other = create_message(id);
  other.mutable_spec()->set_boot_bytes(boot_bytes + 128 * mib);
  other.mutable_spec()->set_max_bytes(2048 * mib);
  const auto refusal = on->ask<v1::VmObserved>(b, other);
  EXPECT_TRUE(code(refusal) == ec::already_exists || code(refusal) == ec::backend_refused) << refusal.text();
  const auto seen = on->inspect(b, id);
  ASSERT_TRUE(seen) << seen.text();
  EXPECT_EQ(seen->boot_bytes(), boot_bytes);
  EXPECT_EQ(seen->vmm_pid(), vm->vmm_pid()) << "the first one was disturbed";
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
    std::unique_ptr<guest_client> guest;
    ASSERT_TRUE(meet(guest, *vm.value));
    if (grows()) {
      const auto grown = grow(b, id, 128 * mib);
      ASSERT_TRUE(grown) << grown.text();
    }
    if (grows() && guest) {
      const auto total = guest->await_memory(0, 0, std::chrono::seconds{1});
      ASSERT_TRUE(total);
      ASSERT_TRUE(guest->await_memory(total->boot_mem_total_bytes() + 128 * mib, 0, std::chrono::seconds{60}));
    }
    if (capabilities.disks()) {
      const auto attached = attach_disk(b, id, "kept", on->image("kept"));
      ASSERT_TRUE(attached) << attached.text();
    }
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
  EXPECT_EQ(after->plugged_bytes(), before->plugged_bytes());
  if (grows() && (dimm() || reacts())) {
    EXPECT_EQ(after->plugged_bytes(), 128 * mib);
  }
  EXPECT_EQ(device_in(*after.value, "kept") != nullptr, capabilities.disks());
  EXPECT_EQ(after->dimms_size(), before->dimms_size());
  EXPECT_EQ(after->virtio_mem_requested_bytes(), before->virtio_mem_requested_bytes());
  EXPECT_EQ(after->vmm_pid(), before->vmm_pid());
  EXPECT_EQ(after->vmm_start_ticks(), before->vmm_start_ticks());
  std::unique_ptr<guest_client> guest;
  ASSERT_TRUE(meet(guest, *after.value)) << "the guest does not answer a new host";
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
  for (const auto& verb : verbs(b, id))
    EXPECT_EQ(code(verb.send(0)), ec::vmm_died) << verb.name;
  const auto gone = on->destroy(b, id);
  ASSERT_TRUE(gone) << gone.text();
  EXPECT_EQ(gone->state(), v1::VM_STATE_ABSENT);
}

TEST_P(conformance, a_guest_that_powers_off) {
  if (!on->here().agent)
    GTEST_SKIP() << GetParam().name << ": not tried, no guest answers here that could be told to";
  const std::string id = "off";
  auto b = on->backend(id, news);
  const auto vm = create(b, id);
  ASSERT_TRUE(vm) << vm.text();
  std::unique_ptr<guest_client> guest;
  ASSERT_TRUE(meet(guest, *vm.value));
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

} // namespace caisson::tests
