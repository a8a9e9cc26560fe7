#include "tests/guest/agent_client.hpp"

#include <gtest/gtest.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

// Limits of the workload and blocks of memory, on files that stand in for the kernel's. The kernel itself is asked in
// live_guest_test.

namespace caisson::guest_protocol {
namespace {

using namespace std::chrono_literals;
constexpr auto patience = std::chrono::milliseconds{20s};
constexpr std::uint64_t mib = 1024 * 1024;

void put(const std::string& path, const std::string& text) { std::ofstream{path} << text; }

std::string get(const std::string& path) {
  std::ifstream in{path};
  std::string line;
  std::getline(in, line);
  return line;
}

class agent_with_files : public ::testing::Test {
protected:
  void SetUp() override {
    char name[] = "/tmp/caisson-workload-test-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory_ = name;
    cgroup_ = directory_ + "/workload/";
    blocks_ = directory_ + "/memory/";
    std::filesystem::create_directories(cgroup_);
    for (const auto& [file, text] : {std::pair{"memory.current", "104857600\n"},
                                     {"memory.high", "max\n"},
                                     {"memory.max", "max\n"},
                                     {"memory.reclaim", ""},
                                     {"cpu.max", "max 100000\n"}})
      put(cgroup_ + file, text);
    std::filesystem::create_directories(blocks_);
    put(directory_ + "/overcommit_memory", "0\n");
    put(blocks_ + "block_size_bytes", "8000000\n");
    for (int n = 31; n < 36; ++n) {
      const auto block = blocks_ + "memory" + std::to_string(n);
      std::filesystem::create_directories(block);
      char index[16];
      std::snprintf(index, sizeof index, "%08x\n", n);
      put(block + "/phys_index", index);
      put(block + "/state", "online\n");
      put(block + "/valid_zones", "Movable Normal\n");
    }
    int fd = -1;
    pid_ = start_with_socket({CAISSON_AGENT, "--cgroup", directory_ + "/workload", "--memory", directory_ + "/memory",
                              "--overcommit", directory_ + "/overcommit_memory"},
                             fd);
    ASSERT_GT(pid_, 0);
    client_.emplace(fd);
    ASSERT_TRUE(client_->wait(patience, [&] { return client_->hello.has_value(); }));
  }
  void TearDown() override {
    client_.reset();
    ::close(sealed_);
    ::waitpid(pid_, nullptr, 0);
    std::filesystem::remove_all(directory_);
  }

  v1::AgentReply ask(const v1::AgentRequest& request) {
    const auto answer = client_->ask(request, patience);
    EXPECT_TRUE(answer);
    return answer.value_or(v1::AgentReply{});
  }
  std::string state(int block) { return get(blocks_ + "memory" + std::to_string(block) + "/state"); }

  /// The block's state becomes a file that can be read and not written.
  void seal(int block) {
    sealed_ = ::memfd_create("state", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    ASSERT_EQ(::write(sealed_, "online\n", 7), 7);
    ASSERT_EQ(::fcntl(sealed_, F_ADD_SEALS, F_SEAL_WRITE), 0);
    const auto state = blocks_ + "memory" + std::to_string(block) + "/state";
    std::filesystem::remove(state);
    std::filesystem::create_symlink("/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(sealed_), state);
  }

  static v1::AgentRequest offline(std::uint64_t address, std::uint64_t size) {
    v1::AgentRequest request;
    request.mutable_offline_memory()->set_address(address);
    request.mutable_offline_memory()->set_size_bytes(size);
    request.mutable_offline_memory()->set_wait_ms(10'000);
    return request;
  }

  std::string directory_, cgroup_, blocks_;
  pid_t pid_ = -1;
  int sealed_ = -1;
  std::optional<agent_client> client_;
};

TEST_F(agent_with_files, shows_what_the_workload_holds_and_may) {
  EXPECT_TRUE(client_->hello->features().workload_cgroup());
  EXPECT_EQ(client_->hello->memory().workload_bytes(), 100 * mib);
  EXPECT_EQ(client_->hello->memory().workload_high_bytes(), 0u);
  EXPECT_EQ(client_->hello->memory().workload_max_bytes(), 0u);
  put(cgroup_ + "cpu.max", "75000 50000\n");
  v1::AgentRequest read;
  read.mutable_read_facts();
  EXPECT_EQ(ask(read).facts().cpu_quota_milli(), 1500u);
}

TEST_F(agent_with_files, sets_only_the_limits_that_are_asked) {
  v1::AgentRequest request;
  request.mutable_set_workload_limits()->set_cpu_milli(1500);
  request.mutable_set_workload_limits()->set_high_bytes(200 * mib);
  const auto first = ask(request).facts();
  EXPECT_EQ(first.cpu_quota_milli(), 1500u);
  EXPECT_EQ(get(cgroup_ + "cpu.max"), "150000 100000");
  EXPECT_EQ(first.memory().workload_high_bytes(), 200 * mib);
  EXPECT_EQ(first.memory().workload_max_bytes(), 0u);

  v1::AgentRequest more;
  more.mutable_set_workload_limits()->set_max_bytes(100 * mib);
  more.mutable_set_workload_limits()->set_cpu_milli(0);
  const auto second = ask(more).facts();
  EXPECT_EQ(second.cpu_quota_milli(), 0u);
  EXPECT_EQ(second.memory().workload_max_bytes(), 100 * mib) << "what it holds fits exactly";
  EXPECT_EQ(second.memory().workload_high_bytes(), 200 * mib);
}

TEST_F(agent_with_files, lets_a_program_ask_for_more_than_there_is_while_automatic_memory_holds_it) {
  const auto overcommit = [this] { return get(directory_ + "/overcommit_memory"); };
  const auto high = [this](std::uint64_t bytes, bool shrink = false) {
    v1::AgentRequest request;
    request.mutable_set_workload_limits()->set_high_bytes(bytes);
    if (shrink)
      request.mutable_set_workload_limits()->set_reclaim_to_bytes(bytes);
    EXPECT_TRUE(ask(request).has_facts());
  };
  high(200 * mib, true);
  EXPECT_EQ(overcommit(), "0") << "a shrink's limit is no reason";
  high(200 * mib);
  EXPECT_EQ(overcommit(), "1");
  high(150 * mib, true);
  EXPECT_EQ(overcommit(), "1") << "a shrink meanwhile";
  high(0);
  EXPECT_EQ(overcommit(), "0");
  put(directory_ + "/overcommit_memory", "1\n"); // since the boot
  high(200 * mib);
  high(0);
  EXPECT_EQ(overcommit(), "1") << "what was not changed here stays";
}

TEST_F(agent_with_files, leaves_the_hard_limit_where_the_workload_holds_more) {
  v1::AgentRequest request;
  request.mutable_set_workload_limits()->set_max_bytes(50 * mib);
  request.mutable_set_workload_limits()->set_wait_ms(500);
  const auto facts = ask(request).facts();
  EXPECT_EQ(facts.memory().workload_max_bytes(), 0u);
  EXPECT_EQ(facts.memory().workload_high_bytes(), 0u) << "what guarded it is taken away again";
  EXPECT_EQ(facts.memory().workload_bytes(), 100 * mib);
  EXPECT_EQ(get(cgroup_ + "memory.reclaim"), std::to_string(32 * mib)) << "it was tried";
}

TEST_F(agent_with_files, says_why_pressure_cannot_be_watched) {
  v1::AgentRequest request;
  request.mutable_watch_pressure()->set_stall_us(100'000);
  request.mutable_watch_pressure()->set_window_us(1'000'000);
  EXPECT_EQ(ask(request).failure().guest_errno(), ENOENT);
  request.mutable_watch_pressure()->set_stall_us(0);
  EXPECT_TRUE(ask(request).has_done());
}

TEST_F(agent_with_files, lists_the_blocks_of_a_part) {
  v1::AgentRequest request;
  request.mutable_read_memory_blocks()->set_address(32 * 128 * mib);
  request.mutable_read_memory_blocks()->set_size_bytes(2 * 128 * mib);
  const auto found = ask(request).blocks();
  ASSERT_EQ(found.blocks_size(), 2);
  EXPECT_EQ(found.blocks(0).address(), 32 * 128 * mib);
  EXPECT_EQ(found.blocks(1).address(), 33 * 128 * mib);
  EXPECT_EQ(found.blocks(1).size_bytes(), 128 * mib);
  EXPECT_EQ(found.blocks(1).state(), "online");
  EXPECT_EQ(found.blocks(1).zone(), "Movable");
}

TEST_F(agent_with_files, takes_a_part_offline_and_keeps_it_so_until_all_memory_is_wanted) {
  const auto gone = ask(offline(32 * 128 * mib, 2 * 128 * mib)).blocks();
  EXPECT_EQ(gone.why(), "");
  ASSERT_EQ(gone.blocks_size(), 2);
  EXPECT_EQ(gone.blocks(0).state(), "offline");
  EXPECT_EQ(gone.blocks(0).zone(), "");
  EXPECT_EQ(state(31), "online");
  EXPECT_EQ(state(32), "offline");
  EXPECT_EQ(state(33), "offline");
  EXPECT_EQ(state(34), "online");
  v1::AgentRequest all;
  all.mutable_await_memory();
  ask(all);
  seal(34);
  EXPECT_NE(ask(offline(34 * 128 * mib, 128 * mib)).blocks().why(), "") << "answered after the writes before it";
  EXPECT_EQ(state(32), "online_movable");
}

TEST_F(agent_with_files, brings_all_back_where_one_block_does_not_go) {
  seal(34);
  const auto refused = ask(offline(32 * 128 * mib, 4 * 128 * mib)).blocks();
  EXPECT_EQ(refused.why(), "memory34 at 0x110000000 (zone Movable): Operation not permitted");
  EXPECT_EQ(refused.blocks_size(), 4);
  EXPECT_EQ(state(32), "online_movable");
  EXPECT_EQ(state(33), "online_movable");
  EXPECT_EQ(state(35), "online") << "it was not reached";
}

} // namespace
} // namespace caisson::guest_protocol
