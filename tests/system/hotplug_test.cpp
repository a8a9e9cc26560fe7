// Memory that comes and goes on real guests: DIMM and virtio-mem, x86_64 and ARM64. One guest a machine is shared by
// the tests below, each of which begins and ends with nothing plugged; what needs a guest of its own is in
// hotplug_trouble_test.cpp. A machine that cannot be had here is skipped and says why.

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <map>

#include "tests/system/hotplug_rig.hpp"

namespace caisson::test {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t boot = 512 * mib;

/// What the host pays for a VMM, from two sides.
struct host_bill {
  std::uint64_t told = 0; ///< by the engine
  std::uint64_t pss = 0;  ///< as /proc/PID/smaps_rollup has it
  std::uint64_t most() const { return std::max(told, pss); }
  std::uint64_t least() const { return std::min(told, pss); }
};

class shared_guest : public ::testing::TestWithParam<machine> {
protected:
  static void SetUpTestSuite() { rig = std::make_unique<hotplug_rig>(); }
  static void TearDownTestSuite() {
    rig.reset();
    totals.clear();
  }

  void SetUp() override {
    if (auto why = unavailable(GetParam()); !why.empty())
      GTEST_SKIP() << why;
    if (totals.count(name()) > 0 && at_home())
      return;
    if (totals.erase(name()) > 0)
      rig->remove(name());
    auto made = rig->create({.on = GetParam(), .name = name()});
    ASSERT_EQ(made.index(), 0u) << std::get<v1::Error>(made).text();
    totals[name()] = rig->mem_total(name());
    ASSERT_TRUE(at_home());
  }

  static std::string name() { return GetParam().name; }
  static std::uint64_t total_at_boot() { return totals[name()]; }

  static bool at_home() {
    auto s = rig->get(name());
    auto* status = std::get_if<v1::SandboxStatus>(&s);
    return status && status->state() == v1::SANDBOX_STATE_RUNNING && status->memory().plugged_bytes() == 0 &&
           status->memory().guest_bytes() == boot;
  }

  static void expect_plugged(std::uint64_t plugged) { rig->expect_everywhere(name(), plugged, total_at_boot()); }

  static void expect_converged(std::uint64_t target) {
    auto o = rig->resize(name(), target);
    ASSERT_EQ(o.state(), v1::OPERATION_STATE_CONVERGED) << target / mib << " MiB: " << o.why();
    EXPECT_EQ(o.memory().boot_bytes() + o.memory().plugged_bytes(), target) << "the operation's own figures";
    EXPECT_EQ(o.memory().guest_bytes(), target);
    expect_plugged(target - boot);
  }

  static host_bill bill() {
    const auto s = rig->status(name());
    host_bill b{.told = s.memory().host_bytes()};
    std::ifstream rollup{"/proc/" + std::to_string(s.vmm_pid()) + "/smaps_rollup"};
    for (std::string line; std::getline(rollup, line);)
      if (line.starts_with("Pss:"))
        b.pss = std::stoull(line.substr(4)) * 1024;
    return b;
  }

  static std::unique_ptr<hotplug_rig> rig;
  static std::map<std::string, std::uint64_t> totals; ///< MemTotal at boot, by sandbox
};

std::unique_ptr<hotplug_rig> shared_guest::rig;
std::map<std::string, std::uint64_t> shared_guest::totals;

TEST_P(shared_guest, goes_up_and_down) {
  expect_converged(boot + 384 * mib);
  expect_converged(boot + 1024 * mib);
  expect_converged(boot + 256 * mib);
  expect_converged(boot);
}

TEST_P(shared_guest, goes_up_five_times_and_down_five_times) {
  // Of what DIMMs this makes, each of the sizes below can be made too.
  for (auto more : {1024, 1152, 1280, 1536, 1920})
    expect_converged(boot + static_cast<std::uint64_t>(more) * mib);
  for (auto more : {1408, 896, 512, 128, 0})
    expect_converged(boot + static_cast<std::uint64_t>(more) * mib);
}

TEST_P(shared_guest, takes_all_that_there_is_room_for_and_no_more) {
  const auto most = rig->status(name()).memory().max_bytes();
  if (!GetParam().dimm()) {
    expect_converged(most);
    auto o = rig->resize(name(), most + 128 * mib);
    EXPECT_EQ(o.error().code(), "out_of_range") << o.why();
    expect_plugged(most - boot);
    return expect_converged(boot);
  }
  const auto slots = rig->status(name()).memory().slots_total();
  ASSERT_EQ(slots, 10u);
  for (std::uint64_t n = 1; n <= slots; ++n) {
    expect_converged(boot + n * 128 * mib);
    EXPECT_EQ(rig->status(name()).memory().slots_used(), n) << "a DIMM of 128 MiB takes a slot";
  }
  auto o = rig->resize(name(), boot + 11 * 128 * mib);
  EXPECT_EQ(o.state(), v1::OPERATION_STATE_FAILED);
  EXPECT_NE(o.why().find("slot"), std::string::npos) << o.why();
  expect_plugged(10 * 128 * mib);
  expect_converged(boot + 5 * 128 * mib);
  expect_converged(boot + 6 * 128 * mib);
  expect_converged(boot);
}

TEST_P(shared_guest, of_two_targets_at_once_the_newer_one_holds) {
  auto first = rig->begin_resize(name(), boot + 1024 * mib);
  auto second = rig->begin_resize(name(), boot + 256 * mib);
  ASSERT_EQ(first.index(), 0u) << std::get<v1::Error>(first).text();
  ASSERT_EQ(second.index(), 0u) << std::get<v1::Error>(second).text();
  auto one = rig->wait(std::get<v1::Operation>(first)), two = rig->wait(std::get<v1::Operation>(second));
  EXPECT_EQ(two.state(), v1::OPERATION_STATE_CONVERGED) << two.why();
  if (one.state() != v1::OPERATION_STATE_CONVERGED) { // else it was quicker than the second one came
    EXPECT_EQ(one.state(), v1::OPERATION_STATE_CANCELLED);
    EXPECT_NE(one.why().find(two.id()), std::string::npos) << one.why();
  }
  expect_plugged(256 * mib);
  expect_converged(boot);
}

TEST_P(shared_guest, cancelled_it_stops_at_a_figure_that_everybody_has) {
  auto begun = rig->begin_resize(name(), rig->status(name()).memory().max_bytes());
  ASSERT_EQ(begun.index(), 0u) << std::get<v1::Error>(begun).text();
  auto cancelled = rig->cancel(std::get<v1::Operation>(begun));
  ASSERT_EQ(cancelled.index(), 0u) << std::get<v1::Error>(cancelled).text();
  auto o = rig->wait(std::get<v1::Operation>(begun));
  EXPECT_TRUE(o.state() == v1::OPERATION_STATE_CANCELLED || o.state() == v1::OPERATION_STATE_CONVERGED) << o.why();
  expect_plugged(rig->status(name()).memory().plugged_bytes());
  auto again = rig->look(o);
  ASSERT_EQ(again.index(), 0u) << "an operation can be read for as long as its sandbox lives";
  EXPECT_EQ(std::get<v1::Operation>(again).state(), o.state());
  auto late = rig->cancel(o);
  ASSERT_EQ(late.index(), 0u);
  EXPECT_EQ(std::get<v1::Operation>(late).state(), o.state()) << "what has ended is not cancelled any more";
  expect_converged(boot);
}

TEST_P(shared_guest, what_a_guest_uses_is_not_taken_from_it) {
  expect_converged(boot + 1024 * mib);
  auto filled = rig->in_guest(name(), {"sh", "-c",
                                       "mkdir -p /mnt/full && mount -t tmpfs -o size=2g none /mnt/full && "
                                       "dd if=/dev/zero of=/mnt/full/a bs=1M count=900 2>/dev/null"});
  ASSERT_EQ(filled.status, 0) << filled.err;
  auto o = rig->resize(name(), boot);
  EXPECT_NE(o.state(), v1::OPERATION_STATE_CONVERGED);
  EXPECT_FALSE(o.why().empty());
  const auto s = rig->status(name());
  EXPECT_GE(s.memory().boot_bytes() + s.memory().plugged_bytes(), 900 * mib) << o.why();
  auto size = rig->in_guest(name(), {"stat", "-c", "%s", "/mnt/full/a"});
  EXPECT_EQ(size.out, std::to_string(900 * mib) + "\n") << size.err;
  EXPECT_EQ(rig->in_guest(name(), {"umount", "/mnt/full"}).status, 0);
  expect_converged(boot);
}

TEST_P(shared_guest, what_it_used_comes_back_to_the_host) {
  EXPECT_TRUE(rig->status(name()).guest_features().free_page_reporting());
  const auto before = bill();
  expect_converged(boot + 1024 * mib);
  auto filled = rig->in_guest(name(), {"sh", "-c",
                                       "mkdir -p /mnt/full && mount -t tmpfs -o size=2g none /mnt/full && "
                                       "dd if=/dev/zero of=/mnt/full/a bs=1M count=600 2>/dev/null"});
  ASSERT_EQ(filled.status, 0) << filled.err;
  const auto full = bill();
  EXPECT_GE(full.least(), 600 * mib) << "the engine's figure " << full.told << ", the host's " << full.pss;
  EXPECT_EQ(rig->in_guest(name(), {"umount", "/mnt/full"}).status, 0);
  expect_converged(boot);
  // What was freed in the memory that it booted with is reported a while later.
  const auto risen = std::max(full.least() - std::min(full.least(), before.most()), 600 * mib);
  const auto goal = full.least() - std::min(full.least(), risen * 8 / 10);
  auto after = bill();
  for (const auto end = std::chrono::steady_clock::now() + 180s;
       after.most() > goal && std::chrono::steady_clock::now() < end; after = bill())
    ::poll(nullptr, 0, 200);
  EXPECT_LE(after.told, goal) << "the engine's figure: before " << before.told / mib << " MiB, full "
                              << full.told / mib;
  EXPECT_LE(after.pss, goal) << "the host's: before " << before.pss / mib << " MiB, full " << full.pss / mib;
  EXPECT_GT(after.least(), 0u);
  std::printf("the host paid %llu MiB, then %llu MiB, afterwards %llu MiB\n",
              static_cast<unsigned long long>(before.pss / mib), static_cast<unsigned long long>(full.pss / mib),
              static_cast<unsigned long long>(after.pss / mib));
}

TEST_P(shared_guest, paused_it_is_left_alone) {
  ASSERT_EQ(rig->pause(name()).index(), 0u);
  auto o = rig->resize(name(), boot + 256 * mib);
  EXPECT_EQ(o.state(), v1::OPERATION_STATE_FAILED);
  EXPECT_EQ(o.error().code(), "not_running") << o.why();
  ASSERT_EQ(rig->resume(name()).index(), 0u);
  expect_plugged(0);
  expect_converged(boot + 256 * mib);
  expect_converged(boot);
}

TEST_P(shared_guest, a_dry_run_tells_the_steps_and_does_nothing) {
  auto planned = rig->begin_resize(name(), boot + 896 * mib + 1, true);
  ASSERT_EQ(planned.index(), 0u) << std::get<v1::Error>(planned).text();
  const auto& o = std::get<v1::Operation>(planned);
  EXPECT_EQ(o.state(), v1::OPERATION_STATE_PLANNED);
  ASSERT_GT(o.plan().steps_size(), 0);
  std::uint64_t sum = 0;
  for (const auto& step : o.plan().steps()) {
    sum += step.bytes();
    EXPECT_FALSE(step.text().empty());
  }
  EXPECT_EQ(boot + sum, o.plan().memory_target_bytes());
  EXPECT_GT(o.plan().memory_target_bytes(), boot + 896 * mib) << "rounded up to a granule";
  EXPECT_GT(o.plan().notes_size(), 0) << "and says so";
  expect_plugged(0);
}

std::string name_of(const ::testing::TestParamInfo<machine>& info) {
  return info.param.method == std::string{"dimm"} ? "dimm" : "virtio_mem";
}

INSTANTIATE_TEST_SUITE_P(x86_64, shared_guest, ::testing::Values(x86_dimm, x86_virtio), name_of);
INSTANTIATE_TEST_SUITE_P(aarch64, shared_guest, ::testing::Values(arm_dimm, arm_virtio), name_of);

} // namespace
} // namespace caisson::test
