// What goes wrong while memory comes and goes, on real guests, each with one of its own: QEMU is killed, the guest
// boots, refuses, or lacks the driver. (Guests that mean ill: hotplug_hostile_test.cpp.) Whatever happens the operation ends, says why, and no figure
// is one that nobody read.

#include <csignal>

#include "tests/system/hotplug_rig.hpp"

namespace caisson::test {
namespace {

using namespace std::chrono_literals;

struct own_guest : ::testing::TestWithParam<machine> {
  void SetUp() override {
    if (auto why = unavailable(GetParam()); !why.empty())
      GTEST_SKIP() << why;
    rig = std::make_unique<hotplug_rig>();
  }

  void boot(hotplug_rig::wish w) {
    w.on = GetParam();
    w.name = "a";
    auto made = rig->create(w);
    ASSERT_EQ(made.index(), 0u) << std::get<v1::Error>(made).text();
    total = rig->mem_total("a");
  }

  void expect_converged(std::uint64_t target) {
    auto o = rig->resize("a", target);
    ASSERT_EQ(o.state(), v1::OPERATION_STATE_CONVERGED) << target / mib << " MiB: " << o.why();
    rig->expect_everywhere("a", target - rig->status("a").memory().boot_bytes(), total);
  }

  /// Ends the VMM as the kernel's OOM killer would.
  void kill_vmm() {
    auto pid = rig->status("a").vmm_pid();
    ASSERT_GT(pid, 0);
    ::kill(static_cast<pid_t>(pid), SIGKILL);
    EXPECT_TRUE(gone(pid, 30s));
  }

  /// The operation, if it was begun, has ended; the sandbox is told to be dead and can be removed.
  void expect_dead(const engine::outcome<v1::Operation>& begun) {
    if (auto* o = std::get_if<v1::Operation>(&begun)) {
      auto end = rig->wait(*o);
      EXPECT_TRUE(end.state() == v1::OPERATION_STATE_FAILED || end.state() == v1::OPERATION_STATE_CONVERGED)
          << "state " << end.state() << ": " << end.why();
      if (end.state() == v1::OPERATION_STATE_FAILED) {
        EXPECT_EQ(end.error().code(), "vmm_died") << end.why();
      }
    }
    auto said = rig->events.await([](const v1::Event& e) { return e.type() == "sandbox.failed"; }, 60s);
    ASSERT_TRUE(said);
    EXPECT_FALSE(said->text().empty());
    EXPECT_EQ(rig->status("a").state(), v1::SANDBOX_STATE_FAILED);
    auto refused = rig->resize("a", 1024 * mib);
    EXPECT_EQ(refused.error().code(), "not_running") << refused.why();
    auto removed = rig->remove("a");
    EXPECT_EQ(removed.index(), 0u) << std::get<v1::Error>(removed).text();
  }

  bool await_progress(const engine::outcome<v1::Operation>& begun) {
    const auto& id = std::get<v1::Operation>(begun).id();
    return rig->events
        .await(
            [&](const v1::Event& e) {
              return e.operation().id() == id && e.type().starts_with("operation.") && e.type() != "operation.started";
            },
            120s)
        .has_value();
  }

  std::unique_ptr<hotplug_rig> rig;
  std::uint64_t total = 0;
};

TEST_P(own_guest, killed_before_it_grows) {
  boot({.boot_mib = 256});
  kill_vmm();
  expect_dead(rig->begin_resize("a", 1024 * mib));
}

TEST_P(own_guest, killed_when_it_begins_to_grow) {
  boot({.boot_mib = 256});
  auto begun = rig->begin_resize("a", 2048 * mib);
  ASSERT_EQ(begun.index(), 0u) << std::get<v1::Error>(begun).text();
  kill_vmm();
  expect_dead(begun);
}

TEST_P(own_guest, killed_while_it_grows) {
  boot({.boot_mib = 256});
  auto begun = rig->begin_resize("a", 2048 * mib);
  ASSERT_EQ(begun.index(), 0u) << std::get<v1::Error>(begun).text();
  EXPECT_TRUE(await_progress(begun));
  kill_vmm();
  expect_dead(begun);
}

TEST_P(own_guest, killed_when_it_begins_to_shrink) {
  boot({.boot_mib = 256});
  expect_converged(1280 * mib);
  auto begun = rig->begin_resize("a", 256 * mib);
  ASSERT_EQ(begun.index(), 0u) << std::get<v1::Error>(begun).text();
  kill_vmm();
  expect_dead(begun);
}

TEST_P(own_guest, killed_while_it_shrinks) {
  boot({.boot_mib = 256});
  expect_converged(1280 * mib);
  auto begun = rig->begin_resize("a", 256 * mib);
  ASSERT_EQ(begun.index(), 0u) << std::get<v1::Error>(begun).text();
  EXPECT_TRUE(await_progress(begun));
  kill_vmm();
  expect_dead(begun);
}

TEST_P(own_guest, removed_while_it_grows) {
  boot({.boot_mib = 256});
  auto begun = rig->begin_resize("a", 2048 * mib);
  ASSERT_EQ(begun.index(), 0u) << std::get<v1::Error>(begun).text();
  auto pid = rig->status("a").vmm_pid();
  auto removed = rig->remove("a");
  EXPECT_EQ(removed.index(), 0u) << std::get<v1::Error>(removed).text();
  EXPECT_TRUE(gone(pid, 30s));
  EXPECT_EQ(rig->get("a").index(), 1u);
}

TEST_P(own_guest, resized_while_it_boots) {
  auto made = rig->create_later({.on = GetParam(), .name = "a", .boot_mib = 256});
  ASSERT_TRUE(rig->events.await([](const v1::Event& e) { return e.type() == "sandbox.creating"; }, 120s));
  auto early = rig->begin_resize("a", 1024 * mib);
  auto created = made();
  ASSERT_EQ(created.index(), 0u) << std::get<v1::Error>(created).text();
  if (auto* why = std::get_if<v1::Error>(&early)) {
    EXPECT_EQ(why->code(), "not_running") << why->text();
    EXPECT_EQ(rig->status("a").memory().plugged_bytes(), 0u) << "what was refused does not happen later";
  } else {
    auto o = rig->wait(std::get<v1::Operation>(early));
    EXPECT_EQ(o.state(), v1::OPERATION_STATE_CONVERGED) << o.why();
  }
  auto o = rig->resize("a", 1024 * mib);
  EXPECT_EQ(o.state(), v1::OPERATION_STATE_CONVERGED) << o.why();
  const auto s = rig->status("a");
  EXPECT_EQ(s.memory().boot_bytes() + s.memory().plugged_bytes(), 1024 * mib);
  EXPECT_EQ(s.memory().guest_bytes(), 1024 * mib);
}

TEST_P(own_guest, grows_from_128_mib_to_8_gib_in_several_steps) {
  boot({.boot_mib = 128, .max_mib = 8192});
  auto planned = rig->begin_resize("a", 8192 * mib, true);
  ASSERT_EQ(planned.index(), 0u) << std::get<v1::Error>(planned).text();
  EXPECT_GE(std::get<v1::Operation>(planned).plan().steps_size(), 2) << "the memory map of it all does not fit at once";
  expect_converged(8192 * mib);
  // So small a guest needs some of it for its kernel, and that part may stay.
  auto o = rig->resize("a", 128 * mib);
  EXPECT_TRUE(o.state() == v1::OPERATION_STATE_CONVERGED || !o.why().empty());
  const auto left = rig->status("a").memory().plugged_bytes();
  EXPECT_LE(left, 4096 * mib) << o.why();
  rig->expect_everywhere("a", left, total, false);
}

TEST_P(own_guest, without_the_driver_nothing_is_plugged) {
  if (GetParam().dimm())
    GTEST_SKIP() << "the kernels here have ACPI memory hotplug built in; Debian's ARM64 kernel, which lacks it, is in "
                    "arm64_test";
  boot({.boot_mib = 256, .more = "kernel_params = \"module_blacklist=virtio_mem\"\n"});
  auto o = rig->resize("a", 1024 * mib);
  EXPECT_EQ(o.state(), v1::OPERATION_STATE_FAILED);
  EXPECT_EQ(o.error().code(), "unsupported") << o.why();
  EXPECT_NE(o.why().find("CONFIG_VIRTIO_MEM"), std::string::npos) << o.why();
  EXPECT_EQ(rig->status("a").memory().plugged_bytes(), 0u);
  EXPECT_EQ(rig->mem_total("a"), total);
}

TEST_P(own_guest, in_a_guest_that_does_not_look_nothing_is_plugged) {
  if (!GetParam().dimm())
    GTEST_SKIP() << "of virtio-mem the driver is asked before anything is plugged";
  boot({.boot_mib = 256, .more = "kernel_params = \"acpi_no_memhotplug\"\n"});
  auto o = rig->resize("a", 512 * mib);
  EXPECT_EQ(o.state(), v1::OPERATION_STATE_FAILED);
  EXPECT_EQ(o.error().code(), "unsupported") << o.why();
  EXPECT_NE(o.why().find("acpi_no_memhotplug"), std::string::npos) << o.why();
  EXPECT_EQ(rig->status("a").memory().plugged_bytes(), 0u);
  EXPECT_EQ(rig->mem_total("a"), total);
}

// Blocks that the guest's kernel has filled with its own pages never come offline.
TEST_P(own_guest, that_refuses_to_give_back_keeps_it_and_lives) {
  if (!GetParam().dimm())
    GTEST_SKIP() << "virtio-mem gives back what it can; see what_a_guest_uses_is_not_taken_from_it";
  if (GetParam().arm())
    GTEST_SKIP() << "ARM64's kernel has one zone for all, and does not take its own pages from a DIMM first";
  boot({.boot_mib = 512});
  expect_converged(640 * mib);
  // DIMMs come online movable; as ordinary memory above 4 GiB they are what the kernel takes its own pages from first.
  auto held = rig->in_guest("a", {"sh", "-c",
                                  "for b in /sys/devices/system/memory/memory*; do "
                                  "  grep -qx Movable $b/valid_zones || continue; "
                                  "  echo offline > $b/state && echo online_kernel > $b/state || exit 1; done; "
                                  "mkdir -p /mnt/t && mount -t tmpfs none /mnt/t && cd /mnt/t && "
                                  "i=0; while [ $i -lt 3000 ]; do : > f$i; i=$((i+1)); done; "
                                  "cat /sys/devices/system/memory/memory*/valid_zones | sort | uniq -c"});
  ASSERT_EQ(held.status, 0) << held.err;
  auto o = rig->resize("a", 512 * mib);
  EXPECT_TRUE(o.state() == v1::OPERATION_STATE_PARTLY || o.state() == v1::OPERATION_STATE_FAILED)
      << "state " << o.state() << "; zones of the blocks: " << held.out;
  EXPECT_NE(o.why().find("DIMM"), std::string::npos) << o.why();
  rig->expect_everywhere("a", rig->status("a").memory().plugged_bytes(), total, false);
  EXPECT_EQ(rig->in_guest("a", {"sh", "-c", "ls /mnt/t | wc -l"}).out, "3000\n");
  expect_converged(1024 * mib);
}

std::string name_of(const ::testing::TestParamInfo<machine>& info) {
  return info.param.method == std::string{"dimm"} ? "dimm" : "virtio_mem";
}

INSTANTIATE_TEST_SUITE_P(x86_64, own_guest, ::testing::Values(x86_dimm, x86_virtio), name_of);
INSTANTIATE_TEST_SUITE_P(aarch64, own_guest, ::testing::Values(arm_dimm, arm_virtio), name_of);

} // namespace
} // namespace caisson::test
