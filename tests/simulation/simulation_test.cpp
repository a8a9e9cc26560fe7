// The whole engine over a simulated world, in virtual time and in an order drawn from a seed. A seed that fails is
// printed;
//
//     CAISSON_SEED=N caisson_simulation            replays it, with the trace of what was asked and answered
//     CAISSON_SEEDS=FIRST..LAST caisson_simulation  tries a range

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "tests/simulation/script.hpp"

namespace caisson::tests {
namespace {

struct seed_range {
  std::uint64_t first = 1, last = 50;
  bool one = false;
};

seed_range seeds() {
  seed_range r;
  if (const char* one = std::getenv("CAISSON_SEED")) {
    r.first = r.last = std::strtoull(one, nullptr, 10);
    r.one = true;
  } else if (const char* range = std::getenv("CAISSON_SEEDS")) {
    char* end = nullptr;
    r.first = std::strtoull(range, &end, 10);
    if (std::string_view{end}.starts_with(".."))
      r.last = std::strtoull(end + 2, nullptr, 10);
  }
  return r;
}

// Runs the seeds; after five that fail the rest says nothing new.
template <class Make> script_result run_all(Make make) {
  script_result sum;
  const auto range = seeds();
  int bad = 0;
  for (auto seed = range.first; seed <= range.last && bad < 5; ++seed) {
    script s{make(seed)};
    const auto r = s.run();
    sum.requests += r.requests, sum.kills += r.kills, sum.converged += r.converged, sum.partly += r.partly;
    sum.promises_refused += r.promises_refused, sum.autosized += r.autosized;
    sum.failed += r.failed, sum.created += r.created, sum.refused += r.refused;
    bad += !r.problems.empty();
    for (const auto& p : r.problems)
      ADD_FAILURE() << p << "\nreplay: CAISSON_SEED=" << seed << " caisson_simulation --gtest_filter="
                    << ::testing::UnitTest::GetInstance()->current_test_info()->test_suite_name() << "."
                    << ::testing::UnitTest::GetInstance()->current_test_info()->name();
    if (range.one)
      std::printf("%s", r.trace.c_str());
  }
  std::printf("seeds %llu..%llu: %d requests, %d refused, %d sandboxes, %d resizes converged, %d partly, %d failed, %d "
              "engines killed, %d promises refused, %d changes of automatic memory\n",
              static_cast<unsigned long long>(range.first), static_cast<unsigned long long>(range.last), sum.requests,
              sum.refused, sum.created, sum.converged, sum.partly, sum.failed, sum.kills, sum.promises_refused, sum.autosized);
  return sum;
}

TEST(simulation, without_faults_everything_that_is_accepted_succeeds) {
  const auto sum = run_all([](std::uint64_t seed) {
    script_options o;
    o.seed = seed;
    o.plan.seed = seed;
    o.accidents = false;
    o.undisturbed = true;
    return o;
  });
  EXPECT_GT(sum.converged, 0);
}

TEST(simulation, faults_of_all_kinds_end_in_bounded_time_with_true_figures_and_nothing_left) {
  run_all([](std::uint64_t seed) {
    script_options o;
    o.seed = seed;
    o.plan = backends::simulated::seeded_fault_plan(seed);
    return o;
  });
}

TEST(simulation, an_engine_that_is_killed_anywhere_loses_nothing) {
  const auto sum = run_all([](std::uint64_t seed) {
    script_options o;
    o.seed = seed;
    o.plan.seed = seed;
    o.plan.slow = 0.2;
    o.accidents = false;
    o.undisturbed = true;
    o.kills = 3;
    return o;
  });
  if (seeds().last - seeds().first >= 49) {
    EXPECT_GE(sum.kills, 100);
  }
}

TEST(simulation, an_engine_that_is_killed_among_faults_leaves_nothing_behind) {
  run_all([](std::uint64_t seed) {
    script_options o;
    o.seed = seed;
    o.plan = backends::simulated::seeded_fault_plan(seed + 7'000);
    o.kills = 2;
    return o;
  });
}

TEST(simulation, memory_follows_the_load_within_what_the_host_can_give) {
  const auto sum = run_all([](std::uint64_t seed) {
    script_options o;
    o.seed = seed;
    o.plan = seed % 3 == 0 ? backends::simulated::seeded_fault_plan(seed + 11'000) : backends::simulated::fault_plan{};
    o.plan.seed = seed;
    o.autosize = true;
    o.kills = seed % 4 == 0 ? 1 : 0;
    o.available_bytes = (4 + seed % 5) << 30; // some get nothing
    return o;
  });
  if (seeds().last - seeds().first >= 49) {
    EXPECT_GT(sum.promises_refused, 0);
    EXPECT_GT(sum.autosized, 0);
  }
}

TEST(simulation, the_same_seed_is_the_same_run) {
  const auto once = [] {
    script_options o;
    o.seed = 4711;
    o.plan = backends::simulated::seeded_fault_plan(4711);
    o.kills = 1;
    return script{o}.run().trace;
  };
  const auto first = once();
  EXPECT_FALSE(first.empty());
  EXPECT_EQ(first, once());
}

} // namespace
} // namespace caisson::tests
