// Disks and network interfaces: at boot, attached and detached, twice, under a name that is taken, unknown.

#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>

#include "tests/conformance/conformance.hpp"

namespace caisson::tests {
namespace {

/// What comes out of a tap.
class frames_of {
public:
  /// Brings it up where it is down, as whoever connects a tap to something does.
  explicit frames_of(const std::string& tap) : socket_{::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL))} {
    ifreq link{};
    tap.copy(link.ifr_name, IFNAMSIZ - 1);
    const bool there = ::ioctl(socket_, SIOCGIFFLAGS, &link) == 0;
    link.ifr_flags = static_cast<short>(link.ifr_flags | IFF_UP);
    sockaddr_ll at{};
    at.sll_family = AF_PACKET;
    at.sll_protocol = htons(ETH_P_ALL);
    at.sll_ifindex = static_cast<int>(::if_nametoindex(tap.c_str()));
    if (socket_ >= 0 && (!there || ::ioctl(socket_, SIOCSIFFLAGS, &link) != 0 ||
                         ::bind(socket_, reinterpret_cast<const sockaddr*>(&at), sizeof at) != 0)) {
      ::close(socket_);
      socket_ = -1;
    }
  }
  ~frames_of() {
    if (socket_ >= 0)
      ::close(socket_);
  }
  frames_of(const frames_of&) = delete;
  frames_of& operator=(const frames_of&) = delete;

  bool listening() const { return socket_ >= 0; }
  /// One whose sender has this address.
  bool await_from(const std::array<unsigned char, 6>& mac, std::chrono::milliseconds at_most) const {
    const auto end = std::chrono::steady_clock::now() + at_most;
    for (auto left = at_most; left.count() > 0;
         left = std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now())) {
      pollfd some{socket_, POLLIN, 0};
      std::array<unsigned char, 2048> frame{};
      if (::poll(&some, 1, static_cast<int>(left.count())) <= 0)
        continue;
      if (::recv(socket_, frame.data(), frame.size(), 0) >= 14 && std::equal(mac.begin(), mac.end(), frame.begin() + 6))
        return true;
    }
    return false;
  }

private:
  int socket_;
};

} // namespace

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

TEST_P(conformance, an_interface_of_the_specification_is_there_and_its_guest_is_heard) {
  if (!capabilities.nets())
    GTEST_SKIP() << GetParam().name << ": not tried, " << capabilities.devices_why_not();
  std::string why;
  const auto tap = on->tap(why);
  if (tap.empty())
    GTEST_SKIP() << GetParam().name << ": not tried, " << why;
  const std::string id = "net";
  auto b = on->backend(id, news);
  auto m = create_message(id);
  auto& net = *m.mutable_spec()->add_nets();
  net.set_id("eth0");
  net.set_tap_name(tap);
  net.set_mac("02:00:00:00:00:17");
  const auto vm = on->ask<v1::VmObserved>(b, m);
  ASSERT_TRUE(vm) << vm.text();
  const auto* device = device_in(*vm.value, "eth0");
  ASSERT_NE(device, nullptr) << vm.text();
  EXPECT_EQ(device->kind(), "net");
  const auto same = attach_net(b, id, "eth0", tap);
  ASSERT_TRUE(same) << "the same once more: " << same.text();
  EXPECT_EQ(same->devices_size(), 1) << same.text();
  EXPECT_EQ(on->inspect(b, id)->devices_size(), 1);
  std::unique_ptr<guest_client> guest;
  ASSERT_TRUE(meet(guest, *vm.value));
  if (!guest || !reacts() || capabilities.accelerator() == "simulated")
    return; // no guest that has frames
  const frames_of host_end{tap};
  if (!host_end.listening())
    GTEST_SKIP() << GetParam().name << ": the rest is not tried, nobody lets us listen at " << tap;
  v1::AgentRequest r;
  auto& exec = *r.mutable_exec_start();
  for (const auto* word : {"sh", "-c",
                           "ip link set eth0 up && ip addr add 10.77.0.2/24 dev eth0 && ping -c 30 -w 60 10.77.0.1"})
    exec.add_argv(word);
  exec.set_stdin_stream(1);
  exec.set_stdout_stream(2);
  exec.set_stderr_stream(3);
  const auto started = guest->ask(r, on->patience());
  ASSERT_TRUE(started && started->has_exec_started()) << guest->lost() << (started ? started->ShortDebugString() : "");
  EXPECT_TRUE(host_end.await_from({0x02, 0, 0, 0, 0, 0x17}, on->patience())) << "no frame of the guest came";
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
