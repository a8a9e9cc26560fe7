#include "actors/vcpu_hotplug/plan.hpp"

#include <gtest/gtest.h>

namespace caisson::vcpu_hotplug {
namespace {

TEST(vcpu_plan, every_case_in_a_table) {
  struct {
    std::uint32_t online, plugged, target;
    bool can_unplug;
    std::vector<std::pair<action, std::uint32_t>> steps;
    std::size_t notes;
  } cases[] = {
      {1, 1, 1, true, {}, 0},
      {1, 1, 3, true, {{action::plug, 3}, {action::set_online, 3}}, 0},
      {1, 3, 2, true, {{action::set_online, 2}}, 0},
      {1, 2, 4, true, {{action::set_online, 2}, {action::plug, 4}, {action::set_online, 4}}, 0},
      {4, 4, 2, true, {{action::set_online, 2}, {action::unplug, 2}}, 0},
      {4, 4, 2, false, {{action::set_online, 2}}, 1},
      {2, 4, 2, true, {{action::unplug, 2}}, 0},
  };
  for (auto& c : cases) {
    situation s;
    s.online = c.online;
    s.plugged = c.plugged;
    s.max = 4;
    s.can_unplug = c.can_unplug;
    auto r = make_plan(s, c.target);
    auto* p = std::get_if<plan>(&r);
    ASSERT_TRUE(p);
    std::vector<std::pair<action, std::uint32_t>> got;
    for (auto& st : p->steps)
      got.emplace_back(st.what, st.count);
    EXPECT_EQ(got, c.steps) << c.online << "/" << c.plugged << " -> " << c.target;
    EXPECT_EQ(p->notes.size(), c.notes);
  }
}

TEST(vcpu_plan, more_than_the_maximum_is_refused_with_the_key_that_helps) {
  situation s;
  s.online = s.plugged = s.max = 1;
  auto text = std::get<refusal>(make_plan(s, 2)).text;
  EXPECT_NE(text.find("larger default_maxvcpus"), text.npos) << text;
  s.can_plug = false;
  text = std::get<refusal>(make_plan(s, 2)).text;
  EXPECT_NE(text.find("larger default_vcpus"), text.npos) << text;
}

TEST(vcpu_plan, a_quota_that_tightens_comes_first_and_one_that_loosens_last) {
  struct {
    std::uint32_t online, quota, target, wanted;
    std::vector<std::pair<action, std::uint32_t>> steps;
  } cases[] = {
      {2, 1500, 2, 1500, {}},
      {2, 0, 2, 1500, {{action::set_quota, 1500}}},
      {2, 1500, 2, 0, {{action::set_quota, 0}}},
      {2, 1500, 3, 2500, {{action::plug, 3}, {action::set_online, 3}, {action::set_quota, 2500}}},
      {3, 2500, 2, 1500, {{action::set_quota, 1500}, {action::set_online, 2}, {action::unplug, 2}}},
      {3, 2500, 2, 0, {{action::set_online, 2}, {action::unplug, 2}, {action::set_quota, 0}}},
  };
  for (auto& c : cases) {
    situation s;
    s.online = s.plugged = c.online;
    s.quota_milli = c.quota;
    s.max = 4;
    auto r = make_plan(s, c.target, c.wanted);
    auto* p = std::get_if<plan>(&r);
    ASSERT_TRUE(p);
    std::vector<std::pair<action, std::uint32_t>> got;
    for (auto& st : p->steps)
      got.emplace_back(st.what, st.count);
    EXPECT_EQ(got, c.steps) << c.quota << " -> " << c.wanted;
  }
  EXPECT_EQ(milli_vcpus(1500), "1.5 vCPUs");
  EXPECT_EQ(milli_vcpus(250), "0.25 vCPUs");
  EXPECT_EQ(milli_vcpus(1000), "1 vCPU");
}

} // namespace
} // namespace caisson::vcpu_hotplug
