// A peak comes and goes, with the real programs on real QEMU: a workload takes 1 GiB in a sandbox of 512 MiB with automatic
// memory. It is not killed, the host pays for it while it is there, and gets nearly all of it back afterwards.

#include <gtest/gtest.h>

#include <poll.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <future>

#include "tests/frontends/program.hpp"

namespace caisson::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr std::uint64_t mib = 1 << 20;

struct memory_peak : ::testing::Test {
  void SetUp() override {
    char name[] = "/dev/shm/caisson-peak-XXXXXX";
    directory = ::mkdtemp(name);
    ::setenv("CAISSON_IDLE_EXIT_S", "2", 1);
    if (auto checked = caisson({"check", "--json"}, 240); checked.status != 0)
      GTEST_SKIP() << "this host cannot run sandboxes: " << checked.err;
    std::ofstream{directory + "/c.toml"} << "[hypervisor.qemu]\n"
                                            "default_memory = 512\n"
                                            "default_maxmemory = 4096\n"
                                            "[runtime.caisson]\n"
                                            "memory_autosize = true\n"
                                            "memory_autosize_ceiling = 2048\n"
                                            "memory_autosize_cool_down = 5\n";
    fs::permissions(directory + "/c.toml", fs::perms::owner_read | fs::perms::owner_write);
    auto made = caisson({"run", "--config", directory + "/c.toml", "--name", "p", "--detach"}, 240);
    ASSERT_EQ(made.status, 0) << made.err;
    if (status()["guest_features"]["workload_cgroup"] != true)
      GTEST_SKIP() << "the guest's image has no control group for the workload; make it anew: "
                      "cmake --build build --target guest_image";
  }

  void TearDown() override {
    if (directory.empty())
      return;
    caisson({"rm", "p"}, 60);
    std::error_code error;
    fs::remove_all(directory, error);
  }

  program_result caisson(std::vector<std::string> more, int at_most_s = 60) {
    std::vector<std::string> all{CAISSON_PROGRAM, "--state-dir", directory + "/s", "--run-dir", directory + "/r"};
    all.insert(all.end(), more.begin(), more.end());
    return run_program(std::move(all), {}, at_most_s);
  }

  json status() {
    auto got = caisson({"status", "p", "--json"});
    EXPECT_EQ(got.status, 0) << got.err;
    return json::parse(got.out, nullptr, false);
  }

  std::uint64_t figure(const char* key) {
    auto s = status();
    return s.is_object() && s["memory"].contains(key) ? std::stoull(s["memory"][key].get<std::string>()) : 0;
  }

  std::string directory;
};

TEST_F(memory_peak, comes_and_goes) {
  const auto before = figure("host_bytes");
  ASSERT_GT(before, 0u);
  auto work = std::async(std::launch::async, [this] {
    return caisson({"exec", "p", "--", "sh", "-c",
                    "(dd if=/dev/zero bs=1M count=1024 2>/dev/null; sleep 5) | tail -c 1073741824 >/dev/null; echo $?"},
                   1200);
  });
  std::uint64_t peak = 0, most_plugged = 0;
  while (work.wait_for(500ms) != std::future_status::ready) {
    peak = std::max(peak, figure("host_bytes"));
    most_plugged = std::max(most_plugged, figure("plugged_bytes"));
  }
  const auto done = work.get();
  EXPECT_EQ(done.status, 0) << done.err;
  EXPECT_EQ(done.out, "0\n") << "it was killed";
  EXPECT_GE(peak, before + 800 * mib);
  EXPECT_GE(most_plugged, 640 * mib);
  EXPECT_LE(most_plugged, 1536 * mib) << "never above the ceiling";

  const auto goal = peak - (peak - before) * 8 / 10;
  auto after = figure("host_bytes");
  for (const auto end = steady_clock::now() + 300s; after > goal && steady_clock::now() < end;) {
    ::poll(nullptr, 0, 1'000);
    after = figure("host_bytes");
  }
  EXPECT_LE(after, goal) << "the host got back less than 80 % of what the peak added: before " << before / mib
                         << " MiB, at the peak " << peak / mib << " MiB, afterwards " << after / mib << " MiB";
  std::printf("host_bytes: before %llu MiB, at the peak %llu MiB, afterwards %llu MiB: %llu %% of what was added came back\n",
              static_cast<unsigned long long>(before / mib), static_cast<unsigned long long>(peak / mib),
              static_cast<unsigned long long>(after / mib),
              static_cast<unsigned long long>((peak - after) * 100 / std::max<std::uint64_t>(peak - before, 1)));

  const auto told = caisson({"events", "--from", "1"}).out;
  EXPECT_EQ(told.find("guest.oom"), std::string::npos);
  EXPECT_NE(told.find("automatic memory: "), std::string::npos) << "every change has its reason:\n" << told;
}

} // namespace
} // namespace caisson::test
