// The budget's actor: what is read for a decision, and that two who ask at once do not both get the last memory.

#include <gtest/gtest.h>

#include "actors/budget/budget_keeper.hpp"
#include "tests/support/deterministic_system.hpp"

namespace caisson::tests {
namespace {

using namespace std::chrono_literals;
constexpr std::uint64_t gib = std::uint64_t{1} << 30;

struct model_host {
  std::uint64_t total = 16 * gib, available = 8 * gib;
  std::map<std::int64_t, std::uint64_t> held; ///< by pid
  int host_reads = 0, process_reads = 0;
  bool fails = false;
};

host_actor::behavior_type host_double(host_actor::pointer, std::shared_ptr<model_host> h) {
  return {
      [h](const v1::MeasureProcess& m) -> caf::result<v1::ProcessFigures> {
        ++h->process_reads;
        v1::ProcessFigures f;
        f.set_pss_bytes(h->held[m.pid()]);
        return f;
      },
      [h](const v1::MeasureHost&) -> caf::result<v1::HostFigures> {
        ++h->host_reads;
        if (h->fails)
          return make_error(ec::host_io, "/proc/meminfo: it is not there");
        v1::HostFigures f;
        f.set_total_bytes(h->total);
        f.set_available_bytes(h->available);
        return f;
      },
      [](const v1::FollowCgroup&) { return v1::CgroupFollowed{}; },
      [](const v1::PrepareDirectory&) { return v1::Empty{}; },
      [](const v1::RemoveDirectory&) { return v1::Empty{}; },
      [](const v1::SaveText&) { return v1::Empty{}; },
  };
}

struct budget_keeper_test : testing::Test {
  deterministic_system sys{7};
  std::shared_ptr<model_host> host = std::make_shared<model_host>();
  budget_actor budget;
  v1::SandboxConfig within;

  void SetUp() override {
    budget::settings set;
    set.host = sys.track(sys.system().spawn(host_double, host));
    budget = sys.track(sys.system().spawn(budget::budget_keeper, set));
    within.set_host_reserve_bytes(1 * gib);
    within.set_overcommit_percent(100);
  }

  static v1::PromiseMemory of(const std::string& id, std::uint64_t bytes, bool dry_run = false) {
    v1::PromiseMemory m;
    m.set_sandbox_id(id);
    m.set_bytes(bytes);
    m.set_what("it");
    m.set_dry_run(dry_run);
    return m;
  }

  auto ask(const std::string& id, std::uint64_t bytes, bool dry_run = false) {
    return sys.ask<v1::MemoryPromised>(budget, of(id, bytes, dry_run), within);
  }

  v1::HostBudget figures() {
    auto a = sys.ask<v1::MemoryPromised>(budget, of("", 0, true), within);
    sys.drain();
    return a.value() ? a->budget() : v1::HostBudget{};
  }
};

TEST_F(budget_keeper_test, two_who_ask_at_once_do_not_both_get_the_last) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    auto a = ask("a", 4 * gib), b = ask("b", 4 * gib);
    sys.drain();
    ASSERT_TRUE(a.done() && b.done());
    ASSERT_NE(a.value() != nullptr, b.value() != nullptr);
    const auto& refused = a.value() ? b.error() : a.error();
    EXPECT_EQ(code_of(refused), ec::host_resources);
    EXPECT_EQ(figures().promised_bytes(), 4 * gib);
    sys.tell(budget, of("a", 0));
    sys.tell(budget, of("b", 0));
    sys.drain();
    EXPECT_EQ(figures().promised_bytes(), 0u);
  }
}

TEST_F(budget_keeper_test, measures_vmms_only_where_it_decides_something) {
  v1::MeasureProcess vmm;
  vmm.set_pid(10);
  host->held[10] = 3 * gib;
  ask("a", 4 * gib);
  sys.drain();
  sys.tell(budget, std::string{"a"}, vmm);
  sys.drain();
  ask("b", 1 * gib);
  sys.drain();
  EXPECT_EQ(host->process_reads, 0) << "there was room even if a had taken nothing yet";
  host->available = 5 * gib;
  auto c = ask("c", 2 * gib);
  sys.drain();
  EXPECT_EQ(host->process_reads, 1);
  ASSERT_TRUE(c.value());
  EXPECT_EQ(c->budget().owed_bytes(), 4 * gib) << "1 GiB to a, 1 GiB to b, 2 GiB to c";
}

TEST_F(budget_keeper_test, many_who_ask_at_once_share_a_reading) {
  std::vector<pending_answer<v1::MemoryPromised>> all;
  for (int i = 0; i < 50; ++i)
    all.push_back(ask("s" + std::to_string(i), 1 << 20));
  sys.drain();
  for (const auto& a : all)
    EXPECT_TRUE(a.value());
  EXPECT_LT(host->host_reads, 50);
}

TEST_F(budget_keeper_test, a_sandbox_that_is_gone_before_the_answer_keeps_nothing) {
  auto a = ask("a", 4 * gib);
  for (int i = 0; i < 3; ++i)
    sys.step();
  sys.tell(budget, of("a", 0));
  sys.drain();
  EXPECT_TRUE(a.done());
  sys.tell(budget, of("a", 0));
  sys.drain();
  EXPECT_EQ(figures().promised_bytes(), 0u);
}

TEST_F(budget_keeper_test, a_dry_run_promises_nothing) {
  auto a = ask("a", 4 * gib, true);
  sys.drain();
  EXPECT_TRUE(a.value());
  EXPECT_EQ(figures().promised_bytes(), 0u);
  auto b = ask("a", 9 * gib, true);
  sys.drain();
  EXPECT_EQ(code_of(b.error()), ec::host_resources);
}

TEST_F(budget_keeper_test, a_host_that_cannot_be_read_promises_nothing_and_says_so) {
  host->fails = true;
  auto a = ask("a", 1);
  sys.drain();
  ASSERT_TRUE(a.done());
  EXPECT_NE(text_of(a.error()).find("/proc/meminfo"), std::string::npos);
  host->fails = false;
  auto b = ask("a", 1);
  sys.drain();
  EXPECT_TRUE(b.value());
}

TEST_F(budget_keeper_test, what_is_found_again_counts_and_is_never_refused) {
  sys.tell(budget, of("old", 100 * gib));
  sys.drain();
  auto a = ask("a", 1);
  sys.drain();
  EXPECT_EQ(code_of(a.error()), ec::host_resources);
  EXPECT_EQ(figures().promised_bytes(), 100 * gib);
}

} // namespace
} // namespace caisson::tests
