// Guests that mean ill (guest-hostile): whose agent lies, stalls or floods, that write to memory which was not plugged,
// that say without end how short of memory they are. None gets beyond its target.

#include <poll.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "tests/system/hotplug_rig.hpp"

namespace caisson::test {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

const std::string image = CAISSON_HOSTILE_GUEST;

std::string no_hostile_guest() {
  if (!fs::exists(image + "/manifest.json"))
    return "there is no guest in " + image + ": build the target hostile_guest_image";
  return unavailable(x86_virtio);
}

std::string read(const std::string& path) {
  std::ifstream in{path};
  return {std::istreambuf_iterator<char>{in}, {}};
}

/// What a process holds of the host's memory; 0 once it is gone.
std::uint64_t pss_bytes(std::int64_t pid) {
  std::istringstream in{read("/proc/" + std::to_string(pid) + "/smaps_rollup")};
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("Pss:"))
      return std::stoull(line.substr(4)) * 1024;
  return 0;
}

/// The cgroup that bounds a sandbox's VMM.
struct bounds {
  std::string directory, limit_file, usage_file;
  std::uint64_t limit_bytes() const { return number(limit_file); }
  std::uint64_t usage_bytes() const { return number(usage_file); }
  static std::uint64_t number(const std::string& file) {
    const auto text = read(file);
    return text.empty() || text.starts_with("max") ? UINT64_MAX : std::stoull(text);
  }
};

std::optional<bounds> bounds_of(const v1::SandboxStatus& s) {
  std::istringstream in{read("/proc/" + std::to_string(s.vmm_pid()) + "/cgroup")};
  for (std::string line; std::getline(in, line);) {
    if (!line.ends_with("/caisson-" + s.id()))
      continue;
    const bool unified = line.starts_with("0::");
    const std::string root = unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    const auto directory = root + line.substr(line.find('/'));
    return bounds{directory, directory + (unified ? "/memory.max" : "/memory.limit_in_bytes"),
                  directory + (unified ? "/memory.current" : "/memory.usage_in_bytes")};
  }
  return std::nullopt;
}

bool host_swaps() {
  std::istringstream in{read("/proc/swaps")};
  std::string heading, first;
  return std::getline(in, heading) && std::getline(in, first);
}

struct hostile_guest : ::testing::TestWithParam<const char*> {};

TEST_P(hostile_guest, gains_nothing_beyond_its_target) {
  if (auto why = no_hostile_guest(); !why.empty())
    GTEST_SKIP() << why;
  std::vector<machine> machines{x86_dimm};
  if (std::string{GetParam()} == "lie")
    machines.push_back(x86_virtio);
  for (const auto& on : machines) {
    hotplug_rig rig;
    auto made = rig.create({.on = on,
                            .name = "a",
                            .boot_mib = 256,
                            .more = std::string{"kernel_params = \"caisson.hostile="} + GetParam() + "\"\n",
                            .guest = image});
    if (auto* why = std::get_if<v1::Error>(&made)) {
      EXPECT_FALSE(why->text().empty()); // it was found out before it ran
      continue;
    }
    auto o = rig.resize("a", 1024 * mib);
    if (o.state() != v1::OPERATION_STATE_CONVERGED) {
      EXPECT_FALSE(o.why().empty());
    }
    const auto s = rig.status("a");
    EXPECT_LE(s.memory().boot_bytes() + s.memory().plugged_bytes(), 1024 * mib) << on.name;
    EXPECT_LE(s.memory().target_bytes(), 1024 * mib) << on.name;
    if (on.dimm()) {
      EXPECT_EQ(rig.mapped_by(s.vmm_pid()), s.memory().boot_bytes() + s.memory().plugged_bytes())
          << "the figure is the VMM's, whatever the guest claims";
    }
  }
}

struct hostile_machine : ::testing::TestWithParam<machine> {};

// virtio-mem of QEMU lets a guest touch what is not plugged: only the host's cgroup ends it.
TEST_P(hostile_machine, that_writes_to_what_is_not_plugged_is_ended_at_its_promise) {
  if (auto why = no_hostile_guest(); !why.empty())
    GTEST_SKIP() << why;
  if (host_swaps())
    GTEST_SKIP() << "this host swaps, and a VMM that is bounded goes there before it is killed";
  constexpr std::uint64_t max_bytes = 4096 * mib;
  hotplug_rig rig;
  auto neighbour = rig.create({.on = GetParam(), .name = "b", .boot_mib = 256});
  ASSERT_EQ(neighbour.index(), 0u) << std::get<v1::Error>(neighbour).text();
  auto made = rig.create({.on = GetParam(),
                          .name = "a",
                          .boot_mib = 256,
                          .max_mib = max_bytes / mib,
                          .more = "kernel_params = \"caisson.hostile=grab module_blacklist=virtio_mem\"\n",
                          .guest = image});
  ASSERT_EQ(made.index(), 0u) << std::get<v1::Error>(made).text();
  const auto s = rig.status("a");
  const auto bound = bounds_of(s);
  if (!bound)
    GTEST_SKIP() << "this host gives no cgroup: " << (s.warnings_size() ? s.warnings(0) : read("/proc/self/cgroup"));
  const auto promised = s.memory().promised_bytes(), limit = bound->limit_bytes();
  ASSERT_GT(promised, 256 * mib);
  ASSERT_GE(limit, promised);
  ASSERT_LT(limit, max_bytes) << "the guest is to try for more than it may have";

  // What the VMM had touched before the cgroup took it in is counted elsewhere.
  const auto held = pss_bytes(s.vmm_pid()), counted = bound->usage_bytes();
  const auto elsewhere = held - std::min(held, counted);
  EXPECT_LE(held, promised);

  EXPECT_EQ(rig.in_guest("a", {"grab"}).status, 0);
  const auto deadline = std::chrono::steady_clock::now() + 300s;
  std::uint64_t most = 0;
  std::optional<v1::Event> failed;
  while (!failed && std::chrono::steady_clock::now() < deadline) {
    most = std::max(most, pss_bytes(s.vmm_pid()));
    ::poll(nullptr, 0, 20);
    failed = rig.events.await(
        [](const v1::Event& e) { return e.type() == "sandbox.failed" && e.sandbox_name() == "a"; }, 0s);
  }
  EXPECT_LE(most, limit + elsewhere + 32 * mib) << "it held more of the host than its limit (" << elsewhere / mib
                                                << " MiB were counted elsewhere)";
  ASSERT_TRUE(failed) << "it was not ended; the most that it held is " << most / mib << " MiB of " << limit / mib;
  EXPECT_GT(most, promised / 2) << "it has not tried";
  for (const char* needed : {"it took more of the host's memory than it was promised", "killed in", "not plugged"})
    EXPECT_NE(failed->text().find(needed), std::string::npos) << needed << " is not said: " << failed->text();
  EXPECT_NE(failed->text().find(bound->directory), std::string::npos) << failed->text();
  const auto dead = rig.status("a");
  EXPECT_EQ(dead.state(), v1::SANDBOX_STATE_FAILED);
  EXPECT_EQ(dead.stop_reason(), failed->text());
  EXPECT_EQ(dead.memory().plugged_bytes(), 0u);
  EXPECT_FALSE(fs::exists(bound->directory)) << "its cgroup is left behind";

  EXPECT_EQ(rig.status("b").state(), v1::SANDBOX_STATE_RUNNING);
  EXPECT_EQ(rig.in_guest("b", {"echo", "alive"}).out, "alive\n");
  auto removed = rig.remove("a");
  EXPECT_EQ(removed.index(), 0u) << std::get<v1::Error>(removed).text();
}

// It says of itself what is not so, and gets what any guest may have that is short of memory: no more, and not faster.
TEST_P(hostile_machine, that_is_always_short_of_memory_stays_below_its_ceiling) {
  if (auto why = no_hostile_guest(); !why.empty())
    GTEST_SKIP() << why;
  constexpr std::uint64_t ceiling = 1024 * mib, step = 64 * mib, headroom = 64 * mib;
  constexpr auto least_apart = 500ms;
  const auto begun = std::chrono::steady_clock::now();
  hotplug_rig rig;
  auto made = rig.create({.on = GetParam(),
                          .name = "a",
                          .boot_mib = 256,
                          .max_mib = 4096,
                          .more = "kernel_params = \"caisson.hostile=press\"\n"
                                  "[runtime.caisson]\nmemory_autosize = true\nmemory_autosize_ceiling = 1024\n"
                                  "memory_autosize_step = 64\nmemory_autosize_headroom = 64\n",
                          .guest = image});
  ASSERT_EQ(made.index(), 0u) << std::get<v1::Error>(made).text();
  std::map<std::uint64_t, v1::Event> started;
  const auto look = [&](const v1::Event& e) {
    if (e.type() == "operation.started" && e.operation().cause().starts_with("automatic memory"))
      started[e.seq()] = e;
    return e.type() == "operation.converged" && e.operation().memory_target_bytes() >= ceiling;
  };
  EXPECT_TRUE(rig.events.await(look, 300s)) << "it got to " << rig.status("a").memory().target_bytes() / mib << " MiB";
  // It goes on pressing.
  rig.events.await([&](const v1::Event& e) { return look(e), e.operation().memory_target_bytes() > ceiling; }, 5s);
  std::uint64_t before = 256 * mib;
  for (const auto& [seq, e] : started) {
    const auto target = e.operation().memory_target_bytes();
    EXPECT_LE(target, ceiling) << e.text();
    EXPECT_LE(target, before + std::max(4 * step, headroom)) << e.text();
    before = std::max(before, target);
  }
  EXPECT_GE(started.size(), 3u) << "a growth is four steps at most";
  EXPECT_LE(started.size(), (std::chrono::steady_clock::now() - begun) / least_apart + 1u);
  const auto s = rig.status("a");
  EXPECT_EQ(s.state(), v1::SANDBOX_STATE_RUNNING);
  EXPECT_LE(s.memory().target_bytes(), ceiling);
  EXPECT_LE(s.memory().boot_bytes() + s.memory().plugged_bytes(), ceiling);
  if (const auto bound = bounds_of(s)) {
    EXPECT_LE(pss_bytes(s.vmm_pid()), bound->limit_bytes());
  }
}

INSTANTIATE_TEST_SUITE_P(agent, hostile_guest, ::testing::Values("lie", "stall", "silent", "flood", "garbage"),
                         [](const auto& of) { return std::string{of.param}; });
INSTANTIATE_TEST_SUITE_P(agent, hostile_machine, ::testing::Values(x86_virtio),
                         [](const auto& of) { return std::string{of.param.name}; });

} // namespace
} // namespace caisson::test
