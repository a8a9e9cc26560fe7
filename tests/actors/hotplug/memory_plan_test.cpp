#include "actors/memory_hotplug/plan.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cstdlib>
#include <numeric>

namespace caisson::memory_hotplug {
namespace {

constexpr std::uint64_t mib = std::uint64_t{1} << 20;
constexpr std::uint64_t gib = std::uint64_t{1} << 30;
constexpr std::uint64_t block = 128 * mib;

situation dimm_vm(std::vector<std::uint64_t> plugged_blocks = {}, std::uint32_t slots = 10) {
  situation s;
  s.how = method::dimm;
  s.boot_bytes = 512 * mib;
  s.max_bytes = 64 * gib;
  s.granule_bytes = block;
  s.slots_total = slots;
  for (auto b : plugged_blocks) {
    s.dimms.push_back({"d" + std::to_string(s.dimms.size()), b * block});
    s.plugged_bytes += b * block;
  }
  s.guest_total_bytes = s.boot_bytes + s.plugged_bytes;
  s.guest_available_bytes = s.guest_total_bytes - 60 * mib;
  s.guest_boot_total_bytes = s.boot_bytes;
  return s;
}

situation virtio_vm(std::uint64_t plugged = 0) {
  auto s = dimm_vm();
  s.how = method::virtio_mem;
  s.granule_bytes = 2 * mib;
  s.plugged_bytes = plugged;
  return s;
}

plan planned(const situation& s, std::uint64_t target) {
  auto r = make_plan(s, target);
  if (auto* no = std::get_if<refusal>(&r)) {
    ADD_FAILURE() << no->text;
    return {};
  }
  return std::get<plan>(r);
}

std::vector<std::uint64_t> blocks(const std::vector<std::uint64_t>& bytes) {
  std::vector<std::uint64_t> out;
  for (auto b : bytes)
    out.push_back(b / block);
  return out;
}

TEST(memory_plan, growth_is_split_while_slots_are_plenty_and_packed_when_they_run_short) {
  using list = std::vector<std::uint64_t>;
  EXPECT_EQ(split_growth(8, 1000, 10, 10), (list{4, 2, 1, 1}));
  EXPECT_EQ(split_growth(24, 1000, 10, 10), (list{8, 8, 4, 2, 1, 1}));
  EXPECT_EQ(split_growth(24, 1000, 5, 10), (list{24}));
  EXPECT_EQ(split_growth(24, 1000, 6, 10), (list{8, 16}));
  EXPECT_EQ(split_growth(24, 10, 2, 10), (list{10, 10}));
  EXPECT_EQ(split_growth(1, 1000, 10, 10), (list{1}));
  EXPECT_EQ(split_growth(5, 1000, 0, 10), list{});
  EXPECT_EQ(blocks(planned(dimm_vm(), 512 * mib + gib).steps.at(0).new_dimms), (list{4, 2, 1, 1}));
}

TEST(memory_plan, after_a_split_growth_every_smaller_size_can_be_reached) {
  for (std::uint64_t n = 1; n <= 200; ++n) {
    auto pieces = split_growth(n, n, 256, 256);
    EXPECT_EQ(std::accumulate(pieces.begin(), pieces.end(), std::uint64_t{0}), n);
    std::vector<dimm> dimms;
    for (auto p : pieces)
      dimms.push_back({"d", p});
    for (std::uint64_t want = 0; want <= n; ++want) {
      std::uint64_t sum = 0;
      for (auto i : choose_leaving(dimms, want))
        sum += dimms[i].size_bytes;
      EXPECT_EQ(sum, want) << "of " << n;
    }
  }
}

TEST(memory_plan, a_step_leaves_room_for_its_memory_map) {
  EXPECT_EQ(step_limit_bytes(gib, 32 * mib), 0u);
  EXPECT_EQ(step_limit_bytes(gib, 40 * mib), 512 * mib);
  EXPECT_EQ(step_limit_bytes(100 * mib, 99 * mib), 67 * 64 * mib);
  EXPECT_EQ(step_limit_bytes(100 * mib, 3 * gib), 4800 * mib) << "48 x MemTotal";
  EXPECT_EQ(step_limit_bytes(UINT64_MAX, UINT64_MAX), UINT64_MAX);
  auto s = virtio_vm();
  s.guest_available_bytes = 40 * mib;
  auto p = planned(s, 8 * gib);
  ASSERT_EQ(p.steps.size(), 2u);
  EXPECT_EQ(p.steps[0].bytes, 512 * mib);
  EXPECT_EQ(p.reached_bytes, 8 * gib);
  s.guest_available_bytes = 32 * mib;
  auto r = make_plan(s, 8 * gib);
  ASSERT_TRUE(std::holds_alternative<refusal>(r));
  EXPECT_NE(std::get<refusal>(r).text.find("32 MiB available"), std::string::npos) << std::get<refusal>(r).text;
}

TEST(memory_plan, a_shrink_leaves_the_guest_what_it_uses) {
  EXPECT_EQ(shrink_limit_bytes(512 * mib, 32 * mib), 0u);
  EXPECT_EQ(shrink_limit_bytes(512 * mib, 32 * mib + 63 * mib), 64 * mib) << "with the memory map that comes back";
  EXPECT_EQ(shrink_limit_bytes(80 * mib, 10 * mib + 63 * mib), 64 * mib) << "a small guest has a small reserve";
  auto s = virtio_vm(gib);
  s.guest_available_bytes = 32 * mib + 63 * mib;
  auto p = planned(s, 512 * mib);
  EXPECT_EQ(p.reached_bytes, 512 * mib + gib - 64 * mib);
  ASSERT_EQ(p.notes.size(), 1u);
  EXPECT_NE(p.notes[0].find("95 MiB available"), std::string::npos) << p.notes[0];
  auto d = dimm_vm({1, 4});
  d.guest_available_bytes = 300 * mib;
  EXPECT_EQ(planned(d, 512 * mib).steps.at(0).leaving_dimms, (std::vector<std::string>{"d0"}));
  d.guest_available_bytes = 100 * mib;
  EXPECT_TRUE(planned(d, 512 * mib).steps.empty());
}

TEST(memory_plan, targets_are_rounded_up_and_down_only_where_up_is_above_the_maximum) {
  auto s = dimm_vm();
  s.max_bytes = 512 * mib + 3 * block + 5 * mib;
  auto up = std::get<settled_target>(settle_target(s, 512 * mib + block + 1));
  EXPECT_EQ(up.used_bytes, 512 * mib + 2 * block);
  EXPECT_EQ(up.notes.size(), 1u);
  auto down = std::get<settled_target>(settle_target(s, 512 * mib + 3 * block + 1 * mib));
  EXPECT_EQ(down.used_bytes, 512 * mib + 3 * block);
  ASSERT_EQ(down.notes.size(), 1u);
  EXPECT_NE(down.notes[0].find("down"), std::string::npos);
  EXPECT_TRUE(std::get<settled_target>(settle_target(s, 512 * mib + block)).notes.empty());
  EXPECT_EQ(std::get<settled_target>(settle_target(s, 512 * mib)).used_bytes, 512 * mib);
}

TEST(memory_plan, slots_that_run_out_are_said) {
  auto s = dimm_vm({1, 1}, 2);
  auto r = make_plan(s, 2 * gib);
  ASSERT_TRUE(std::holds_alternative<refusal>(r));
  EXPECT_EQ(std::get<refusal>(r).code, ec::conflict);
  s = dimm_vm({1}, 2);
  s.guest_available_bytes = 40 * mib; // one slot, and a step of at most 512 MiB
  auto p = planned(s, 4 * gib);
  EXPECT_EQ(p.reached_bytes, 512 * mib + block + 512 * mib);
  ASSERT_FALSE(p.notes.empty());
  EXPECT_NE(p.notes.back().find("no slot is left"), std::string::npos);
}

TEST(memory_plan, a_shrink_takes_the_set_that_comes_closest_from_above) {
  auto p = planned(dimm_vm({4, 2, 1, 1}), 512 * mib + 3 * block);
  ASSERT_EQ(p.steps.size(), 1u);
  EXPECT_EQ(p.reached_bytes, 512 * mib + 3 * block);
  EXPECT_EQ(planned(dimm_vm({8}), 512 * mib + 3 * block).steps.size(), 0u);
  auto partly = planned(dimm_vm({4, 3}), 512 * mib + 2 * block); // 5 to leave: 4 can
  EXPECT_EQ(partly.reached_bytes, 512 * mib + 3 * block);
  EXPECT_EQ(partly.steps.at(0).leaving_dimms, (std::vector<std::string>{"d0"}));
  auto s = dimm_vm({2, 2, 1, 1});
  s.stubborn = {"d1"};
  EXPECT_EQ(planned(s, 512 * mib + 4 * block).steps.at(0).leaving_dimms, (std::vector<std::string>{"d0"}));
}

TEST(memory_plan, a_vmm_that_cannot_unplug_says_so) {
  auto s = dimm_vm({4});
  s.can_shrink = false;
  s.why_no_shrink = "no way back here";
  auto r = make_plan(s, 512 * mib);
  EXPECT_NE(std::get<refusal>(r).text.find("no way back here"), std::string::npos);
}

int runs() {
  const char* more = std::getenv("CAISSON_PROPERTY_RUNS");
  return more ? std::atoi(more) : 5'000;
}

/// Grows and shrinks as plans say, against a model that knows only sums.
TEST(memory_plan, random_sequences_keep_the_model) {
  rc::detail::TestParams params;
  params.maxSuccess = runs();
  params.seed = 20'240'607;
  rc::detail::TestMetadata meta;
  meta.id = meta.description = "plan sequences";
  auto property = [] {
    situation s;
    s.how = *rc::gen::arbitrary<bool>() ? method::dimm : method::virtio_mem;
    s.granule_bytes = s.how == method::dimm ? block : 2 * mib;
    s.boot_bytes = *rc::gen::inRange<std::uint64_t>(64, 2048) * mib;
    s.max_bytes = s.boot_bytes + *rc::gen::inRange<std::uint64_t>(0, 64 * 1024) * mib;
    s.slots_total = *rc::gen::inRange<std::uint32_t>(1, 33);
    const auto kernel = s.boot_bytes / 8;
    s.guest_total_bytes = s.boot_bytes - kernel;
    s.guest_boot_total_bytes = s.guest_total_bytes;
    const auto used = *rc::gen::inRange<std::uint64_t>(0, s.guest_total_bytes / mib) * mib;
    int made = 0;
    const auto rounds = *rc::gen::inRange(1, 6);
    for (int i = 0; i < rounds; ++i) {
      const auto asked = *rc::gen::inRange<std::uint64_t>(s.boot_bytes / mib / 2, s.max_bytes / mib + 64) * mib +
                         *rc::gen::element<std::uint64_t>(0, 0, 4096, mib);
      s.guest_available_bytes = s.guest_total_bytes - used;
      const auto before = s.plugged_bytes;
      auto r = make_plan(s, asked);
      if (auto* no = std::get_if<refusal>(&r)) {
        RC_ASSERT(!no->text.empty());
        if (no->code == ec::out_of_range)
          RC_ASSERT(asked < s.boot_bytes || asked > s.max_bytes);
        continue;
      }
      const auto& p = std::get<plan>(r);
      const auto target = p.target.used_bytes;
      RC_ASSERT(target >= s.boot_bytes && target <= s.max_bytes);
      RC_ASSERT((target - s.boot_bytes) % s.granule_bytes == 0);
      RC_ASSERT(target >= asked || target + s.granule_bytes > s.max_bytes);
      RC_ASSERT((target == asked) == p.target.notes.empty());
      for (const auto& st : p.steps) {
        if (st.grow) {
          RC_ASSERT(st.bytes <= step_limit_bytes(s.guest_total_bytes, s.guest_available_bytes));
          s.plugged_bytes += st.bytes;
          s.guest_total_bytes += st.bytes;
          s.guest_available_bytes += st.bytes - st.bytes / map_ratio;
          std::uint64_t sum = 0;
          for (auto size : st.new_dimms) {
            RC_ASSERT(size > 0 && size % block == 0);
            s.dimms.push_back({"m" + std::to_string(made++), size});
            sum += size;
          }
          RC_ASSERT(s.how == method::virtio_mem || sum == st.bytes);
        } else {
          RC_ASSERT(st.bytes <= shrink_limit_bytes(s.guest_boot_total_bytes, s.guest_available_bytes));
          s.plugged_bytes -= st.bytes;
          s.guest_total_bytes -= st.bytes;
          std::uint64_t sum = 0;
          for (const auto& id : st.leaving_dimms) {
            auto at = std::find_if(s.dimms.begin(), s.dimms.end(), [&](const dimm& d) { return d.id == id; });
            RC_ASSERT(at != s.dimms.end());
            sum += at->size_bytes;
            s.dimms.erase(at);
          }
          RC_ASSERT(s.how == method::virtio_mem || sum == st.bytes);
        }
        RC_ASSERT(st.bytes > 0);
        RC_ASSERT(st.plugged_after_bytes == s.plugged_bytes);
        RC_ASSERT(s.how == method::virtio_mem || s.dimms.size() <= s.slots_total);
      }
      const auto has = s.boot_bytes + s.plugged_bytes;
      RC_ASSERT(has == p.reached_bytes && has <= s.max_bytes);
      if (target >= s.boot_bytes + before)
        RC_ASSERT(has <= target && s.plugged_bytes >= before);
      else
        RC_ASSERT(has >= target && s.plugged_bytes <= before);
      if (s.how == method::virtio_mem && target < s.boot_bytes + before)
        RC_ASSERT(has == target ||
                  has - target + s.granule_bytes >
                      s.boot_bytes + before - target -
                          std::min(s.boot_bytes + before - target,
                                   shrink_limit_bytes(s.guest_boot_total_bytes, s.guest_available_bytes)));
      if (has != target)
        RC_ASSERT(p.notes.size() > p.target.notes.size()); // it says why
    }
  };
  const auto result = rc::detail::checkTestable(property, meta, params);
  std::ostringstream said;
  rc::detail::printResultMessage(result, said);
  EXPECT_TRUE(result.template is<rc::detail::SuccessResult>()) << said.str();
  EXPECT_EQ(result.template get<rc::detail::SuccessResult>().numSuccess, runs());
}

/// The subset sum against trying every subset.
TEST(memory_plan, the_dimms_that_leave_are_the_best_set) {
  std::uint64_t state = 88172645463325252ull;
  auto random = [&state] {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
  };
  for (int round = 0; round < 500; ++round) {
    std::vector<dimm> dimms(random() % 11);
    for (auto& d : dimms)
      d.size_bytes = (1 + random() % 9) * block;
    const auto limit = random() % 40 * block;
    std::uint64_t best = 0;
    std::size_t fewest = 0;
    for (std::uint64_t set = 0; set < (1u << dimms.size()); ++set) {
      std::uint64_t sum = 0;
      std::size_t n = 0;
      for (std::size_t i = 0; i < dimms.size(); ++i)
        if (set >> i & 1) {
          sum += dimms[i].size_bytes;
          ++n;
        }
      if (sum <= limit && (sum > best || (sum == best && n < fewest))) {
        best = sum;
        fewest = n;
      }
    }
    const auto chosen = choose_leaving(dimms, limit);
    std::uint64_t sum = 0;
    for (auto i : chosen)
      sum += dimms[i].size_bytes;
    EXPECT_EQ(sum, best);
    EXPECT_EQ(chosen.size(), fewest);
  }
}

TEST(memory_plan, two_hundred_and_fifty_six_dimms_and_absurd_sizes_are_bounded_work) {
  std::vector<dimm> dimms(256);
  for (std::size_t i = 0; i < dimms.size(); ++i)
    dimms[i].size_bytes = (1 + i % 7) * block;
  std::uint64_t sum = 0;
  for (auto i : choose_leaving(dimms, 777 * block))
    sum += dimms[i].size_bytes;
  EXPECT_EQ(sum, 777 * block);
  for (auto& d : dimms)
    d.size_bytes = (std::uint64_t{1} << 40) + mib * static_cast<std::uint64_t>(&d - dimms.data());
  EXPECT_FALSE(choose_leaving(dimms, std::uint64_t{1} << 47).empty());
}

} // namespace
} // namespace caisson::memory_hotplug
