// What may be promised: the numbers of one decision, and random sequences against a host of bytes.

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "actors/budget/budget.hpp"

namespace caisson::budget {
namespace {

constexpr std::uint64_t mib = std::uint64_t{1} << 20;
constexpr std::uint64_t gib = std::uint64_t{1} << 30;

TEST(budget, promises_what_is_available_less_the_reserve) {
  book b;
  const host_memory host{16 * gib, 8 * gib};
  EXPECT_FALSE(b.promise("a", 6 * gib, host, {2 * gib}, "", false));
  EXPECT_TRUE(b.promise("b", 1, host, {2 * gib}, "", false)) << "a has taken nothing yet, and is owed all of it";
  EXPECT_EQ(b.promised_bytes(), 6 * gib);
  EXPECT_EQ(b.owed_bytes(), 6 * gib);
}

TEST(budget, what_a_vmm_holds_already_is_owed_no_more) {
  book b;
  EXPECT_FALSE(b.promise("a", 6 * gib, {16 * gib, 8 * gib}, {}, "", false));
  b.holds("a", 5 * gib);
  const host_memory later{16 * gib, 3 * gib};
  EXPECT_TRUE(b.promise("b", 2 * gib + 1, later, {}, "", false));
  EXPECT_FALSE(b.promise("b", 2 * gib, later, {}, "", false));
  EXPECT_EQ(b.owed_bytes(), 3 * gib);
}

TEST(budget, a_growth_counts_what_the_sandbox_holds_itself) {
  book b;
  EXPECT_FALSE(b.promise("a", 4 * gib, {16 * gib, 8 * gib}, {}, "", false));
  b.holds("a", 4 * gib);
  EXPECT_FALSE(b.promise("a", 8 * gib, {16 * gib, 4 * gib}, {}, "", false));
}

TEST(budget, a_vmm_that_holds_more_than_it_was_promised_is_counted_with_it) {
  book b;
  EXPECT_FALSE(b.promise("a", 1 * gib, {16 * gib, 8 * gib}, {}, "", false));
  b.holds("a", 3 * gib);
  EXPECT_TRUE(b.promise("b", 5 * gib + 1, {16 * gib, 5 * gib}, {}, "", false));
  EXPECT_FALSE(b.promise("b", 5 * gib, {16 * gib, 5 * gib}, {}, "", false));
}

TEST(budget, overcommit_is_of_all_that_the_host_has_for_sandboxes) {
  book b;
  const limits half_more{1 * gib, 150};
  EXPECT_FALSE(b.promise("a", 6 * gib, {16 * gib, 9 * gib}, half_more, "", false));
  EXPECT_FALSE(b.promise("b", 6 * gib, {16 * gib, 9 * gib}, half_more, "", false));
  const auto no = b.promise("c", 1, {16 * gib, 9 * gib}, half_more, "", false);
  ASSERT_TRUE(no);
  EXPECT_NE(no->text.find("with overcommit 1.50"), std::string::npos) << no->text;
}

TEST(budget, a_refusal_has_all_numbers_and_says_how_to_mend_it) {
  book b;
  EXPECT_FALSE(b.promise("a", 2 * gib, {16 * gib, 4 * gib}, {512 * mib}, "", false));
  const auto no = b.promise("b", 3 * gib, {16 * gib, 4 * gib}, {512 * mib}, "the creation of sandbox b", false);
  ASSERT_TRUE(no);
  EXPECT_EQ(no->short_by_bytes, 1536 * mib);
  EXPECT_EQ(no->text, "the creation of sandbox b needs 3 GiB of the host's memory, and that is 1536 MiB more than the host "
                      "can still promise: it has 4 GiB available, keeps 512 MiB back (host_reserve_mib), and owes 2 GiB "
                      "to 1 other sandbox. Stop or shrink a sandbox, ask for less, or change host_reserve_mib or "
                      "overcommit in [runtime.caisson]");
}

TEST(budget, a_refusal_and_a_dry_run_change_nothing) {
  book b;
  EXPECT_TRUE(b.promise("a", 9 * gib, {16 * gib, 8 * gib}, {}, "", false));
  EXPECT_FALSE(b.promise("a", 8 * gib, {16 * gib, 8 * gib}, {}, "", true));
  EXPECT_TRUE(b.promise("a", 9 * gib, {16 * gib, 8 * gib}, {}, "", true));
  EXPECT_EQ(b.promised_bytes(), 0u);
  EXPECT_EQ(b.sandboxes(), 0u);
}

TEST(budget, what_is_found_again_is_never_refused_and_what_shrinks_always_may) {
  book b;
  b.state("old", 32 * gib);
  EXPECT_EQ(b.promised_bytes("old"), 32 * gib);
  EXPECT_TRUE(b.promise("new", 1, {16 * gib, 8 * gib}, {}, "", false));
  EXPECT_FALSE(b.promise("old", 31 * gib, {16 * gib, 0}, {}, "", false)) << "less than before";
  b.state("old", 0);
  EXPECT_FALSE(b.promise("new", 1, {16 * gib, 8 * gib}, {}, "", false));
}

TEST(budget, figures_of_a_vm) {
  v1::VmSpec spec;
  v1::Capabilities can;
  can.set_accelerator("kvm");
  EXPECT_EQ(promise_bytes(spec, can, gib), gib + 128 * mib);
  can.set_accelerator("tcg");
  EXPECT_EQ(promise_bytes(spec, can, gib), gib + 384 * mib);
  can.set_host_overhead_bytes(50 * mib);
  EXPECT_EQ(promise_bytes(spec, can, gib), gib + 50 * mib);
  spec.set_hugepages(true);
  EXPECT_EQ(promise_bytes(spec, can, gib), 50 * mib) << "its guest's memory was set apart before";
}

// A host where everybody else uses the same all the time, and VMMs touch what they like of what they were promised.
TEST(budget, never_promises_more_than_there_is_in_any_order_of_events) {
  rc::check("promised stays within the limit and ends at nothing", [] {
    const auto room = *rc::gen::inRange<std::uint64_t>(1, 64) * gib;
    const limits within{*rc::gen::inRange<std::uint64_t>(0, 4) * gib,
                        *rc::gen::element<std::uint32_t>(100, 100, 125, 200)};
    const auto limit = (room - std::min(room, within.reserve_bytes)) * within.overcommit_percent / 100;
    std::map<std::string, std::uint64_t> promised, held; // the model
    book b;
    const auto available = [&] {
      std::uint64_t sum = 0;
      for (const auto& [id, h] : held)
        sum += h;
      return room - std::min(room, sum);
    };
    const auto steps = *rc::gen::inRange(1, 60);
    for (int i = 0; i < steps; ++i) {
      const auto id = "s" + std::to_string(*rc::gen::inRange(0, 6));
      switch (*rc::gen::inRange(0, 5)) {
      case 0:
      case 1: { // a creation, a growth
        const auto bytes = *rc::gen::inRange<std::uint64_t>(1, 24) * 512 * mib;
        const bool dry = *rc::gen::inRange(0, 5) == 0;
        const bool lost = *rc::gen::inRange(0, 8) == 0; // the sandbox is gone before the answer
        const auto no = b.promise(id, bytes, {room, available()}, within, "it", dry);
        if (no) {
          RC_ASSERT(no->short_by_bytes > 0u);
          RC_ASSERT(bytes > promised[id]);
        } else if (!dry) {
          promised[id] = bytes;
        }
        if (lost) {
          b.state(id, 0);
          promised.erase(id);
          held.erase(id);
        }
        break;
      }
      case 2: // the VMM touches some of it
        if (promised[id] > 0) {
          // Over-committed hosts have to trust that not all is touched.
          const auto most = std::min(promised[id], held[id] + available());
          held[id] = *rc::gen::inRange<std::uint64_t>(0, most / mib + 1) * mib;
          b.holds(id, held[id]);
        }
        break;
      case 3: // a shrink that was read back
        if (promised[id] > 0) {
          promised[id] = *rc::gen::inRange<std::uint64_t>(1, promised[id] / mib + 1) * mib;
          b.state(id, promised[id]);
          held[id] = std::min(held[id], promised[id]);
          b.holds(id, held[id]);
        }
        break;
      default: // stopped
        b.state(id, 0);
        promised.erase(id);
        held.erase(id);
      }
      std::uint64_t sum = 0;
      for (const auto& [each, bytes] : promised)
        sum += bytes;
      RC_ASSERT(b.promised_bytes() == sum);
      RC_ASSERT(sum <= limit);
    }
    for (int i = 0; i < 6; ++i)
      b.state("s" + std::to_string(i), 0);
    RC_ASSERT(b.promised_bytes() == 0u);
    RC_ASSERT(b.owed_bytes() == 0u);
    RC_ASSERT(b.sandboxes() == 0u);
  });
}

} // namespace
} // namespace caisson::budget
