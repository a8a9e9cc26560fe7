// Interfaces: which of the host's are taken, and that a VM holds its tap by a descriptor, known by the tap's name all
// the same, whatever is lost meanwhile.

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "backends/cloud-hypervisor/records.hpp"
#include "backends/cloud-hypervisor/tap.hpp"
#include "tests/backends/cloud_hypervisor/driver_rig.hpp"

namespace caisson::cloud_hypervisor {
namespace {

/// An interface that stays until the object goes.
class own_interface {
public:
  explicit own_interface(int flags = IFF_TAP) : flags_(flags | IFF_NO_PI) {
    static std::atomic<int> count{0};
    name = "cat" + std::to_string(::getpid() % 100'000) + "x" + std::to_string(count++);
    if (!persist(1))
      why_not = std::string{"no tap can be made here: "} + std::strerror(errno);
  }
  ~own_interface() {
    if (why_not.empty() && !persist(0))
      ADD_FAILURE() << name << " has gone, or is held: " << std::strerror(errno);
  }

  bool is_up() const {
    const int socket = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    auto ask = request();
    const bool up = ::ioctl(socket, SIOCGIFFLAGS, &ask) == 0 && (ask.ifr_flags & IFF_UP) != 0;
    ::close(socket);
    return up;
  }

  std::string name;
  std::string why_not;

private:
  ifreq request() const {
    ifreq out{};
    name.copy(out.ifr_name, IFNAMSIZ - 1);
    return out;
  }
  bool persist(int on) const {
    const int fd = ::open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    auto ask = request();
    ask.ifr_flags = static_cast<short>(flags_);
    const bool done = fd >= 0 && ::ioctl(fd, TUNSETIFF, &ask) == 0 && ::ioctl(fd, TUNSETPERSIST, on) == 0;
    const int number = errno;
    if (fd >= 0)
      ::close(fd);
    errno = number;
    return done;
  }
  int flags_;
};

std::string code_of(const std::string& name) {
  return attach_tap(name).why_not().code;
}

v1::BackendCall net_call(const std::string& id, const std::string& tap) {
  v1::BackendCall c;
  c.mutable_attach()->set_sandbox_id("a");
  c.mutable_attach()->mutable_net()->set_id(id);
  c.mutable_attach()->mutable_net()->set_tap_name(tap);
  return c;
}

bool has_net(const v1::VmObserved& seen, const std::string& id) {
  return std::any_of(seen.devices().begin(), seen.devices().end(),
                     [&](const auto& d) { return d.id() == id && d.kind() == "net"; });
}

TEST(tap, what_is_no_tap_is_refused_and_nothing_is_made_of_its_name) {
  for (const std::string name : {"", "no-such-tap0", "cat%d", "../lo", ".", "a-name-that-is-far-too-long"}) {
    EXPECT_EQ(tap_problem(name).code, "host_missing") << name;
    EXPECT_EQ(code_of(name), "host_missing") << name;
  }
  EXPECT_EQ(::if_nametoindex("no-such-tap0"), 0u);
  EXPECT_EQ(::if_nametoindex("cat0"), 0u);
  EXPECT_EQ(code_of("lo"), "host_missing");
  EXPECT_NE(tap_problem("lo").text.find("\"lo\" is no tap"), std::string::npos) << tap_problem("lo").text;
}

TEST(tap, a_tun_is_no_tap) {
  own_interface tun{IFF_TUN};
  if (!tun.why_not.empty())
    GTEST_SKIP() << tun.why_not;
  EXPECT_EQ(tap_problem(tun.name).code, "host_missing");
  EXPECT_NE(tap_problem(tun.name).text.find("a tun"), std::string::npos) << tap_problem(tun.name).text;
}

TEST(tap, is_brought_up_and_serves_one_at_a_time) {
  own_interface tap;
  if (!tap.why_not.empty())
    GTEST_SKIP() << tap.why_not;
  EXPECT_FALSE(tap.is_up());
  {
    const auto first = attach_tap(tap.name);
    ASSERT_TRUE(first) << first.why_not().text;
    EXPECT_TRUE(tap.is_up());
    EXPECT_EQ(code_of(tap.name), "backend_refused");
    EXPECT_EQ(tap_problem(tap.name).code, "") << "a look disturbs nobody";
  }
  EXPECT_TRUE(attach_tap(tap.name)) << "it is free again";
}

TEST(tap, one_with_several_queues_serves_with_one) {
  own_interface tap{IFF_TAP | IFF_MULTI_QUEUE};
  if (!tap.why_not.empty())
    GTEST_SKIP() << tap.why_not;
  const auto queue = attach_tap(tap.name);
  EXPECT_TRUE(queue) << queue.why_not().text;
}

TEST(tap, whose_owner_is_another_user_is_denied) {
  own_interface tap;
  if (!tap.why_not.empty())
    GTEST_SKIP() << tap.why_not;
  if (::geteuid() != 0)
    GTEST_SKIP() << "only root can be somebody else";
  const auto child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const bool other = ::setresgid(65534, 65534, 65534) == 0 && ::setresuid(65534, 65534, 65534) == 0;
    ::_exit(other && code_of(tap.name) == "host_denied" ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST(records, know_what_stands_behind_a_device_and_the_one_that_was_asked_for) {
  vm_record before;
  before.spec.set_sandbox_id("a");
  before.book.devices.push_back({.id = "eth0", .kind = "net", .address = "0000:00:05.0", .source = "tap0"});
  before.book.asked_device = held_device{.id = "eth1", .kind = "net", .source = "tap1"};
  vm_record after;
  ASSERT_TRUE(from_text(to_text(before), after));
  ASSERT_EQ(after.book.devices.size(), 1u);
  EXPECT_EQ(after.book.devices[0].source, "tap0");
  EXPECT_EQ(after.book.devices[0].address, "0000:00:05.0");
  ASSERT_TRUE(after.book.asked_device);
  EXPECT_EQ(after.book.asked_device->source, "tap1");
}

TEST(records, of_an_engine_that_did_not_keep_names_are_read) {
  vm_record before;
  before.spec.set_sandbox_id("a");
  before.book.devices.push_back({.id = "eth0", .kind = "net", .source = "tap0"});
  auto text = to_text(before);
  const auto at = text.find("\"source\"");
  ASSERT_NE(at, std::string::npos);
  text.replace(at, 8, "\"later\"");
  vm_record after;
  ASSERT_TRUE(from_text(text, after));
  EXPECT_EQ(after.book.devices.at(0).id, "eth0");
}

class nets : public driver_rig {
protected:
  v1::VmSpec spec_with(const std::string& interface) {
    auto s = spec();
    s.add_nets()->set_id("eth0");
    s.mutable_nets(0)->set_tap_name(interface);
    s.mutable_nets(0)->set_mac("02:00:00:00:00:01");
    return s;
  }

  own_interface tap, other; // for longer than the VM that TearDown destroys
};

TEST_F(nets, an_interface_that_is_no_tap_makes_no_vm) {
  const auto refused = ask(create_call(spec_with("lo")));
  EXPECT_EQ(refused.error().code(), "host_missing");
  EXPECT_NE(refused.error().text().find("net eth0: interface \"lo\" is no tap"), std::string::npos)
      << refused.error().text();
  EXPECT_TRUE(list().empty());
  create(spec());
  EXPECT_EQ(ask(net_call("eth0", "lo")).error().code(), "host_missing");
  EXPECT_EQ(inspect().devices_size(), 0);
}

TEST_F(nets, a_vm_holds_its_tap_from_the_boot_to_its_end) {
  if (!tap.why_not.empty())
    GTEST_SKIP() << tap.why_not;
  EXPECT_TRUE(has_net(create(spec_with(tap.name)), "eth0"));
  EXPECT_EQ(code_of(tap.name), "backend_refused");
  const auto second = ask(net_call("eth1", tap.name));
  EXPECT_EQ(second.error().code(), "backend_refused");
  EXPECT_NE(second.error().text().find("tap \"" + tap.name + "\" is in use"), std::string::npos)
      << second.error().text();
  EXPECT_EQ(good(ask(net_call("eth0", tap.name))).devices_size(), 1) << "the same once more";
  destroy();
  EXPECT_EQ(code_of(tap.name), "");
}

TEST_F(nets, a_boot_with_a_tap_that_another_vm_holds_leaves_nothing) {
  if (!tap.why_not.empty())
    GTEST_SKIP() << tap.why_not;
  const auto held = attach_tap(tap.name);
  ASSERT_TRUE(held) << held.why_not().text;
  EXPECT_EQ(ask(create_call(spec_with(tap.name))).error().code(), "backend_refused");
  EXPECT_TRUE(list().empty());
}

TEST_F(nets, a_tap_is_known_by_its_name_to_this_engine_and_the_next) {
  if (!tap.why_not.empty())
    GTEST_SKIP() << tap.why_not;
  create(spec());
  EXPECT_TRUE(has_net(good(ask(net_call("eth0", tap.name))), "eth0"));
  for (int engine = 0; engine < 2; ++engine) {
    EXPECT_EQ(good(ask(net_call("eth0", tap.name))).devices_size(), 1);
    const auto refused = ask(net_call("eth0", other.name));
    EXPECT_EQ(refused.error().code(), "already_exists");
    EXPECT_NE(refused.error().text().find(tap.name), std::string::npos) << refused.error().text();
    new_driver();
  }
  EXPECT_TRUE(has_net(inspect(), "eth0"));
}

TEST_F(nets, a_lost_answer_does_not_lose_the_taps_name) {
  if (!tap.why_not.empty())
    GTEST_SKIP() << tap.why_not;
  faults("drop_reply=vm.add-net:1");
  create(spec());
  EXPECT_EQ(ask(net_call("eth0", tap.name)).error().code(), "outcome_unknown");
  new_driver();
  EXPECT_EQ(ask(net_call("eth0", other.name)).error().code(), "already_exists");
  EXPECT_EQ(good(ask(net_call("eth0", tap.name))).devices_size(), 1);
}

TEST_F(nets, a_tap_is_free_when_its_device_has_left) {
  if (!tap.why_not.empty())
    GTEST_SKIP() << tap.why_not;
  create(spec());
  for (int again = 0; again < 2; ++again) {
    EXPECT_TRUE(has_net(good(ask(net_call("eth0", tap.name))), "eth0"));
    good(ask(detach_call("eth0")));
    until([](const auto& seen) { return !has_net(seen, "eth0"); });
    EXPECT_EQ(code_of(tap.name), "");
  }
}

} // namespace
} // namespace caisson::cloud_hypervisor
