// Each knob does what it says.

#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>

#include "tests/backends/cloud_hypervisor_double/double_process.hpp"

namespace caisson::cloud_hypervisor::tests {
namespace {

namespace fs = std::filesystem;
constexpr std::uint64_t mib = 1u << 20;

class fault : public ::testing::Test {
protected:
  void with(std::initializer_list<const char*> faults, std::vector<std::string> more = {}) {
    for (const auto* f : faults) {
      more.emplace_back("--fault");
      more.emplace_back(f);
    }
    vmm_.emplace(at_.path("v"), std::move(more));
  }
  double_process& vmm() { return *vmm_; }

  void booted(const json& more = json::object()) {
    ASSERT_EQ(vmm().put("vm.create", small_vm(at_, more)).code, "204");
    ASSERT_EQ(vmm().put("vm.boot").code, "204");
  }
  void booted_and_up(const json& more = json::object()) {
    booted(more);
    ASSERT_TRUE(vmm().await_event("virtio-device/activated"));
  }

  scratch at_;
  std::optional<double_process> vmm_;
};

json virtio_mem() {
  return json{{"memory", json{{"size", 256 * mib}, {"hotplug_method", "VirtioMem"}, {"hotplug_size", 1024 * mib}}}};
}

TEST_F(fault, a_lost_reply_leaves_the_deed_done) {
  with({"drop_reply=vm.create"});
  const auto a = vmm().put("vm.create", json::object());
  EXPECT_EQ(a.code, "---");
  EXPECT_EQ(vmm().ask("GET", "vm.info").code, "200");
}

TEST_F(fault, the_nth_call_alone_is_struck) {
  with({"drop_reply=vmm.ping:2"});
  EXPECT_EQ(vmm().ask("GET", "vmm.ping").code, "200");
  EXPECT_EQ(vmm().ask("GET", "vmm.ping").code, "---");
  EXPECT_EQ(vmm().ask("GET", "vmm.ping").code, "200");
}

TEST_F(fault, a_shutdown_may_end_before_its_reply) {
  with({"exit_before_reply=vmm.shutdown"});
  EXPECT_EQ(vmm().put("vmm.shutdown").code, "---");
  EXPECT_EQ(vmm().wait(), 0);
}

TEST_F(fault, a_crash_does_nothing_and_leaves_everything_behind) {
  with({"crash=vm.resize"});
  booted(json{{"vsock", json{{"cid", 3}, {"socket", at_.path("vsock")}}}});
  EXPECT_EQ(vmm().put("vm.resize", json::object()).code, "---");
  EXPECT_EQ(vmm().wait(), 1);
  EXPECT_TRUE(fs::exists(vmm().socket()));
  EXPECT_TRUE(fs::exists(at_.path("vsock")));
}

TEST_F(fault, garbage_and_half_a_reply) {
  with({"garbage=vmm.ping", "partial=vm.info"});
  stream s{vmm().socket()};
  s.send(request_text("GET", "vmm.ping"));
  std::string text;
  s.receive(text, [](const std::string& t) { return t.find("\r\n\r\n") != t.npos; });
  EXPECT_FALSE(text.starts_with("HTTP"));
  const auto a = vmm().ask("GET", "vm.info");
  EXPECT_EQ(a.code, "---");
  EXPECT_EQ(a.end, "EOF");
}

TEST_F(fault, a_reply_byte_by_byte_is_whole_in_the_end) {
  with({"slow=vmm.ping"});
  stream s{vmm().socket()};
  s.send(request_text("GET", "vmm.ping"));
  std::string first;
  s.receive(first, [](const std::string& t) { return !t.empty(); });
  EXPECT_LT(first.size(), 20u);
  s.receive(first, [](const std::string& t) { return t.ends_with("}"); });
  EXPECT_TRUE(first.starts_with("HTTP/1.1 200")) << first;
}

TEST_F(fault, a_hanging_call_is_done_and_silences_all) {
  with({"hang=vm.create"});
  stream s{vmm().socket()}, other{vmm().socket()};
  s.send(request_text("PUT", "vm.create", "{}"));
  other.send(request_text("GET", "vmm.ping"));
  std::string nothing;
  EXPECT_EQ(s.receive(nothing, [](const std::string& t) { return !t.empty(); }, std::chrono::milliseconds{150}), "silence");
  EXPECT_EQ(other.receive(nothing, [](const std::string& t) { return !t.empty(); }, std::chrono::milliseconds{1}),
            "silence");
  vmm().signal(SIGTERM);
  EXPECT_EQ(vmm().wait(), 0);
}

TEST_F(fault, every_connection_may_be_one_too_many) {
  with({"full=1"});
  stream s{vmm().socket()};
  EXPECT_TRUE(s.rest().starts_with("HTTP/1.1 503\r\n"));
}

TEST_F(fault, a_socket_may_stay_behind_a_clean_end) {
  with({"stale_socket=1"});
  vmm().signal(SIGTERM);
  EXPECT_EQ(vmm().wait(), 0);
  EXPECT_TRUE(fs::exists(vmm().socket()));
}

TEST_F(fault, events_get_lost) {
  with({"events_lost=2"});
  vmm().put("vm.boot");
  vmm().put("vm.reboot");
  vmm().signal(SIGTERM);
  vmm().wait();
  // starting, (booting), rebooting, (shutdown)
  const auto text = vmm().events_to_the_end();
  EXPECT_EQ(text.find("\"booting\""), text.npos);
  EXPECT_NE(text.find("\"rebooting\""), text.npos);
}

TEST_F(fault, a_host_out_of_memory_refuses_a_dimm) {
  with({"mmap_fails=2"});
  booted(json{{"memory", json{{"size", 256 * mib}, {"hotplug_size", 1024 * mib}}}});
  EXPECT_EQ(vmm().put("vm.resize", json{{"desired_ram", 384 * mib}}).code, "204");
  const auto a = vmm().put("vm.resize", json{{"desired_ram", 512 * mib}});
  EXPECT_EQ(a.code, "500");
  EXPECT_NE(a.body.find("Cannot allocate memory (os error 12)"), a.body.npos) << a.body;
  EXPECT_EQ(vmm().info()["config"]["memory"]["size"], 384 * mib);
}

TEST_F(fault, a_boot_may_fail_with_the_vm_there) {
  with({"boot_fails=1"});
  ASSERT_EQ(vmm().put("vm.create", small_vm(at_)).code, "204");
  EXPECT_EQ(vmm().put("vm.boot").code, "500");
  EXPECT_TRUE(vmm().info().contains("device_tree"));
  EXPECT_EQ(vmm().put("vm.shutdown").code, "204");
  EXPECT_EQ(vmm().put("vm.boot").code, "204");
}

TEST_F(fault, vcpus_that_are_never_given_back_keep_429) {
  with({"guest_ack=never"});
  booted_and_up(json{{"cpus", json{{"boot_vcpus", 3}, {"max_vcpus", 4}}}});
  EXPECT_EQ(vmm().put("vm.resize", json{{"desired_vcpus", 1}}).code, "204");
  EXPECT_EQ(vmm().put("vm.resize", json{{"desired_vcpus", 2}}).code, "429");
}

TEST_F(fault, a_guest_without_the_driver_plugs_nothing) {
  with({"virtio_mem=no_driver"});
  booted_and_up(virtio_mem());
  EXPECT_EQ(vmm().put("vm.resize", json{{"desired_ram", 512 * mib}}).code, "204");
  const auto info = vmm().info();
  EXPECT_EQ(info["config"]["memory"]["hotplugged_size"], 256 * mib);
  EXPECT_EQ(info["memory_actual_size"], 256 * mib);
}

/// Asks until the memory is so; the guest moves it meanwhile.
bool reaches(double_process& vmm, std::uint64_t bytes) {
  const auto end = std::chrono::steady_clock::now() + patience;
  while (std::chrono::steady_clock::now() < end)
    if (vmm.info()["memory_actual_size"] == bytes)
      return true;
  return false;
}

TEST_F(fault, a_guest_plugs_only_so_much) {
  with({"virtio_mem_most=128"});
  booted_and_up(virtio_mem());
  EXPECT_EQ(vmm().put("vm.resize", json{{"desired_ram", 768 * mib}}).code, "204");
  EXPECT_TRUE(reaches(vmm(), 384 * mib));
}

TEST_F(fault, a_guest_keeps_some_of_it) {
  with({"virtio_mem_floor=64"});
  booted_and_up(virtio_mem());
  vmm().put("vm.resize", json{{"desired_ram", 768 * mib}});
  ASSERT_TRUE(reaches(vmm(), 768 * mib));
  EXPECT_EQ(vmm().put("vm.resize", json{{"desired_ram", 256 * mib}}).code, "204");
  EXPECT_TRUE(reaches(vmm(), 320 * mib));
}

TEST_F(fault, a_balloon_inflates_only_so_far) {
  with({"balloon_most=32"});
  booted_and_up(json{{"balloon", json{{"size", 0}}}});
  EXPECT_EQ(vmm().put("vm.resize", json{{"desired_balloon", 128 * mib}}).code, "204");
  EXPECT_TRUE(reaches(vmm(), 224 * mib));
  EXPECT_EQ(vmm().put("vm.resize", json{{"desired_balloon", 0}}).code, "204");
  EXPECT_TRUE(reaches(vmm(), 256 * mib));
}

TEST_F(fault, a_guest_ignores_the_power_button) {
  with({"power_button=ignored"});
  booted_and_up();
  EXPECT_EQ(vmm().put("vm.power-button").code, "204");
  EXPECT_EQ(vmm().info()["state"], "Running");
}

TEST_F(fault, a_power_button_ends_the_process) {
  with({});
  booted_and_up();
  EXPECT_EQ(vmm().put("vm.power-button").code, "204");
  EXPECT_EQ(vmm().wait(), 0);
  EXPECT_FALSE(fs::exists(vmm().socket()));
}

TEST_F(fault, a_power_off_leaves_the_process_where_asked) {
  with({"guest_poweroff_ms=1"}, {"--no-shutdown"});
  booted();
  ASSERT_TRUE(vmm().await_event("vm/shutdown"));
  EXPECT_EQ(vmm().info()["state"], "Created");
  EXPECT_EQ(vmm().put("vm.boot").code, "204");
}

TEST_F(fault, a_guest_panics) {
  with({"guest_panic_ms=1"});
  booted(json{{"pvpanic", true}});
  const auto p = vmm().await_event("guest/panic");
  ASSERT_TRUE(p);
  EXPECT_EQ((*p)["event"], "panic");
  EXPECT_EQ(vmm().info()["state"], "Running");
}

TEST_F(fault, a_guest_resets) {
  with({"guest_reset_ms=1"});
  booted();
  ASSERT_TRUE(vmm().await_event("vm/rebooted"));
  EXPECT_EQ(vmm().info()["state"], "Running");
}

TEST_F(fault, a_device_leaves_and_one_never_does) {
  with({});
  booted_and_up(json{{"disks", json::array({json{{"path", at_.file("d", "", mib)}, {"id", "d"}}})}});
  EXPECT_EQ(vmm().put("vm.remove-device", json{{"id", "d"}}).code, "204");
  const auto gone = vmm().await_event("vm/device-removed");
  ASSERT_TRUE(gone);
  EXPECT_EQ(*gone, (json{{"id", "d"}, {"bdf", "0000:00:01.0"}}));
  EXPECT_FALSE(vmm().info()["device_tree"].contains("d"));
  with({"remove_device=never"});
  booted_and_up(json{{"disks", json::array({json{{"path", at_.path("d")}, {"id", "d"}}})}});
  EXPECT_EQ(vmm().put("vm.remove-device", json{{"id", "d"}}).code, "204");
  EXPECT_EQ(vmm().put("vm.resize", json{{"desired_vcpus", 2}}).code, "204");
  EXPECT_TRUE(vmm().info()["device_tree"].contains("d"));
}

TEST_F(fault, a_vhost_user_socket_without_a_listener_holds_everything_up) {
  with({"vhost_timeout_ms=250"});
  auto c = small_vm(at_);
  c["memory"]["shared"] = true;
  c["fs"] = json::array({json{{"tag", "t"}, {"socket", at_.path("none")}}});
  ASSERT_EQ(vmm().put("vm.create", c).code, "204");
  const auto start = std::chrono::steady_clock::now();
  const auto a = vmm().put("vm.boot");
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds{250});
  EXPECT_EQ(a.code, "500");
  EXPECT_EQ(a.body, "[\"Error from API\",\"The VM could not boot\",\"Error from device manager\",\"Cannot create virtio-fs "
                    "device\",\"Connection to socket failed\",\"vhost-user: can't connect to peer: No such file or directory "
                    "(os error 2)\"]");
}

TEST_F(fault, knobs_come_from_the_environment_too) {
  EXPECT_EQ(run_double({"--version"}, {"CAISSON_CH_FAULTS=guest=none,boot_delay_ms=5"}).code, 0);
  EXPECT_EQ(run_double({"--version"}, {"CAISSON_CH_FAULTS=guest=none,boot_delay_ms=x"}).code, 2);
}

} // namespace
} // namespace caisson::cloud_hypervisor::tests
