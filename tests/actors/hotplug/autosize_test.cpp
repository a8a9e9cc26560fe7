// When memory follows the load: the decision alone against a model guest, a hostile guest, and the actor over its doubles.

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "actors/memory_hotplug/autosize.hpp"

namespace caisson::memory_hotplug {
namespace {

using namespace std::chrono_literals;
constexpr std::uint64_t mib = std::uint64_t{1} << 20;
constexpr std::uint64_t gib = std::uint64_t{1} << 30;

autosize_policy policy() {
  return {true, 512 * mib, 4096 * mib, 128 * mib, 128 * mib, 30s};
}

/// A sandbox that does at once what is wished, and a guest that uses `load`.
struct model {
  explicit model(autosize_policy p = policy()) : sizer{} { sizer.set(p); }
  autosizer sizer;
  autosizer::moment now{};
  std::uint64_t has = 512 * mib, load = 100 * mib;
  std::vector<std::uint64_t> targets;
  std::string cause;
  bool refuses = false;

  std::uint64_t available() const { return has > load ? has - load : 0; }

  bool look() {
    const auto wish = sizer.look(now, {has, 512 * mib, 2 * mib, available(), false});
    if (!wish)
      return false;
    sizer.wished(now, *wish, has);
    targets.push_back(wish->target_bytes);
    cause = wish->cause;
    if (!refuses)
      has = wish->target_bytes;
    sizer.ended(now, has, refuses);
    return true;
  }

  /// Looks once a second.
  void run(std::chrono::seconds time) {
    for (auto end = now + time; now < end; now += 1s)
      look();
  }
};

TEST(autosize, grows_at_once_when_less_than_the_headroom_is_available) {
  model m;
  m.run(10s);
  EXPECT_TRUE(m.targets.empty()) << "412 MiB are available";
  m.load = 450 * mib;
  ASSERT_TRUE(m.look());
  EXPECT_EQ(m.has, 640 * mib);
  EXPECT_EQ(m.cause, "automatic memory: 62 MiB of 512 MiB are available to the guest, 128 MiB shall be");
}

TEST(autosize, a_stalling_workload_gets_more_and_sooner) {
  model m;
  m.load = 450 * mib;
  m.sizer.pressure(m.now);
  ASSERT_TRUE(m.look());
  EXPECT_EQ(m.has, 768 * mib);
  EXPECT_NE(m.cause.find("the workload stalls"), std::string::npos);
  m.load = m.has;
  m.now += 600ms;
  EXPECT_TRUE(m.look()) << "without pressure the next one would be two seconds later";
}

TEST(autosize, a_stall_counts_only_where_memory_or_its_limit_is_short) {
  autosizer a;
  a.set(policy());
  a.pressure({});
  EXPECT_FALSE(a.look({}, {1024 * mib, 512 * mib, 2 * mib, 300 * mib, false}));
  EXPECT_TRUE(a.look({}, {1024 * mib, 512 * mib, 2 * mib, 300 * mib, false, 0})) << "memory.high holds it";
}

TEST(autosize, gives_back_only_after_the_cool_down_and_only_what_was_never_used) {
  model m;
  m.has = 2048 * mib;
  m.run(20s);
  m.load = 1024 * mib; // for a moment
  m.look();
  m.now += 1s;
  m.load = 100 * mib;
  m.run(9s);
  EXPECT_TRUE(m.targets.empty());
  m.run(2s);
  ASSERT_EQ(m.targets.size(), 1u);
  EXPECT_EQ(m.has, 1280 * mib) << "1024 MiB were used, 128 MiB shall be available, and a step is kept";
  m.run(60s);
  EXPECT_EQ(m.has, 512 * mib);
}

TEST(autosize, does_not_swing_around_any_load) {
  for (std::uint64_t load = 50 * mib; load < 3 * gib; load += 37 * mib) {
    model m;
    m.has = 4096 * mib;
    m.load = load;
    m.run(300s);
    const auto settled = m.has;
    m.targets.clear();
    m.run(3600s);
    EXPECT_TRUE(m.targets.empty()) << "with a load of " << load / mib << " MiB it still moves";
    EXPECT_GE(settled - load, std::min(128 * mib, settled - load));
    EXPECT_TRUE(settled == 512 * mib || settled - load <= (128 + 2 * 128) * mib) << load / mib;
  }
}

TEST(autosize, is_off_without_a_policy_and_never_moves_while_a_change_is_under_way) {
  model m{{}};
  m.load = m.has;
  m.run(60s);
  EXPECT_TRUE(m.targets.empty());
  autosizer busy;
  busy.set(policy());
  EXPECT_FALSE(busy.look({}, {512 * mib, 512 * mib, 2 * mib, 0, true}));
}

TEST(autosize, a_sandbox_below_its_floor_is_brought_there) {
  auto p = policy();
  p.floor_bytes = 1024 * mib;
  model m{p};
  m.look();
  EXPECT_EQ(m.has, 1024 * mib);
}

TEST(autosize, what_is_refused_is_tried_again_later_and_later) {
  model m;
  m.refuses = true;
  m.load = 500 * mib;
  m.run(600s);
  EXPECT_GE(m.targets.size(), 10u);
  EXPECT_LE(m.targets.size(), 20u) << "1, 2, 4, ... 60 s apart";
  m.refuses = false;
  m.run(70s);
  EXPECT_GT(m.has, 512 * mib);
}

TEST(autosize, whole_granules_only_and_never_above_the_ceiling) {
  auto p = policy();
  p.ceiling_bytes = 1000 * mib;
  autosizer a;
  a.set(p);
  const auto wish = a.look({}, {768 * mib, 512 * mib, 128 * mib, 0, false});
  ASSERT_TRUE(wish);
  EXPECT_EQ(wish->target_bytes, (512 + 3 * 128) * mib) << "the next whole DIMM would be above 1000 MiB";
}

// Whatever the guest claims: within floor and ceiling, and at a bounded rate.
TEST(autosize, a_hostile_guest_gains_nothing_beyond_its_bounds) {
  rc::check("bounded in size and rate", [] {
    auto p = policy();
    p.step_bytes = *rc::gen::inRange<std::uint64_t>(2, 300) * mib;
    p.headroom_bytes = *rc::gen::inRange<std::uint64_t>(16, 600) * mib;
    p.floor_bytes = *rc::gen::inRange<std::uint64_t>(512, 1024) * mib;
    p.ceiling_bytes = *rc::gen::inRange<std::uint64_t>(1024, 8192) * mib;
    autosizer a;
    a.set(p);
    autosizer::moment now{};
    std::uint64_t has = 512 * mib;
    std::uint64_t grown = 0;
    int changes = 0;
    const auto looks = *rc::gen::inRange(1, 400);
    for (int i = 0; i < looks; ++i) {
      now += std::chrono::milliseconds{*rc::gen::inRange(0, 400)};
      if (*rc::gen::inRange(0, 3) == 0)
        a.pressure(now);
      const auto claim = *rc::gen::element<std::uint64_t>(0, 1, has / 2, has, UINT64_MAX / 2, UINT64_MAX);
      const auto wish = a.look(now, {has, 512 * mib, 2 * mib, claim, false});
      if (!wish)
        continue;
      RC_ASSERT(wish->target_bytes <= p.ceiling_bytes);
      RC_ASSERT(wish->target_bytes + 2 * mib > p.floor_bytes);
      RC_ASSERT(wish->target_bytes != has);
      RC_ASSERT(!wish->cause.empty());
      grown += wish->target_bytes > has ? wish->target_bytes - has : 0;
      ++changes;
      a.wished(now, *wish, has);
      has = wish->target_bytes;
      a.ended(now, has);
    }
    const auto seconds = static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::seconds>(now.time_since_epoch()).count());
    const auto most_at_once =
        std::max({4 * p.step_bytes, p.headroom_bytes + p.step_bytes, p.floor_bytes - 512 * mib}) + 2 * mib;
    RC_ASSERT(grown <= (2 * seconds + 4) * most_at_once);
    RC_ASSERT(static_cast<std::uint64_t>(changes) <= 2 * seconds + 4);
  });
}

TEST(autosize, any_load_is_followed_and_settles) {
  rc::check("headroom when it rests, and rest", [] {
    model m;
    const auto phases = *rc::gen::inRange(1, 6);
    for (int i = 0; i < phases; ++i) {
      m.load = *rc::gen::inRange<std::uint64_t>(10, 3800) * mib;
      m.run(std::chrono::seconds{*rc::gen::inRange(1, 200)});
    }
    m.run(400s);
    m.targets.clear();
    m.run(400s);
    RC_ASSERT(m.targets.empty());
    RC_ASSERT(m.available() >= 128 * mib || m.has == 4096 * mib);
  });
}

TEST(workload_limit, stands_just_under_what_the_guest_has) {
  const auto boot = 450 * mib;
  const auto own = own_use_bytes(boot, boot, 390 * mib, 0);
  EXPECT_EQ(own, 60 * mib);
  EXPECT_EQ(workload_high_bytes(boot, boot, own), 450 * mib - 60 * mib - boot / 8);
  EXPECT_EQ(workload_high_bytes(boot + 1024 * mib, boot, own), (450 + 1024 - 60 - 16) * mib - boot / 8);
  EXPECT_EQ(own_use_bytes(boot, boot, 0, 0), boot / 4) << "a claim of nothing available is not believed";
  EXPECT_EQ(own_use_bytes(boot, boot, 400 * mib, 200 * mib), 32 * mib);
  EXPECT_EQ(workload_high_bytes(0, boot, own), 0u);
}

} // namespace
} // namespace caisson::memory_hotplug
