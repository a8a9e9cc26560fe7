#include "actors/memory_hotplug/ledger.hpp"
#include "actors/memory_hotplug/outcome.hpp"

#include <gtest/gtest.h>

namespace caisson::memory_hotplug {
namespace {

constexpr std::uint64_t mib = std::uint64_t{1} << 20;

ledger opened() {
  ledger l;
  l.open(512 * mib, 4096 * mib, 450 * mib, 0, 0);
  l.vmm_says(0, 0, {});
  l.guest_says(450 * mib, 400 * mib, 0);
  return l;
}

TEST(memory_ledger, guest_bytes_are_the_boot_size_and_what_the_guest_has_gained) {
  auto l = opened();
  EXPECT_EQ(l.guest_bytes(), 512 * mib);
  EXPECT_EQ(l.target_bytes(), 512 * mib);
  EXPECT_TRUE(l.guest_agrees());
  l.vmm_says(256 * mib, 256 * mib, {});
  EXPECT_EQ(l.has_bytes(), 768 * mib);
  EXPECT_FALSE(l.guest_agrees());
  l.guest_says(706 * mib, 600 * mib, 0);
  EXPECT_EQ(l.guest_bytes(), 768 * mib);
  EXPECT_TRUE(l.guest_agrees());
}

TEST(memory_ledger, absurd_claims_of_a_guest_wrap_nothing) {
  auto l = opened();
  l.guest_says(UINT64_MAX, UINT64_MAX, UINT32_MAX);
  EXPECT_GT(l.guest_bytes(), l.has_bytes());
  EXPECT_FALSE(l.guest_agrees());
  l.guest_says(1, UINT64_MAX, 0);
  EXPECT_EQ(l.guest_bytes(), 62 * mib + 1);
  EXPECT_LE(l.guest_available_bytes(), 1u);
}

TEST(memory_ledger, generations_rise_with_accepted_targets_only) {
  auto l = opened();
  l.accept(1024 * mib);
  l.accept(2048 * mib);
  EXPECT_EQ(l.generation(), 2u);
  l.take_back(1024 * mib);
  EXPECT_EQ(l.generation(), 2u);
  EXPECT_EQ(l.target_bytes(), 1024 * mib);
}

TEST(memory_ledger, it_says_where_the_vmm_contradicts_it) {
  auto l = opened();
  EXPECT_EQ(l.inconsistency(), "");
  l.vmm_says(8192 * mib, 0, {});
  EXPECT_NE(l.inconsistency().find("above the maximum"), std::string::npos);
  l.vmm_says(128 * mib, 0, {{"a", 256 * mib}});
  EXPECT_NE(l.inconsistency().find("lists DIMMs"), std::string::npos);
}

TEST(memory_outcome, only_agreement_of_vmm_and_guest_is_converged) {
  auto l = opened();
  ending e;
  e.target_bytes = 768 * mib;
  EXPECT_EQ(judge(l, e).state, v1::OPERATION_STATE_FAILED) << "nothing has moved";
  l.vmm_says(256 * mib, 256 * mib, {});
  EXPECT_EQ(judge(l, e).state, v1::OPERATION_STATE_PARTLY);
  l.guest_says(706 * mib, 600 * mib, 0);
  EXPECT_EQ(judge(l, e).state, v1::OPERATION_STATE_CONVERGED);
  e.stop_why = "cancelled by hand";
  EXPECT_EQ(judge(l, e).state, v1::OPERATION_STATE_CONVERGED) << "it had arrived before it stopped";
  l.vmm_says(128 * mib, 256 * mib, {});
  EXPECT_EQ(judge(l, e).state, v1::OPERATION_STATE_CANCELLED);
  e.ended = "the VM is gone";
  auto v = judge(l, e);
  EXPECT_EQ(v.state, v1::OPERATION_STATE_FAILED);
  ASSERT_TRUE(v.error);
  EXPECT_EQ(v.error->code, ec::vmm_died);
  EXPECT_NE(v.why.find("640 MiB"), std::string::npos) << v.why;
}

} // namespace
} // namespace caisson::memory_hotplug
