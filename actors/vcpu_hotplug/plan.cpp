#include "actors/vcpu_hotplug/plan.hpp"

#include <fmt/format.h>

namespace caisson::vcpu_hotplug {

std::string vcpus(std::uint32_t n) {
  return fmt::format("{} vCPU{}", n, n == 1 ? "" : "s");
}

std::string milli_vcpus(std::uint32_t milli) {
  if (milli % 1000 == 0)
    return vcpus(milli / 1000);
  auto text = fmt::format("{}.{:03}", milli / 1000, milli % 1000);
  text.erase(text.find_last_not_of('0') + 1);
  return text + " vCPUs";
}

std::variant<plan, refusal> make_plan(const situation& s, std::uint32_t target, std::uint32_t quota_milli) {
  if (target == 0)
    return refusal{ec::invalid_argument, "a target of 0 vCPUs: a guest needs at least 1"};
  if (target > s.max)
    return refusal{ec::out_of_range,
                   fmt::format("a target of {} vCPUs: the sandbox may have at most {}{}. Ask for less, or start "
                               "it again with a larger {}",
                               target, s.max, s.can_plug ? "" : ", and this VMM cannot plug more",
                               s.can_plug ? "default_maxvcpus" : "default_vcpus")};
  plan p;
  p.target = target;
  p.quota_milli = quota_milli;
  if (quota_milli > 0 && !s.guest_quota)
    return refusal{ec::unsupported,
                   fmt::format("a target of {}: a part of a vCPU is a quota of the guest's workload, and this guest has "
                               "no cgroup for it (its kernel lacks CONFIG_MEMCG or CONFIG_CFS_BANDWIDTH, or its agent "
                               "is older). Ask for {}, or use a guest that has it",
                               milli_vcpus(quota_milli), vcpus(target))};
  const bool tightens = quota_milli > 0 && (s.quota_milli == 0 || quota_milli < s.quota_milli);
  const bool loosens = quota_milli != s.quota_milli && !tightens && s.guest_quota;
  if (tightens)
    p.steps.push_back({action::set_quota, quota_milli,
                       fmt::format("hold the workload to a quota of {}", milli_vcpus(quota_milli))});
  if (target > s.plugged && !s.can_plug)
    return refusal{ec::unsupported,
                   fmt::format("a target of {} vCPUs: {} are plugged and this VMM cannot plug more; start the "
                               "sandbox with a larger default_vcpus",
                               target, s.plugged)};
  if (target != s.online && !s.guest_can)
    return refusal{ec::unsupported,
                   "the guest's kernel cannot take vCPUs online or offline: it lacks CONFIG_HOTPLUG_CPU. Use "
                   "a guest kernel that has it, or start the sandbox with the default_vcpus that are wanted"};
  if (target > s.online) {
    if (target > s.plugged) {
      if (s.plugged > s.online)
        p.steps.push_back(
            {action::set_online, s.plugged, fmt::format("bring online the {} that are plugged", s.plugged)});
      p.steps.push_back({action::plug, target, fmt::format("plug {} to have {}", target - s.plugged, target)});
    }
    p.steps.push_back({action::set_online, target, fmt::format("bring {} online in the guest", target)});
    if (s.guest_possible > 0 && target > s.guest_possible)
      p.notes.push_back(
          fmt::format("the guest's kernel says that it has room for {} processors only", s.guest_possible));
  } else {
    if (target < s.online)
      p.steps.push_back({action::set_online, target, fmt::format("take {} offline in the guest", s.online - target)});
    if (s.plugged > target) {
      if (s.can_unplug)
        p.steps.push_back({action::unplug, target, fmt::format("unplug {}", s.plugged - target)});
      else
        p.notes.push_back(fmt::format("{} still plugged and offline, to be used again at the next growth: {}",
                                      vcpus(s.plugged - target),
                                      s.why_no_unplug.empty() ? "this VMM cannot unplug them" : s.why_no_unplug));
    }
  }
  if (loosens)
    p.steps.push_back({action::set_quota, quota_milli,
                       quota_milli == 0 ? "take the workload's quota away"
                                        : fmt::format("raise the workload's quota to {}", milli_vcpus(quota_milli))});
  return p;
}

} // namespace caisson::vcpu_hotplug
