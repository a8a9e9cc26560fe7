#include "tests/guest/agent_client.hpp"
#include "tests/nested/cloud_guest.hpp"

#include <gtest/gtest.h>

#include <sys/wait.h>

#include <chrono>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>

namespace caisson::guest_protocol {
namespace {

using namespace std::chrono_literals;
constexpr auto patience = std::chrono::milliseconds{120s};
constexpr std::uint64_t mib = 1024 * 1024;

/// A real guest on a real Cloud Hypervisor: what the agent, the image and the VMM do together.
class cloud : public ::testing::Test {
protected:
  void start(const std::string& method, std::uint64_t boot_bytes = 512 * mib) {
    if (const auto reason = cloud_guest::unavailable(CAISSON_GUEST_DIRECTORY); !reason.empty())
      GTEST_SKIP() << reason;
    guest_ = std::make_unique<cloud_guest>(
        cloud_guest::options{CAISSON_GUEST_DIRECTORY, method, boot_bytes, 1024 * mib, 4});
    ASSERT_EQ(guest_->failure(), "") << guest_->console();
    connect();
  }
  void connect() {
    const int fd = guest_->connect_agent();
    ASSERT_GE(fd, 0) << guest_->console() << guest_->events();
    client_ = std::make_unique<agent_client>(fd);
    ASSERT_TRUE(client_->wait(patience, [&] { return client_->hello.has_value(); })) << guest_->console();
  }
  void TearDown() override {
    if (HasFailure() && guest_)
      std::cerr << "console:\n" << guest_->console() << "\nevents:\n" << guest_->events() << '\n';
  }

  /// True when `done` becomes so; asked again each time something comes from the guest, and ten times a second.
  bool eventually(const std::function<bool()>& done) {
    const auto until = std::chrono::steady_clock::now() + patience;
    while (!done()) {
      if (std::chrono::steady_clock::now() > until)
        return false;
      client_->wait(100ms, [] { return false; });
    }
    return true;
  }
  v1::AgentFacts facts() {
    v1::AgentRequest request;
    request.mutable_read_facts();
    const auto answer = client_->ask(request, patience);
    return answer ? answer->facts() : v1::AgentFacts{};
  }
  std::string shell(const std::string& script) {
    auto& c = client_->start({"sh", "-c", script});
    return client_->finish(c, patience) ? c.output + c.errors : "no end: " + script;
  }
  std::uint64_t vm_bytes() { return guest_->info().value("memory_actual_size", std::uint64_t{0}); }
  int resize(const char* what, std::uint64_t value) {
    const auto answer = guest_->ask("PUT", "vm.resize", "{\"" + std::string{what} + "\":" + std::to_string(value) + "}");
    if (answer.status != 204)
      std::cerr << "vm.resize: " << answer.status << ' ' << answer.body << '\n';
    return answer.status;
  }
  void set_online(std::uint32_t count) {
    v1::AgentRequest request;
    request.mutable_set_online_cpus()->set_online(count);
    request.mutable_set_online_cpus()->set_wait_ms(60'000);
    const auto answer = client_->ask(request, patience);
    ASSERT_TRUE(answer && answer->has_facts());
    EXPECT_EQ(answer->facts().cpus().online(), count);
  }

  std::unique_ptr<cloud_guest> guest_;
  std::unique_ptr<agent_client> client_;
};

TEST_F(cloud, memory_grows_and_shrinks_by_virtio_mem) {
  start("VirtioMem");
  if (IsSkipped() || HasFatalFailure())
    return;
  EXPECT_TRUE(client_->hello->features().virtio_mem());
  EXPECT_TRUE(client_->hello->features().free_page_reporting());
  EXPECT_EQ(shell("echo here"), "here\n");
  const auto boot = facts().memory().mem_total_bytes();
  for (const std::uint64_t plugged : {256 * mib, 768 * mib, 128 * mib, 0 * mib}) {
    ASSERT_EQ(resize("desired_ram", 512 * mib + plugged), 204);
    EXPECT_TRUE(eventually([&] { return vm_bytes() == 512 * mib + plugged; })) << vm_bytes() / mib;
    EXPECT_TRUE(eventually([&] { return facts().memory().mem_total_bytes() == boot + plugged; }))
        << facts().ShortDebugString();
  }
}

TEST_F(cloud, a_small_guest_gives_all_back) {
  start("VirtioMem", 256 * mib);
  if (IsSkipped() || HasFatalFailure())
    return;
  for (const std::uint64_t plugged : {2 * mib, 256 * mib, 768 * mib, 0 * mib}) {
    ASSERT_EQ(resize("desired_ram", 256 * mib + plugged), 204);
    EXPECT_TRUE(eventually([&] { return vm_bytes() == 256 * mib + plugged; }))
        << vm_bytes() / mib << " MiB\n"
        << shell("cd /sys/devices/system/memory; cat auto_online_blocks; for b in memory*; do echo $b $(cat $b/state "
                 "$b/valid_zones); done; dmesg | tail -n 20");
  }
}

TEST_F(cloud, memory_grows_by_acpi_and_comes_online) {
  start("Acpi");
  if (IsSkipped() || HasFatalFailure())
    return;
  EXPECT_TRUE(client_->hello->features().acpi_memory_hotplug());
  const auto boot = facts().memory().mem_total_bytes();
  std::uint64_t plugged = 0;
  for (const std::uint64_t more : {128 * mib, 512 * mib}) {
    plugged += more;
    ASSERT_EQ(resize("desired_ram", 512 * mib + plugged), 204);
    EXPECT_TRUE(eventually([&] { return facts().memory().mem_total_bytes() == boot + plugged; }))
        << facts().ShortDebugString();
    EXPECT_EQ(facts().memory().offline_blocks(), 0u);
  }
}

TEST_F(cloud, processors_come_and_go) {
  start("VirtioMem");
  if (IsSkipped() || HasFatalFailure())
    return;
  ASSERT_EQ(resize("desired_vcpus", 3), 204);
  set_online(3);
  set_online(1);
  const auto ping = nlohmann::json::parse(guest_->ask("GET", "vmm.ping").body, nullptr, false);
  if (const auto version = ping.value("version", std::string{}); std::atoi(version.c_str()) >= 54)
    GTEST_SKIP() << "v" << version << " refuses the eject of a vCPU whose removal the guest has acknowledged";
  ASSERT_EQ(resize("desired_vcpus", 1), 204);
  EXPECT_TRUE(eventually([&] { return facts().cpus().present() == 1; })) << facts().ShortDebugString();
  // Until the guest has ejected them, every further wish is answered 429.
  EXPECT_TRUE(eventually([&] { return guest_->ask("PUT", "vm.resize", "{\"desired_vcpus\":2}").status == 204; }));
  set_online(2);
}

TEST_F(cloud, a_new_connection_replaces_the_old_and_power_off_ends_the_process) {
  start("VirtioMem");
  if (IsSkipped() || HasFatalFailure())
    return;
  const auto old = std::move(client_);
  connect();
  ASSERT_FALSE(HasFatalFailure());
  EXPECT_FALSE(old->wait(patience, [] { return false; }));
  EXPECT_TRUE(old->closed);
  EXPECT_EQ(shell("echo again"), "again\n");
  v1::AgentRequest request;
  request.mutable_power_off();
  client_->send(request);
  client_->wait(patience, [] { return false; });
  ASSERT_TRUE(guest_->ended(60'000));
  EXPECT_TRUE(WIFEXITED(guest_->exit_status) && WEXITSTATUS(guest_->exit_status) == 0) << guest_->exit_status;
}

TEST_F(cloud, the_host_hears_of_a_dead_kernel) {
  start("VirtioMem");
  if (IsSkipped() || HasFatalFailure())
    return;
  client_->start({"sh", "-c", "echo c >/proc/sysrq-trigger"});
  EXPECT_TRUE(eventually([&] { return guest_->events().find("\"panic\"") != std::string::npos; }));
}

} // namespace
} // namespace caisson::guest_protocol
