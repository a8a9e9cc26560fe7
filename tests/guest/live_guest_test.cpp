#include "tests/guest/agent_client.hpp"
#include "tests/guest/live_guest.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>

namespace caisson::guest_protocol {
namespace {

using namespace std::chrono_literals;
constexpr auto patience = std::chrono::milliseconds{60s};
constexpr std::uint64_t mib = 1024 * 1024;

v1::AgentRequest await_memory(std::uint64_t at_least, std::uint64_t at_most, std::uint32_t wait_ms) {
  v1::AgentRequest request;
  request.mutable_await_memory()->set_mem_total_at_least_bytes(at_least);
  request.mutable_await_memory()->set_mem_total_at_most_bytes(at_most);
  request.mutable_await_memory()->set_wait_ms(wait_ms);
  return request;
}

v1::AgentRequest set_cpus(std::uint32_t online, std::uint32_t wait_ms) {
  v1::AgentRequest request;
  request.mutable_set_online_cpus()->set_online(online);
  request.mutable_set_online_cpus()->set_wait_ms(wait_ms);
  return request;
}

/// One guest for all the tests of the file: a boot costs seconds under TCG.
class live : public ::testing::Test {
protected:
  static void SetUpTestSuite() {
    reason_ = live_guest::unavailable(CAISSON_GUEST_DIRECTORY);
    if (!reason_.empty())
      return;
    started_ = std::chrono::steady_clock::now();
    guest_ = new live_guest{{CAISSON_GUEST_DIRECTORY,
                             "",
                             {"-object", "memory-backend-memfd,id=vmem,size=1G", "-device",
                              "virtio-mem-pci,id=vm0,memdev=vmem,requested-size=0", "-device",
                              "virtio-balloon-pci,free-page-reporting=on"}}};
    connect();
  }
  static void TearDownTestSuite() {
    delete client_;
    delete guest_;
  }
  static void connect() {
    delete client_;
    client_ = nullptr;
    const int fd = guest_->connect_agent();
    if (fd < 0)
      return;
    client_ = new agent_client{fd};
    client_->wait(patience, [] { return client_->hello.has_value(); });
  }
  static std::string shell(const std::string& script) {
    auto& c = client_->start({"sh", "-c", script});
    return client_->finish(c, patience) ? c.output : "it has not ended";
  }
  void SetUp() override {
    if (!reason_.empty())
      GTEST_SKIP() << reason_;
    ASSERT_TRUE(client_ && client_->hello) << "the agent has not greeted; its console:\n" << guest_->console();
  }
  void TearDown() override {
    if (client_) {
      EXPECT_EQ(client_->protocol_error, "");
    }
  }

  static inline std::string reason_;
  static inline live_guest* guest_ = nullptr;
  static inline agent_client* client_ = nullptr;
  static inline std::chrono::steady_clock::time_point started_;
};

TEST_F(live, a_greets_with_its_facts) {
  const auto& hello = *client_->hello;
  std::cout
      << "boot to hello: "
      << std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - started_).count()
      << " ms\n"
      << hello.DebugString();
  EXPECT_EQ(hello.architecture(), "x86_64");
  EXPECT_GT(hello.memory().mem_total_bytes(), 190 * mib);
  EXPECT_LT(hello.memory().mem_total_bytes(), 256 * mib);
  EXPECT_EQ(hello.memory().boot_mem_total_bytes(), hello.memory().mem_total_bytes());
  EXPECT_EQ(hello.memory().block_size_bytes(), 128 * mib);
  EXPECT_EQ(hello.cpus().online(), 1u);
  EXPECT_TRUE(hello.features().acpi_memory_hotplug());
  EXPECT_TRUE(hello.features().memory_hotremove());
  EXPECT_TRUE(hello.features().virtio_mem());
  EXPECT_TRUE(hello.features().free_page_reporting());
  EXPECT_TRUE(hello.features().cpu_hotplug());
  EXPECT_TRUE(hello.features().kernel_config_known());
}

TEST_F(live, b_runs_commands_with_their_exact_ends) {
  auto& both = client_->start({"sh", "-c", "echo out; echo err >&2; exit 7"});
  ASSERT_TRUE(client_->finish(both, patience));
  EXPECT_EQ(both.output, "out\n");
  EXPECT_EQ(both.errors, "err\n");
  EXPECT_EQ(both.exited->exit_code(), 7);
  EXPECT_EQ(both.exited->signal(), 0);

  auto& nproc = client_->start({"nproc"});
  ASSERT_TRUE(client_->finish(nproc, patience));
  EXPECT_EQ(nproc.output, "1\n");
  EXPECT_EQ(nproc.exited->exit_code(), 0);

  auto& missing = client_->start({"no-such-program"});
  ASSERT_TRUE(client_->finish(missing, patience));
  EXPECT_EQ(missing.exited->exit_code(), 127);
  EXPECT_NE(missing.errors.find("no-such-program"), std::string::npos);

  auto& no_program = client_->start({"/etc/passwd"});
  ASSERT_TRUE(client_->finish(no_program, patience));
  EXPECT_EQ(no_program.exited->exit_code(), 126);

  auto& killed = client_->start({"sh", "-c", "kill -9 $$"});
  ASSERT_TRUE(client_->finish(killed, patience));
  EXPECT_EQ(killed.exited->exit_code(), 137);
  EXPECT_EQ(killed.exited->signal(), 9);
}

TEST_F(live, c_runs_three_at_once_with_their_own_input) {
  std::vector<agent_client::command*> commands;
  for (int i = 1; i <= 3; ++i)
    commands.push_back(&client_->start({"sh", "-c", "read line; echo got $line; exit " + std::to_string(i)}));
  for (int i = 3; i >= 1; --i)
    ASSERT_TRUE(
        client_->write(*commands[static_cast<std::size_t>(i - 1)], "number " + std::to_string(i) + "\n", patience));
  for (int i = 1; i <= 3; ++i) {
    auto& c = *commands[static_cast<std::size_t>(i - 1)];
    ASSERT_TRUE(client_->finish(c, patience));
    EXPECT_EQ(c.output, "got number " + std::to_string(i) + "\n");
    EXPECT_EQ(c.exited->exit_code(), i);
  }
}

TEST_F(live, d_gives_a_terminal) {
  auto& shell = client_->start({"sh", "-c", "tty; stty size; read x; echo read:$x; exit 5"}, [](v1::ExecStart& exec) {
    exec.set_terminal(true);
    exec.set_rows(40);
    exec.set_columns(100);
  });
  ASSERT_TRUE(client_->write(shell, "hello\r", patience));
  ASSERT_TRUE(client_->finish(shell, patience));
  EXPECT_NE(shell.output.find("/dev/pts/"), std::string::npos) << shell.output;
  EXPECT_NE(shell.output.find("40 100"), std::string::npos) << shell.output;
  EXPECT_NE(shell.output.find("read:hello\r\n"), std::string::npos) << shell.output;
  EXPECT_EQ(shell.errors, "");
  EXPECT_EQ(shell.exited->exit_code(), 5);
}

TEST_F(live, e_signals_a_command) {
  auto& sleeper = client_->start({"sh", "-c", "echo started; sleep 1000; echo never"});
  ASSERT_TRUE(client_->wait(patience, [&] { return sleeper.output == "started\n"; }));
  v1::AgentRequest request;
  request.mutable_exec_signal()->set_exec_id(sleeper.exec_id);
  request.mutable_exec_signal()->set_signal(15);
  const auto answer = client_->ask(request, patience);
  ASSERT_TRUE(answer && answer->has_done());
  ASSERT_TRUE(client_->finish(sleeper, patience));
  EXPECT_EQ(sleeper.exited->exit_code(), 143);
  EXPECT_EQ(sleeper.output, "started\n");
}

TEST_F(live, f_carries_much_in_both_directions) {
  auto& cat = client_->start({"sh", "-c", "md5sum; head -c 3000000 /dev/zero | tr '\\0' x"});
  const std::string text(2'000'000, 'y');
  ASSERT_TRUE(client_->write(cat, text, patience));
  client_->close_input(cat);
  ASSERT_TRUE(client_->finish(cat, patience));
  EXPECT_EQ(cat.output.substr(0, 32), "81e9cbb83f4e765947e6c646ac5ce061") << "md5 of 2 000 000 times y";
  EXPECT_EQ(cat.output.size(), 3'000'000 + std::string{"  -\n"}.size() + 32);
}

TEST_F(live, g_answers_while_a_command_floods) {
  client_->reading = false;
  auto& yes = client_->start({"yes"});
  ASSERT_TRUE(client_->wait(patience, [&] { return yes.unread == stream_window_bytes; }));
  v1::AgentRequest request;
  request.mutable_read_facts();
  const auto facts = client_->ask(request, patience);
  ASSERT_TRUE(facts && facts->has_facts());
  client_->reading = true;
  client_->session.stop(yes.out);
  ASSERT_TRUE(client_->finish(yes, patience));
  // busybox yes notices the closed pipe by its signal or by EPIPE.
  EXPECT_TRUE(yes.exited->signal() == 13 || yes.exited->exit_code() == 1) << yes.exited->ShortDebugString();
}

TEST_F(live, h_onlines_plugged_memory_and_lets_it_go) {
  const auto before = client_->hello->memory().mem_total_bytes();
  EXPECT_NE(
      guest_
          ->qmp(
              R"({"execute":"object-add","arguments":{"qom-type":"memory-backend-memfd","id":"d0","size":268435456}})")
          .find("return"),
      std::string::npos);
  EXPECT_NE(guest_->qmp(R"({"execute":"device_add","arguments":{"driver":"pc-dimm","id":"dimm0","memdev":"d0"}})")
                .find("return"),
            std::string::npos);
  const auto grown = client_->ask(await_memory(before + 256 * mib, 0, 30'000), patience);
  ASSERT_TRUE(grown && grown->has_facts());
  EXPECT_EQ(grown->facts().memory().mem_total_bytes(), before + 256 * mib);
  EXPECT_EQ(grown->facts().memory().boot_mem_total_bytes(), before);
  EXPECT_EQ(grown->facts().memory().offline_blocks(), 0u);
  EXPECT_TRUE(client_->wait(patience, [&] {
    for (const auto& notice : client_->notices)
      if (notice.facts_changed().memory().mem_total_bytes() == before + 256 * mib)
        return true;
    return false;
  })) << "the agent says so unasked too";

  EXPECT_NE(guest_->qmp(R"({"execute":"device_del","arguments":{"id":"dimm0"}})").find("return"), std::string::npos);
  const auto shrunk = client_->ask(await_memory(0, before, 30'000), patience);
  ASSERT_TRUE(shrunk && shrunk->has_facts());
  EXPECT_EQ(shrunk->facts().memory().mem_total_bytes(), before);

  const auto started = std::chrono::steady_clock::now();
  const auto never = client_->ask(await_memory(before + 1, 0, 300), patience);
  ASSERT_TRUE(never && never->has_facts());
  EXPECT_EQ(never->facts().memory().mem_total_bytes(), before);
  EXPECT_GE(std::chrono::steady_clock::now() - started, 250ms) << "the guest's clock is not quite ours";
}

TEST_F(live, h_follows_virtio_mem_in_small_steps) {
  const auto before = client_->hello->memory().mem_total_bytes();
  const auto request_bytes = [&](std::uint64_t bytes) {
    const auto answer =
        guest_->qmp(R"({"execute":"qom-set","arguments":{"path":"vm0","property":"requested-size","value":)" +
                    std::to_string(bytes) + "}}");
    EXPECT_NE(answer.find("return"), std::string::npos) << answer;
  };
  for (const auto bytes : {200 * mib, 512 * mib}) {
    request_bytes(bytes);
    const auto grown = client_->ask(await_memory(before + bytes, 0, 30'000), patience);
    ASSERT_TRUE(grown && grown->has_facts());
    EXPECT_EQ(grown->facts().memory().mem_total_bytes(), before + bytes);
    EXPECT_EQ(grown->facts().memory().virtio_mem_plugged_bytes(), bytes);
  }
  request_bytes(0);
  const auto shrunk = client_->ask(await_memory(0, before, 30'000), patience);
  ASSERT_TRUE(shrunk && shrunk->has_facts());
  EXPECT_EQ(shrunk->facts().memory().mem_total_bytes(), before);
  EXPECT_EQ(shrunk->facts().memory().virtio_mem_plugged_bytes(), 0u);
}

TEST_F(live, h_runs_everything_in_the_workloads_cgroup) {
  EXPECT_TRUE(client_->hello->features().workload_cgroup());
  EXPECT_TRUE(client_->hello->features().pressure());
  EXPECT_EQ(shell("cat /proc/self/cgroup"), "0::/workload/exec\n");
  EXPECT_EQ(shell("cat /proc/1/cgroup"), "0::/\n") << "the agent itself is not limited";
}

TEST_F(live, h_gives_the_workload_a_part_of_a_processor) {
  v1::AgentRequest request;
  request.mutable_set_workload_limits()->set_cpu_milli(1500);
  const auto set = client_->ask(request, patience);
  ASSERT_TRUE(set && set->has_facts());
  EXPECT_EQ(set->facts().cpu_quota_milli(), 1500u);
  EXPECT_EQ(shell("cat /sys/fs/cgroup/workload/cpu.max"), "150000 100000\n");
  request.mutable_set_workload_limits()->set_cpu_milli(0);
  const auto none = client_->ask(request, patience);
  ASSERT_TRUE(none && none->has_facts());
  EXPECT_EQ(none->facts().cpu_quota_milli(), 0u);
  EXPECT_EQ(shell("cat /sys/fs/cgroup/workload/cpu.max"), "max 100000\n");
}

TEST_F(live, h_kills_nobody_by_a_limit) {
  // Files of a tmpfs are memory that nothing can reclaim in a guest without swap.
  auto& sleeper = client_->start({"sh", "-c", "dd if=/dev/zero of=/dev/shm/held bs=1M count=64 2>&1; exec sleep 1000"});
  ASSERT_TRUE(client_->wait(patience, [&] { return sleeper.output.find("records out") != std::string::npos; }));
  v1::AgentRequest request;
  auto& limits = *request.mutable_set_workload_limits();
  limits.set_max_bytes(16 * mib);
  limits.set_reclaim_to_bytes(16 * mib);
  limits.set_wait_ms(3'000);
  const auto refused = client_->ask(request, patience);
  ASSERT_TRUE(refused && refused->has_facts()) << guest_->console();
  EXPECT_GE(refused->facts().memory().workload_bytes(), 64 * mib);
  EXPECT_EQ(refused->facts().memory().workload_max_bytes(), 0u);
  EXPECT_EQ(refused->facts().memory().workload_high_bytes(), 0u);
  EXPECT_EQ(shell("rm /dev/shm/held; echo gone"), "gone\n");
  const auto set = client_->ask(request, patience);
  ASSERT_TRUE(set && set->has_facts());
  EXPECT_EQ(set->facts().memory().workload_max_bytes(), 16 * mib);
  limits.Clear();
  limits.set_max_bytes(0);
  const auto none = client_->ask(request, patience);
  ASSERT_TRUE(none && none->has_facts());
  EXPECT_EQ(none->facts().memory().workload_max_bytes(), 0u);
  EXPECT_FALSE(sleeper.exited) << "it lives";
  v1::AgentRequest end;
  end.mutable_exec_signal()->set_exec_id(sleeper.exec_id);
  end.mutable_exec_signal()->set_signal(9);
  client_->ask(end, patience);
  EXPECT_TRUE(client_->finish(sleeper, patience));
}

TEST_F(live, h_lets_programs_ask_for_more_than_there_is_while_automatic_memory_holds_them) {
  const auto overcommit = [] { return shell("cat /proc/sys/vm/overcommit_memory"); };
  v1::AgentRequest limit;
  EXPECT_EQ(overcommit(), "0\n");
  limit.mutable_set_workload_limits()->set_high_bytes(64 * mib);
  ASSERT_TRUE(client_->ask(limit, patience));
  EXPECT_EQ(overcommit(), "1\n");
  limit.mutable_set_workload_limits()->set_high_bytes(0);
  ASSERT_TRUE(client_->ask(limit, patience));
  EXPECT_EQ(overcommit(), "0\n");
}

TEST_F(live, h_tells_of_memory_pressure) {
  v1::AgentRequest watch;
  watch.mutable_watch_pressure()->set_stall_us(20'000);
  watch.mutable_watch_pressure()->set_window_us(500'000);
  const auto watched = client_->ask(watch, patience);
  ASSERT_TRUE(watched && watched->has_done()) << watched->ShortDebugString();
  v1::AgentRequest tight;
  tight.mutable_set_workload_limits()->set_high_bytes(8 * mib);
  ASSERT_TRUE(client_->ask(tight, patience));
  auto& grower = client_->start({"sh", "-c", "dd if=/dev/zero of=/dev/shm/held bs=64k count=640; rm /dev/shm/held"});
  const v1::MemoryPressure* pressure = nullptr;
  EXPECT_TRUE(client_->wait(patience, [&] {
    for (const auto& notice : client_->notices)
      if (notice.has_pressure())
        pressure = &notice.pressure();
    return pressure != nullptr;
  })) << guest_->console();
  if (pressure) {
    EXPECT_GE(pressure->stalled_us(), 20'000u);
    EXPECT_EQ(pressure->memory().workload_high_bytes(), 8 * mib);
  }
  tight.mutable_set_workload_limits()->set_high_bytes(0);
  ASSERT_TRUE(client_->ask(tight, patience));
  EXPECT_TRUE(client_->finish(grower, patience)) << "throttled, not killed";
  EXPECT_EQ(grower.exited->exit_code(), 0);
  watch.mutable_watch_pressure()->set_stall_us(0);
  ASSERT_TRUE(client_->ask(watch, patience)->has_done());
}

TEST_F(live, h_takes_the_blocks_of_a_dimm_offline_and_says_which_one_cannot_go) {
  const auto before = client_->hello->memory().mem_total_bytes();
  guest_->qmp(R"({"execute":"object-add","arguments":{"qom-type":"memory-backend-memfd","id":"d1","size":268435456}})");
  guest_->qmp(R"({"execute":"device_add","arguments":{"driver":"pc-dimm","id":"dimm1","memdev":"d1"}})");
  ASSERT_TRUE(client_->ask(await_memory(before + 256 * mib, 0, 30'000), patience));
  std::uint64_t address = 0;
  const auto devices = nlohmann::json::parse(guest_->qmp(R"({"execute":"query-memory-devices"})"));
  for (const auto& device : devices["return"])
    if (device["data"].value("id", "") == "dimm1")
      address = device["data"]["addr"];
  ASSERT_GT(address, 0u);
  v1::AgentRequest read;
  read.mutable_read_memory_blocks()->set_address(address);
  read.mutable_read_memory_blocks()->set_size_bytes(256 * mib);
  const auto there = client_->ask(read, patience);
  ASSERT_TRUE(there);
  ASSERT_EQ(there->blocks().blocks_size(), 2) << there->ShortDebugString();
  for (const auto& block : there->blocks().blocks()) {
    EXPECT_EQ(block.state(), "online");
    EXPECT_EQ(block.zone(), "Movable");
  }
  v1::AgentRequest leave;
  leave.mutable_offline_memory()->set_address(address);
  leave.mutable_offline_memory()->set_size_bytes(256 * mib);
  leave.mutable_offline_memory()->set_wait_ms(30'000);
  const auto left = client_->ask(leave, patience);
  ASSERT_TRUE(left);
  EXPECT_EQ(left->blocks().why(), "");
  ASSERT_EQ(left->blocks().blocks_size(), 2);
  EXPECT_EQ(left->blocks().blocks(0).state(), "offline");
  const auto shrunk = client_->ask(await_memory(0, 0, 0), patience);
  ASSERT_TRUE(shrunk);
  const auto back = client_->ask(await_memory(before + 256 * mib, 0, 30'000), patience);
  ASSERT_TRUE(back && back->has_facts());
  EXPECT_EQ(back->facts().memory().mem_total_bytes(), before + 256 * mib) << "it comes back when all memory is wanted";

  leave.mutable_offline_memory()->set_address(0); // the kernel itself lies there
  leave.mutable_offline_memory()->set_size_bytes(128 * mib);
  leave.mutable_offline_memory()->set_wait_ms(5'000);
  const auto refused = client_->ask(leave, patience);
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->blocks().why().find("memory0 at 0x0 (zone "), 0u) << refused->blocks().why();
  ASSERT_EQ(refused->blocks().blocks_size(), 1);
  EXPECT_EQ(refused->blocks().blocks(0).state(), "online");
  guest_->qmp(R"({"execute":"device_del","arguments":{"id":"dimm1"}})");
  const auto gone = client_->ask(await_memory(0, before, 30'000), patience);
  ASSERT_TRUE(gone && gone->has_facts());
  EXPECT_EQ(gone->facts().memory().mem_total_bytes(), before);
}

TEST_F(live, i_onlines_processors_only_when_asked) {
  for (int i = 1; i <= 2; ++i) {
    const auto add = R"({"execute":"device_add","arguments":{"driver":"qemu64-x86_64-cpu","id":"c)" +
                     std::to_string(i) + R"(","socket-id":0,"core-id":)" + std::to_string(i) + R"(,"thread-id":0}})";
    const auto answer = guest_->qmp(add);
    EXPECT_NE(answer.find("return"), std::string::npos) << answer;
  }
  const auto up = client_->ask(set_cpus(3, 50'000), patience);
  ASSERT_TRUE(up && up->has_facts()) << guest_->console();
  EXPECT_EQ(up->facts().cpus().online(), 3u);
  EXPECT_EQ(up->facts().cpus().present(), 3u);
  auto& nproc = client_->start({"nproc"});
  ASSERT_TRUE(client_->finish(nproc, patience));
  EXPECT_EQ(nproc.output, "3\n");
  const auto down = client_->ask(set_cpus(1, 30'000), patience);
  ASSERT_TRUE(down && down->has_facts()) << guest_->console();
  EXPECT_EQ(down->facts().cpus().online(), 1u);
  EXPECT_EQ(down->facts().cpus().present(), 3u);
}

TEST_F(live, j_serves_the_next_host_and_never_the_last_ones_bytes) {
  client_->reading = false;
  auto& yes = client_->start({"yes"});
  ASSERT_TRUE(client_->wait(patience, [&] { return yes.unread > 0; }));
  for (int i = 0; i < 3; ++i) {
    connect(); // in the middle of frames, in both directions
    ASSERT_TRUE(client_ && client_->hello) << guest_->console();
    auto& echo = client_->start({"echo", "again"});
    ASSERT_TRUE(client_->finish(echo, patience));
    EXPECT_EQ(echo.output, "again\n");
    client_->reading = false;
    auto& more = client_->start({"yes"});
    ASSERT_TRUE(client_->wait(patience, [&] { return more.unread > 1000; }));
  }
  client_->reading = true;
}

TEST_F(live, k_switches_off) {
  v1::AgentRequest request;
  request.mutable_power_off();
  client_->send(request);
  client_->wait(patience, [] { return client_->closed; });
  EXPECT_TRUE(guest_->ended(30'000)) << guest_->console();
}

TEST(live_hostile, floods_through_the_port_and_still_answers) {
  if (const auto reason = live_guest::unavailable(CAISSON_HOSTILE_GUEST_DIRECTORY); !reason.empty())
    GTEST_SKIP() << reason;
  live_guest guest{{CAISSON_HOSTILE_GUEST_DIRECTORY, "caisson.hostile=flood", {}}};
  const int fd = guest.connect_agent();
  ASSERT_GE(fd, 0);
  agent_client client{fd};
  ASSERT_TRUE(client.wait(patience, [&] { return client.hello && client.notices.size() > 1000; })) << guest.console();
  v1::AgentRequest request;
  request.mutable_read_facts();
  EXPECT_TRUE(client.ask(request, patience));
  EXPECT_EQ(client.protocol_error, "");
}

} // namespace
} // namespace caisson::guest_protocol
