// Disks and network interfaces: at boot, attached and detached, twice, under a name that is taken, unknown.

#include "tests/conformance/conformance.hpp"

namespace caisson::tests {

TEST_P(conformance, disks_come_and_go) {
  if (!capabilities.disks())
    GTEST_SKIP() << GetParam().name << ": not tried, " << capabilities.devices_why_not();
  const std::string id = "disks";
  auto b = on->backend(id, news);
  auto m = create_message(id);
  auto& first = *m.mutable_spec()->add_disks();
  first.set_id("boot0");
  first.set_path(on->image("boot0"));
  first.set_read_only(true);
  const auto vm = on->ask<v1::VmObserved>(b, m);
  ASSERT_TRUE(vm) << vm.text();
  ASSERT_EQ(vm->devices_size(), 1) << vm.text();
  EXPECT_EQ(vm->devices(0).id(), "boot0");
  EXPECT_EQ(vm->devices(0).kind(), "disk");
  std::unique_ptr<guest_client> guest;
  ASSERT_TRUE(meet(guest, *vm.value));

  const auto image = on->image("data");
  for (int twice = 0; twice < 2; ++twice) {
    const auto attached = attach_disk(b, id, "data", image);
    ASSERT_TRUE(attached) << attached.text();
    EXPECT_EQ(attached->devices_size(), 2) << attached.text();
    const auto* device = device_in(*attached.value, "data");
    ASSERT_NE(device, nullptr);
    EXPECT_EQ(device->kind(), "disk");
    EXPECT_FALSE(device->leaving());
  }
  EXPECT_EQ(code(attach_disk(b, id, "data", on->image("other"))), ec::already_exists);
  if (!on->world()) {
    const auto nowhere = attach_disk(b, id, "lost", "/nonexistent/caisson.raw");
    EXPECT_TRUE(code(nowhere) == ec::host_missing || code(nowhere) == ec::backend_refused) << nowhere.text();
  }
  EXPECT_EQ(code(attach_disk(b, id, "Not/An Id", image)), ec::invalid_argument);
  v1::AttachDevice nothing;
  nothing.set_sandbox_id(id);
  EXPECT_EQ(code(on->ask<v1::VmObserved>(b, nothing)), ec::invalid_argument);

  EXPECT_TRUE(detach(b, id, "never-there")) << "one that is gone is a success";
  if (!reacts())
    return;
  for (const auto* leaving : {"data", "boot0"}) {
    const auto asked = detach(b, id, leaving);
    ASSERT_TRUE(asked) << asked.text();
    const auto* device = device_in(*asked.value, leaving);
    EXPECT_TRUE(!device || device->leaving()) << asked.text();
    EXPECT_TRUE(detach(b, id, leaving)) << "twice is a success";
    ASSERT_TRUE(left(leaving)) << leaving << " did not leave";
    EXPECT_EQ(device_in(*on->inspect(b, id).value, leaving), nullptr);
  }
  const auto again = attach_disk(b, id, "data", image);
  ASSERT_TRUE(again) << "an id that was left is free again: " << again.text();
  EXPECT_EQ(again->devices_size(), 1) << again.text();
}

TEST_P(conformance, an_interface_comes_and_goes) {
  if (!capabilities.nets())
    GTEST_SKIP() << GetParam().name << ": not tried, " << capabilities.devices_why_not();
  std::string why;
  const auto tap = on->tap(why);
  if (tap.empty())
    GTEST_SKIP() << GetParam().name << ": not tried, " << why;
  const std::string id = "net";
  auto b = on->backend(id, news);
  const auto vm = create(b, id);
  ASSERT_TRUE(vm) << vm.text();
  std::unique_ptr<guest_client> guest;
  ASSERT_TRUE(meet(guest, *vm.value));
  for (int twice = 0; twice < 2; ++twice) {
    const auto attached = attach_net(b, id, "eth0", tap);
    ASSERT_TRUE(attached) << attached.text();
    const auto* device = device_in(*attached.value, "eth0");
    ASSERT_NE(device, nullptr) << attached.text();
    EXPECT_EQ(device->kind(), "net");
  }
  const auto asked = detach(b, id, "eth0");
  ASSERT_TRUE(asked) << asked.text();
  if (!reacts())
    return;
  ASSERT_TRUE(left("eth0"));
  EXPECT_EQ(on->inspect(b, id)->devices_size(), 0);
}

TEST_P(conformance, a_share_without_its_daemon_is_refused_before_the_boot) {
  if (!capabilities.shares() || on->world())
    GTEST_SKIP() << GetParam().name << ": not tried, it has no shares or no daemon behind them";
  const std::string id = "share";
  auto b = on->backend(id, news);
  auto m = create_message(id);
  auto& share = *m.mutable_spec()->add_shares();
  share.set_id("bundle");
  share.set_socket_path(m.spec().run_directory() + "/nobody.sock");
  const auto refusal = on->ask<v1::VmObserved>(b, m);
  EXPECT_EQ(code(refusal), ec::host_missing) << refusal.text();
  EXPECT_NE(refusal.text().find("nobody.sock"), std::string::npos) << refusal.text();
  EXPECT_EQ(on->inspect(b, id)->state(), v1::VM_STATE_ABSENT);
}

} // namespace caisson::tests
