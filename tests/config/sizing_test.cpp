#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "config/sizing.hpp"

namespace caisson::config {
namespace {

constexpr std::int64_t g = std::int64_t{1} << 30;

sizing_base base(sizing_rule rule, std::uint64_t memory = 2048 * mib) {
  sizing_base out;
  out.rule = rule;
  out.default_memory_bytes = memory;
  return out;
}

TEST(sizing, add_gives_the_limits_on_top) {
  // -m 4G with default_memory 2048 gives a VM of 6 GiB
  const container_limits one[] = {{.memory_bytes = 4 * g}};
  const auto out = size_sandbox(base(sizing_rule::add), one);
  EXPECT_EQ(out.boot_memory_bytes, 2048 * mib);
  EXPECT_EQ(out.target_memory_bytes, 6144 * mib);
}

TEST(sizing, share_takes_the_default_out_of_the_limits) {
  // 4G asked, 1G booted: 3G are added
  const container_limits one[] = {{.memory_bytes = 4 * g}};
  const auto out = size_sandbox(base(sizing_rule::share, 1024 * mib), one);
  EXPECT_EQ(out.boot_memory_bytes, 1024 * mib);
  EXPECT_EQ(out.target_memory_bytes, 4096 * mib);
}

TEST(sizing, share_has_a_floor_and_a_ceiling) {
  const container_limits small[] = {{.memory_bytes = g / 4}};
  EXPECT_EQ(size_sandbox(base(sizing_rule::share, 512 * mib), small).target_memory_bytes, share_floor_bytes);
  const container_limits huge[] = {{.memory_bytes = 300 * g}};
  const auto out = size_sandbox(base(sizing_rule::share), huge);
  EXPECT_EQ(out.target_memory_bytes, share_ceiling_bytes);
  EXPECT_TRUE(out.above_ceiling);
}

TEST(sizing, without_limits_it_stays_as_booted) {
  const container_limits none[] = {{.memory_bytes = -1, .cpu_quota_us = -1, .cpu_period_us = 100000}, {}};
  for (auto rule : {sizing_rule::add, sizing_rule::share}) {
    const auto out = size_sandbox(base(rule, 512 * mib), none);
    EXPECT_EQ(out.target_memory_bytes, 512 * mib);
    EXPECT_EQ(out.target_vcpus_milli, 1000u);
  }
}

TEST(sizing, quotas_are_added_as_fractions_and_rounded_once) {
  // 1 + 0.5 + 0.6 = 2.1 -> 3
  const container_limits two[] = {{.cpu_quota_us = 50000, .cpu_period_us = 100000},
                                  {.cpu_quota_us = 30000, .cpu_period_us = 50000}};
  const auto out = size_sandbox(base(sizing_rule::add), two);
  EXPECT_EQ(out.target_vcpus_milli, 2100u);
  EXPECT_EQ(whole_vcpus(out.target_vcpus_milli), 3u);
  auto half = base(sizing_rule::add);
  half.default_vcpus_milli = 500;
  const container_limits one[] = {{.cpu_quota_us = 150000, .cpu_period_us = 100000}};
  EXPECT_EQ(whole_vcpus(size_sandbox(half, one).target_vcpus_milli), 2u);
}

TEST(sizing, cpusets_count_only_without_any_quota) {
  const container_limits set_only[] = {{.cpuset = "0-1"}, {.cpuset = "1,3"}};
  EXPECT_EQ(size_sandbox(base(sizing_rule::add), set_only).target_vcpus_milli, 4000u);
  const container_limits both[] = {{.cpu_quota_us = 100000, .cpu_period_us = 100000, .cpuset = "0-7"}};
  EXPECT_EQ(size_sandbox(base(sizing_rule::add), both).target_vcpus_milli, 2000u);
}

TEST(sizing, static_sizing_boots_with_everything) {
  auto fixed = base(sizing_rule::add);
  fixed.static_sizing = true;
  const container_limits one[] = {{.memory_bytes = g, .cpu_quota_us = 200000, .cpu_period_us = 100000}};
  auto out = size_sandbox(fixed, one);
  EXPECT_EQ(out.boot_memory_bytes, 3072 * mib);
  EXPECT_EQ(out.boot_vcpus_milli, 3000u);
  // the Rust runtime's overheads stand in for the defaults
  fixed.overhead_memory_bytes = 32 * mib;
  fixed.overhead_vcpus_milli = 200;
  out = size_sandbox(fixed, one);
  EXPECT_EQ(out.boot_memory_bytes, 1056 * mib);
  EXPECT_EQ(out.boot_vcpus_milli, 2200u);
  EXPECT_EQ(whole_vcpus(out.boot_vcpus_milli), 3u);
  EXPECT_EQ(out.target_memory_bytes, out.boot_memory_bytes);
}

TEST(sizing, a_limit_on_processors_alone_leaves_the_memory_alone) {
  auto fixed = base(sizing_rule::add);
  fixed.static_sizing = true;
  fixed.overhead_memory_bytes = 32 * mib;
  fixed.overhead_vcpus_milli = 200;
  const container_limits one[] = {{.cpu_quota_us = 100000, .cpu_period_us = 100000}};
  EXPECT_EQ(size_sandbox(fixed, one).boot_memory_bytes, 2048 * mib);
}

TEST(sizing, hugepages_and_absurd_limits) {
  const container_limits pages[] = {{.memory_bytes = g, .hugepage_bytes = g}};
  EXPECT_EQ(size_sandbox(base(sizing_rule::add), pages).target_memory_bytes, 4096 * mib);
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  const container_limits absurd[] = {
      {.memory_bytes = most, .cpu_quota_us = most, .cpu_period_us = 1}, {.memory_bytes = most}, {.memory_bytes = most}};
  const auto out = size_sandbox(base(sizing_rule::add), absurd);
  EXPECT_EQ(out.target_memory_bytes, std::numeric_limits<std::uint64_t>::max());
  EXPECT_GE(out.target_vcpus_milli, 4'000'000'000u);
}

TEST(sizing, cpusets_as_linux_writes_them) {
  EXPECT_EQ(count_cpuset(""), 0u);
  EXPECT_EQ(count_cpuset("0"), 1u);
  EXPECT_EQ(count_cpuset("0-3,7,3"), 5u);
  for (const char* bad : {"a", "3-1", "1-", "-1", "1,,2", "0-9999", "1 2", ","})
    EXPECT_FALSE(count_cpuset(bad)) << bad;
}

TEST(sizing, more_limits_never_make_it_smaller) {
  rc::check([](std::vector<std::uint32_t> sizes, std::uint32_t more, bool share, bool is_static) {
    auto b = base(share ? sizing_rule::share : sizing_rule::add, 512 * mib);
    b.static_sizing = is_static;
    std::vector<container_limits> limits;
    for (auto each : sizes)
      limits.push_back({.memory_bytes = each, .cpu_quota_us = each % 400000, .cpu_period_us = 100000});
    const auto before = size_sandbox(b, limits);
    limits.push_back({.memory_bytes = more, .cpu_quota_us = more % 400000, .cpu_period_us = 100000});
    const auto after = size_sandbox(b, limits);
    RC_ASSERT(after.target_memory_bytes >= before.target_memory_bytes);
    RC_ASSERT(after.target_vcpus_milli >= before.target_vcpus_milli);
    RC_ASSERT(before.target_memory_bytes >= before.boot_memory_bytes);
    RC_ASSERT(before.target_vcpus_milli >= before.boot_vcpus_milli);
  });
}

} // namespace
} // namespace caisson::config
