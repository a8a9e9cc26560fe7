// Memory and processors, in both directions, at the edges of what a backend says it can do.

#include "tests/conformance/conformance.hpp"

namespace caisson::tests {
namespace {

constexpr std::uint64_t part = 128 * mib;
constexpr auto a_minute = std::chrono::seconds{60};

/// What the guest has, where it can be asked.
struct guest_memory {
  guest_client* guest = nullptr;
  std::uint64_t at_boot = 0;

  explicit guest_memory(guest_client* g) : guest{g} {
    if (!g)
      return;
    if (const auto facts = g->await_memory(0, 0, std::chrono::seconds{1}))
      at_boot = facts->mem_total_bytes();
  }
  ::testing::AssertionResult becomes(std::uint64_t beyond_boot) const {
    if (!guest)
      return ::testing::AssertionSuccess();
    const auto facts = guest->await_memory(at_boot + beyond_boot, at_boot + beyond_boot, a_minute);
    if (facts && facts->mem_total_bytes() == at_boot + beyond_boot)
      return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << (facts ? facts->ShortDebugString() : "no answer, " + guest->lost())
                                         << "; at boot it had " << at_boot << ", and " << beyond_boot << " more are expected";
  }
};

} // namespace

TEST_P(conformance, dimms_up_and_down_until_the_slots_are_used_up) {
  if (!dimm() || !grows())
    GTEST_SKIP() << GetParam().name << ": not tried, it is not about DIMMs";
  const std::string id = "dimms";
  auto b = on->backend(id, news);
  // One more part than there are slots: what is refused is refused for the slots.
  const std::uint32_t slots = std::min(2u, capabilities.dimm_max_slots());
  const auto vm = create(b, id, boot_bytes + (slots + 1) * part, slots);
  ASSERT_TRUE(vm) << vm.text();
  std::unique_ptr<guest_client> guest;
  ASSERT_TRUE(meet(guest, *vm.value));
  const guest_memory seen_inside{guest.get()};

  ASSERT_EQ(part % capabilities.dimm_block_bytes(), 0u);
  const auto one = plug(b, id, "dimm0", part);
  ASSERT_TRUE(one) << one.text();
  EXPECT_EQ(one->plugged_bytes(), part);
  ASSERT_EQ(one->dimms_size(), 1);
  EXPECT_EQ(one->dimms(0).id(), "dimm0");
  EXPECT_EQ(one->dimms(0).size_bytes(), part);
  EXPECT_TRUE(seen_inside.becomes(part));

  const auto same = plug(b, id, "dimm0", part);
  ASSERT_TRUE(same) << same.text();
  EXPECT_EQ(same->plugged_bytes(), part) << "a DIMM that is there was plugged again";
  EXPECT_TRUE(refused(plug(b, id, "odd", capabilities.dimm_block_bytes() / 2)));
  EXPECT_TRUE(refused(plug(b, id, "unaligned", part + mib)));
  EXPECT_TRUE(refused(plug(b, id, "large", 4 * part))) << "more than the VM's maximum";
  // As large as all that may be plugged, of which one part is: no slot is lacking, only room.
  EXPECT_TRUE(refused(plug(b, id, "large", (slots + 1) * part))) << "together more than the VM's maximum";
  const auto two = plug(b, id, "dimm1", part);
  ASSERT_TRUE(two) << two.text();
  EXPECT_EQ(two->plugged_bytes(), 2 * part);
  EXPECT_TRUE(refused(plug(b, id, "dimm2", part))) << "there are two slots";
  EXPECT_EQ(on->inspect(b, id)->plugged_bytes(), 2 * part) << "a refused step changed something";
  EXPECT_TRUE(seen_inside.becomes(2 * part));

  const auto never_there = unplug(b, id, "nowhere");
  EXPECT_TRUE(never_there || code(never_there) == ec::unsupported) << never_there.text();
  if (!capabilities.dimm_unplug()) {
    EXPECT_EQ(code(unplug(b, id, "dimm1")), ec::unsupported);
    EXPECT_EQ(on->inspect(b, id)->plugged_bytes(), 2 * part);
    return;
  }
  if (!reacts())
    return;
  for (const auto* leaving : {"dimm1", "dimm0"}) {
    ASSERT_TRUE(unplug(b, id, leaving));
    ASSERT_TRUE(left(leaving)) << leaving << " did not leave";
  }
  EXPECT_TRUE(seen_inside.becomes(0));
  const auto seen = on->inspect(b, id);
  EXPECT_EQ(seen->plugged_bytes(), 0u);
  EXPECT_EQ(seen->dimms_size(), 0);
  EXPECT_TRUE(unplug(b, id, "dimm0")) << "an unplug of one that is gone is a success";
  const auto reused = plug(b, id, "dimm3", part);
  ASSERT_TRUE(reused) << "a slot that was left is free again: " << reused.text();
}

TEST_P(conformance, virtio_mem_up_to_its_end_and_down_again) {
  if (dimm() || !grows())
    GTEST_SKIP() << GetParam().name << ": not tried, it is not about virtio-mem";
  const std::string id = "virtio-mem";
  auto b = on->backend(id, news);
  const auto vm = create(b, id, boot_bytes + 3 * part);
  ASSERT_TRUE(vm) << vm.text();
  std::unique_ptr<guest_client> guest;
  ASSERT_TRUE(meet(guest, *vm.value));
  const guest_memory seen_inside{guest.get()};
  const auto told = [&](std::uint64_t bytes) {
    return news->await(on->patience(), [&](const v1::VmEvent& e) {
      return e.kind() == v1::VmEvent::KIND_MEMORY_SIZE && e.size_bytes() == bytes;
    });
  };

  const auto granule = capabilities.virtio_mem_granule_bytes();
  EXPECT_TRUE(refused(request(b, id, granule / 2)));
  EXPECT_TRUE(refused(request(b, id, part + granule / 2))) << "not aligned";
  EXPECT_TRUE(refused(request(b, id, 3 * part + granule))) << "more than the VM's maximum";
  EXPECT_EQ(on->inspect(b, id)->virtio_mem_requested_bytes(), 0u) << "a refused step changed something";
  EXPECT_TRUE(request(b, id, 0)) << "what is so already is a success";
  for (const auto wanted : {granule, part, 3 * part}) {
    const auto asked = request(b, id, wanted);
    ASSERT_TRUE(asked) << asked.text();
    EXPECT_EQ(asked->virtio_mem_requested_bytes(), wanted);
    EXPECT_TRUE(seen_inside.becomes(wanted));
    if (reacts()) {
      ASSERT_TRUE(told(wanted)) << "no event tells of " << wanted;
      EXPECT_EQ(on->inspect(b, id)->plugged_bytes(), wanted);
    }
    EXPECT_TRUE(request(b, id, wanted)) << "the same again is a success";
  }
  if (!capabilities.virtio_mem_shrink()) {
    EXPECT_EQ(code(request(b, id, part)), ec::unsupported);
    return;
  }
  const auto back = request(b, id, 0);
  ASSERT_TRUE(back) << back.text();
  EXPECT_EQ(back->virtio_mem_requested_bytes(), 0u);
  if (!reacts())
    return;
  ASSERT_TRUE(told(0)) << "the memory did not come back";
  EXPECT_TRUE(seen_inside.becomes(0));
  EXPECT_EQ(on->inspect(b, id)->plugged_bytes(), 0u);
}

TEST_P(conformance, processors_in_both_directions) {
  if (!capabilities.vcpu_plug())
    GTEST_SKIP() << GetParam().name << ": not tried, " << capabilities.vcpu_plug_why_not();
  const std::string id = "cpus";
  auto b = on->backend(id, news);
  const auto vm = create(b, id);
  ASSERT_TRUE(vm) << vm.text();
  std::unique_ptr<guest_client> guest;
  ASSERT_TRUE(meet(guest, *vm.value));
  EXPECT_TRUE(refused(vcpus(b, id, 4))) << "more than the VM's maximum";
  EXPECT_TRUE(refused(vcpus(b, id, 0))) << "below one";
  EXPECT_TRUE(vcpus(b, id, 1)) << "what is so already is a success";
  const auto more = vcpus(b, id, 3);
  ASSERT_TRUE(more) << more.text();
  EXPECT_EQ(more->plugged_vcpus(), 3u);
  EXPECT_TRUE(vcpus(b, id, 3)) << "the same again is a success";
  if (guest) {
    const auto up = guest->set_online_cpus(3, a_minute);
    ASSERT_TRUE(up) << guest->lost();
    EXPECT_EQ(up->online(), 3u);
    const auto down = guest->set_online_cpus(1, a_minute);
    ASSERT_TRUE(down) << guest->lost();
    EXPECT_EQ(down->online(), 1u);
  }
  const auto fewer = vcpus(b, id, 1);
  if (!capabilities.vcpu_unplug()) {
    EXPECT_EQ(code(fewer), ec::unsupported);
    EXPECT_EQ(on->inspect(b, id)->plugged_vcpus(), 3u);
  } else if (reacts()) {
    ASSERT_TRUE(fewer) << fewer.text();
    // Some VMMs wait for the guest, which lets go a moment later: read back, as an engine would.
    auto seen = fewer;
    for (const auto until = std::chrono::steady_clock::now() + a_minute;
         seen && seen->plugged_vcpus() != 1 && std::chrono::steady_clock::now() < until; seen = on->inspect(b, id)) {
    }
    ASSERT_TRUE(seen) << seen.text();
    EXPECT_EQ(seen->plugged_vcpus(), 1u);
  }
}

} // namespace caisson::tests
