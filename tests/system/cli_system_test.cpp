// The command line on a real sandbox: QEMU, libvirt, Caisson's guest. One sandbox, booted once, is used by all; what
// they do to it goes on from one to the next in the order in which they stand here.

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>

#include "tests/system/engine_home.hpp"

namespace caisson::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint64_t mib = 1 << 20;
constexpr int boot_s = 240; // under TCG, beside other work

class real_sandbox : public ::testing::Test {
protected:
  static void SetUpTestSuite() {
    home = std::make_unique<engine_home>("system");
    auto checked = caisson({"check", "--json"}, {}, boot_s);
    if (checked.status != 0) {
      skip_reason = "this host cannot run sandboxes: " + checked.err;
      return;
    }
    auto made = caisson({"run", "--config", CAISSON_CONFIGURATION, "--name", "a", "--detach"}, {}, boot_s);
    boot_failure = made.status == 0 ? "" : made.err + " status " + std::to_string(made.status);
  }

  static void TearDownTestSuite() {
    if (skip_reason.empty())
      caisson({"rm", "a"}, {}, 60);
    home.reset();
  }

  void SetUp() override {
    if (!skip_reason.empty())
      GTEST_SKIP() << skip_reason;
    ASSERT_EQ(boot_failure, "");
  }

  static std::vector<std::string> words(std::vector<std::string> more) { return home->words(std::move(more)); }

  static program_result caisson(std::vector<std::string> more, std::string input = {}, int at_most_s = 120) {
    return home->caisson(std::move(more), std::move(input), at_most_s);
  }

  static json status(const std::string& name = "a") {
    auto got = caisson({"status", name, "--json"});
    EXPECT_EQ(got.status, 0) << got.err;
    return json::parse(got.out, nullptr, false);
  }

  static std::uint64_t figure(const json& s, const char* key) {
    return std::stoull(s["memory"][key].get<std::string>());
  }

  static std::uint64_t guest_mem_total() {
    auto got = caisson({"exec", "a", "--", "awk", "/MemTotal/ {print $2}", "/proc/meminfo"});
    EXPECT_EQ(got.status, 0) << got.err;
    return got.out.empty() ? 0 : std::stoull(got.out) * 1024;
  }

  static int guest_processors() {
    auto got = caisson({"exec", "a", "--", "nproc"});
    EXPECT_EQ(got.status, 0) << got.err;
    return got.out.empty() ? 0 : std::stoi(got.out);
  }

  static bool listed(const std::string& name) {
    auto got = caisson({"list", "--json"});
    return got.out.find("\"" + name + "\"") != std::string::npos;
  }

  static std::unique_ptr<engine_home> home;
  static std::string skip_reason, boot_failure;
};

std::unique_ptr<engine_home> real_sandbox::home;
std::string real_sandbox::skip_reason, real_sandbox::boot_failure;

TEST_F(real_sandbox, status_tells_what_was_read_back) {
  auto s = status();
  EXPECT_EQ(s["name"], "a");
  EXPECT_EQ(s["state"], "SANDBOX_STATE_RUNNING");
  EXPECT_EQ(figure(s, "boot_bytes"), 1024 * mib);
  EXPECT_EQ(figure(s, "plugged_bytes"), 0u);
  EXPECT_EQ(figure(s, "guest_bytes"), 1024 * mib);
  EXPECT_EQ(figure(s, "target_bytes"), 1024 * mib);
  EXPECT_GT(figure(s, "host_bytes"), 0u);
  EXPECT_EQ(s["vcpus"]["online"], 1);
  EXPECT_FALSE(s["accelerator"].get<std::string>().empty());
  EXPECT_TRUE(fs::exists("/proc/" + s["vmm_pid"].get<std::string>()));
}

TEST_F(real_sandbox, exec_gives_exact_exit_codes) {
  EXPECT_EQ(caisson({"exec", "a", "--", "true"}).status, 0);
  EXPECT_EQ(caisson({"exec", "a", "--", "sh", "-c", "exit 7"}).status, 7);
  EXPECT_EQ(caisson({"exec", "a", "--", "no-such-program"}).status, 127);
  EXPECT_EQ(caisson({"exec", "a", "--", "/proc/meminfo"}).status, 126);
  EXPECT_EQ(caisson({"exec", "a", "--", "sh", "-c", "kill -9 $$"}).status, 137);
}

TEST_F(real_sandbox, exec_carries_every_byte_both_ways) {
  std::string input;
  for (int i = 0; i < 300'000; ++i)
    input += static_cast<char>(i * 7 + i / 251);
  auto got = caisson({"exec", "-i", "a", "--", "cat"}, input);
  EXPECT_EQ(got.status, 0) << got.err;
  EXPECT_TRUE(got.out == input) << got.out.size();
  got = caisson({"exec", "a", "--", "sh", "-c", "echo out; echo err >&2"});
  EXPECT_EQ(got.out, "out\n");
  EXPECT_EQ(got.err, "err\n");
}

TEST_F(real_sandbox, memory_and_processors_grow_while_a_command_runs) {
  auto before = guest_mem_total();
  program running{words({"exec", "-i", "a", "--", "sh", "-c", "echo up; read x; echo got $x"}), {}, true};
  ASSERT_TRUE(running.wait_output("up", 60));
  auto got = caisson({"resize", "a", "--memory", "1536M", "--cpus", "2", "--json"});
  ASSERT_EQ(got.status, 0) << got.err << got.out;
  auto o = json::parse(got.out);
  EXPECT_EQ(o["state"], "OPERATION_STATE_CONVERGED");
  EXPECT_EQ(guest_processors(), 2);
  EXPECT_GT(guest_mem_total(), before + 480 * mib);
  auto s = status();
  EXPECT_EQ(figure(s, "boot_bytes") + figure(s, "plugged_bytes"), 1536 * mib);
  EXPECT_EQ(s["vcpus"]["online"], 2);
  auto ended = running.finish(60);
  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_NE(ended.out.find("got"), std::string::npos);
}

TEST_F(real_sandbox, a_second_sandbox_and_a_command_for_one_run_beside_it) {
  program second{words({"run", "--config", CAISSON_CONFIGURATION, "--memory", "256M", "--name", "b", "--", "sh", "-c",
                        "echo hello; exit 5"})};
  EXPECT_EQ(caisson({"exec", "a", "--", "true"}).status, 0);
  auto got = second.finish(boot_s);
  EXPECT_EQ(got.status, 5) << got.err;
  EXPECT_EQ(got.out, "hello\n");
  EXPECT_FALSE(listed("b"));
}

TEST_F(real_sandbox, what_cannot_be_is_refused_and_changes_nothing) {
  struct {
    std::vector<std::string> words;
    int status;
    const char* says;
  } cases[] = {
      {{"resize", "a", "--memory", "512M"}, 2, "1 GiB"},  {{"resize", "a", "--memory", "64G"}, 2, "4 GiB"},
      {{"resize", "a", "--memory", "1048576T"}, 2, ""},   {{"resize", "a", "--cpus", "4000"}, 2, ""},
      {{"exec", "nosuch", "--", "true"}, 125, "nosuch"},  {{"run", "--name", "a", "--detach"}, 125, "a"},
      {{"run", "--name", "../x", "--detach"}, 2, "../x"},
  };
  for (auto& c : cases) {
    auto got = caisson(c.words);
    EXPECT_EQ(got.status, c.status) << c.words[0] << " " << got.err;
    EXPECT_NE(got.err.find(c.says), std::string::npos) << got.err;
  }
  EXPECT_EQ(figure(status(), "target_bytes"), 1536 * mib);
}

TEST_F(real_sandbox, a_misspelt_key_is_named_with_its_place) {
  auto file = home->directory() + "/wrong.toml";
  std::ofstream{file} << "[hypervisor.qemu]\ndefault_memroy = 512\n";
  auto got = caisson({"run", "--config", file, "--", "true"});
  EXPECT_EQ(got.status, 2);
  EXPECT_NE(got.err.find("wrong.toml:2:"), std::string::npos) << got.err;
  EXPECT_NE(got.err.find("default_memory"), std::string::npos) << got.err;
}

TEST_F(real_sandbox, killing_the_engine_ends_no_sandbox) {
  auto vmm = status()["vmm_pid"];
  auto pid = home->engine_pid();
  ASSERT_TRUE(home->end_engine(SIGKILL));
  EXPECT_EQ(caisson({"exec", "a", "--", "sh", "-c", "exit 9"}).status, 9);
  EXPECT_NE(home->engine_pid(), pid);
  auto got = caisson({"resize", "a", "--memory", "1280M", "--json"});
  EXPECT_EQ(got.status, 0) << got.err << got.out;
  auto s = status();
  EXPECT_EQ(s["vmm_pid"], vmm);
  EXPECT_EQ(figure(s, "boot_bytes") + figure(s, "plugged_bytes"), 1280 * mib);
}

TEST_F(real_sandbox, memory_comes_back) {
  auto before = guest_mem_total();
  auto got = caisson({"resize", "a", "--memory", "1G", "--cpus", "1", "--json"});
  ASSERT_EQ(got.status, 0) << got.err << got.out;
  EXPECT_LT(guest_mem_total(), before - 200 * mib);
  EXPECT_EQ(guest_processors(), 1);
  EXPECT_EQ(figure(status(), "plugged_bytes"), 0u);
}

TEST_F(real_sandbox, a_killed_run_leaves_no_sandbox) {
  program killed{words({"run", "--config", CAISSON_CONFIGURATION, "--memory", "256M", "--name", "c", "--", "sh", "-c",
                        "echo up; read x"}),
                 {},
                 true};
  ASSERT_TRUE(killed.wait_output("up", boot_s));
  auto vmm = std::stoi(status("c")["vmm_pid"].get<std::string>());
  killed.signal(SIGKILL);
  EXPECT_TRUE(gone(vmm, 60));
  auto until = std::chrono::steady_clock::now() + std::chrono::seconds{60};
  while (listed("c") && std::chrono::steady_clock::now() < until) {
  }
  EXPECT_FALSE(listed("c"));
}

TEST_F(real_sandbox, a_run_whose_engine_and_command_line_are_killed_is_removed_by_the_next_engine) {
  program killed{words({"run", "--config", CAISSON_CONFIGURATION, "--memory", "256M", "--name", "d", "--", "sh", "-c",
                        "echo up; read x"}),
                 {},
                 true};
  ASSERT_TRUE(killed.wait_output("up", boot_s));
  auto vmm = std::stoi(status("d")["vmm_pid"].get<std::string>());
  killed.signal(SIGSTOP);
  ASSERT_TRUE(home->end_engine(SIGKILL));
  killed.signal(SIGKILL);
  EXPECT_EQ(caisson({"exec", "a", "--", "true"}).status, 0);
  EXPECT_TRUE(gone(vmm, 120));
  auto until = std::chrono::steady_clock::now() + std::chrono::seconds{60};
  while (listed("d") && std::chrono::steady_clock::now() < until) {
  }
  EXPECT_FALSE(listed("d"));
}

TEST_F(real_sandbox, events_tell_the_whole_story_in_order) {
  auto got = caisson({"events", "--from", "1", "--json"});
  ASSERT_EQ(got.status, 0) << got.err;
  std::istringstream lines{got.out};
  std::uint64_t last = 0;
  bool created = false, converged = false;
  for (std::string line; std::getline(lines, line);) {
    auto e = json::parse(line);
    auto seq = std::stoull(e["seq"].get<std::string>());
    EXPECT_EQ(seq, last + 1);
    last = seq;
    created |= e["type"] == "sandbox.running";
    converged |= e.contains("operation") && e["operation"]["state"] == "OPERATION_STATE_CONVERGED";
  }
  EXPECT_TRUE(created);
  EXPECT_TRUE(converged);
}

TEST_F(real_sandbox, rm_leaves_nothing_and_the_engine_ends_by_itself) {
  auto s = status();
  auto vmm = std::stoi(s["vmm_pid"].get<std::string>());
  auto id = s["id"].get<std::string>();
  EXPECT_EQ(caisson({"stop", "a"}).status, 0);
  EXPECT_TRUE(gone(vmm, 30));
  EXPECT_EQ(status()["state"], "SANDBOX_STATE_STOPPED");
  EXPECT_EQ(caisson({"exec", "a", "--", "true"}).status, 125);
  EXPECT_EQ(caisson({"rm", "a"}).status, 0);
  EXPECT_FALSE(listed("a"));
  for (const auto& file : home->run_files())
    EXPECT_EQ(file.string().find(id), std::string::npos) << file;
  auto pid = home->engine_pid();
  EXPECT_TRUE(pid == 0 || gone(pid, 60));
  EXPECT_FALSE(fs::exists(home->run_directory() + "/engine.sock"));
}

TEST(engine_without_a_home, ends_by_itself_too) {
  engine_home home{"gone"};
  ASSERT_EQ(home.caisson({"list"}).status, 0);
  const auto pid = home.engine_pid();
  ASSERT_GT(pid, 0);
  std::error_code error;
  fs::remove_all(home.directory(), error);
  EXPECT_TRUE(gone(pid, 60)) << "nobody can reach it any more";
}

} // namespace
} // namespace caisson::test
