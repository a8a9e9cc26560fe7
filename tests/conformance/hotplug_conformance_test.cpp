// Memory and processors, in both directions, at the edges of what a backend says it can do.

#include "tests/conformance/conformance.hpp"

namespace caisson::tests {

TEST_P(conformance, memory_in_both_directions) {
  const std::string id = "memory";
  auto b = on->backend(id, news);
  const std::uint64_t part = 128 * mib, max = boot_bytes + 3 * part;
  const std::uint32_t slots = 2;
  const auto vm = create(b, id, max, slots);
  ASSERT_TRUE(vm) << vm.text();
  auto guest = on->guest(*vm.value);
  ASSERT_TRUE(guest) << "the guest's agent did not answer";
  const auto at_boot = guest->await_memory(0, 0, std::chrono::seconds{1});
  ASSERT_TRUE(at_boot) << guest->lost();
  const auto total = at_boot->mem_total_bytes();

  if (dimm()) {
    ASSERT_EQ(part % capabilities.dimm_block_bytes(), 0u);
    const auto one = plug(b, id, "dimm0", part);
    ASSERT_TRUE(one) << one.text();
    EXPECT_EQ(one->plugged_bytes(), part);
    ASSERT_EQ(one->dimms_size(), 1);
    EXPECT_EQ(one->dimms(0).id(), "dimm0");
    EXPECT_EQ(one->dimms(0).size_bytes(), part);
    const auto grown = guest->await_memory(total + part, 0, std::chrono::seconds{60});
    ASSERT_TRUE(grown) << guest->lost();
    EXPECT_EQ(grown->mem_total_bytes(), total + part);

    const auto same = plug(b, id, "dimm0", part);
    ASSERT_TRUE(same) << same.text();
    EXPECT_EQ(same->plugged_bytes(), part) << "a DIMM that is there was plugged again";
    EXPECT_TRUE(refused(plug(b, id, "odd", capabilities.dimm_block_bytes() / 2)));
    EXPECT_TRUE(refused(plug(b, id, "large", 4 * part))) << "more than the VM's maximum";
    const auto two = plug(b, id, "dimm1", part);
    ASSERT_TRUE(two) << two.text();
    EXPECT_EQ(two->plugged_bytes(), 2 * part);
    EXPECT_TRUE(refused(plug(b, id, "dimm2", part))) << "there are two slots";
    EXPECT_EQ(on->inspect(b, id)->plugged_bytes(), 2 * part) << "a refused step changed something";
    ASSERT_TRUE(guest->await_memory(total + 2 * part, 0, std::chrono::seconds{60}));

    if (!capabilities.dimm_unplug()) {
      EXPECT_EQ(code(unplug(b, id, "dimm1")), ec::unsupported);
      EXPECT_EQ(on->inspect(b, id)->plugged_bytes(), 2 * part);
      return;
    }
    for (const auto* leaving : {"dimm1", "dimm0"}) {
      ASSERT_TRUE(unplug(b, id, leaving));
      ASSERT_TRUE(news->await(on->patience(),
                              [&](const v1::VmEvent& e) {
                                return e.kind() == v1::VmEvent::KIND_DEVICE_REMOVED && e.device_id() == leaving;
                              }))
          << leaving << " did not leave";
    }
    const auto small = guest->await_memory(0, total, std::chrono::seconds{60});
    ASSERT_TRUE(small);
    EXPECT_EQ(small->mem_total_bytes(), total);
    const auto seen = on->inspect(b, id);
    EXPECT_EQ(seen->plugged_bytes(), 0u);
    EXPECT_EQ(seen->dimms_size(), 0);
    EXPECT_TRUE(unplug(b, id, "dimm0")) << "an unplug of one that is gone is a success";
    const auto reused = plug(b, id, "dimm3", part);
    ASSERT_TRUE(reused) << "a slot that was left is free again: " << reused.text();
  } else {
    const auto granule = capabilities.virtio_mem_granule_bytes();
    EXPECT_TRUE(refused(request(b, id, granule / 2)));
    EXPECT_TRUE(refused(request(b, id, 3 * part + granule))) << "more than the VM's maximum";
    EXPECT_EQ(on->inspect(b, id)->virtio_mem_requested_bytes(), 0u) << "a refused step changed something";
    for (const auto wanted : {granule, part, 3 * part}) {
      const auto asked = request(b, id, wanted);
      ASSERT_TRUE(asked) << asked.text();
      EXPECT_EQ(asked->virtio_mem_requested_bytes(), wanted);
      const auto grown = guest->await_memory(total + wanted, 0, std::chrono::seconds{60});
      ASSERT_TRUE(grown) << guest->lost();
      EXPECT_EQ(grown->mem_total_bytes(), total + wanted);
      ASSERT_TRUE(news->await(
          on->patience(),
          [&](const v1::VmEvent& e) { return e.kind() == v1::VmEvent::KIND_MEMORY_SIZE && e.size_bytes() == wanted; }))
          << "no event tells of " << wanted;
      EXPECT_EQ(on->inspect(b, id)->plugged_bytes(), wanted);
      EXPECT_TRUE(request(b, id, wanted)) << "the same again is a success";
    }
    if (!capabilities.virtio_mem_shrink()) {
      EXPECT_EQ(code(request(b, id, part)), ec::unsupported);
      return;
    }
    ASSERT_TRUE(request(b, id, 0));
    ASSERT_TRUE(news->await(on->patience(), [&](const v1::VmEvent& e) {
      return e.kind() == v1::VmEvent::KIND_MEMORY_SIZE && e.size_bytes() == 0;
    })) << "the memory did not come back";
    const auto small = guest->await_memory(0, total, std::chrono::seconds{60});
    ASSERT_TRUE(small);
    EXPECT_EQ(small->mem_total_bytes(), total);
    EXPECT_EQ(on->inspect(b, id)->plugged_bytes(), 0u);
  }
  // The method that the VM was not made with does nothing.
  EXPECT_NE(code(dimm() ? request(b, id, 2 * mib) : plug(b, id, "dimm9", part)), ec::none);
}

TEST_P(conformance, processors_in_both_directions) {
  const std::string id = "cpus";
  auto b = on->backend(id, news);
  const auto vm = create(b, id);
  ASSERT_TRUE(vm) << vm.text();
  auto guest = on->guest(*vm.value);
  ASSERT_TRUE(guest) << "the guest's agent did not answer";
  if (!capabilities.vcpu_plug())
    return;
  EXPECT_TRUE(refused(vcpus(b, id, 4))) << "more than the VM's maximum";
  const auto more = vcpus(b, id, 3);
  ASSERT_TRUE(more) << more.text();
  EXPECT_EQ(more->plugged_vcpus(), 3u);
  const auto up = guest->set_online_cpus(3, std::chrono::seconds{60});
  ASSERT_TRUE(up) << guest->lost();
  EXPECT_EQ(up->online(), 3u);
  EXPECT_TRUE(vcpus(b, id, 3)) << "the same again is a success";
  const auto down = guest->set_online_cpus(1, std::chrono::seconds{60});
  ASSERT_TRUE(down) << guest->lost();
  EXPECT_EQ(down->online(), 1u);
  const auto fewer = vcpus(b, id, 1);
  if (capabilities.vcpu_unplug()) {
    ASSERT_TRUE(fewer) << fewer.text();
    EXPECT_EQ(fewer->plugged_vcpus(), 1u);
  } else {
    EXPECT_EQ(code(fewer), ec::unsupported);
    EXPECT_EQ(on->inspect(b, id)->plugged_vcpus(), 3u);
  }
}

} // namespace caisson::tests
