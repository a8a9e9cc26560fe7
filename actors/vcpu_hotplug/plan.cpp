#include "actors/vcpu_hotplug/plan.hpp"

#include <fmt/format.h>

namespace caisson::vcpu_hotplug {

std::string vcpus(std::uint32_t n) {
  return fmt::format("{} vCPU{}", n, n == 1 ? "" : "s");
}

std::variant<plan, refusal> make_plan(const situation& s, std::uint32_t target) {
  if (target == 0)
    return refusal{ec::invalid_argument, "a target of 0 vCPUs: a guest needs at least 1"};
  if (target > s.max)
    return refusal{ec::out_of_range,
                   fmt::format("a target of {} vCPUs: the sandbox may have at most {}. Ask for less, or start "
                               "it again with a larger default_maxvcpus",
                               target, s.max)};
  plan p;
  p.target = target;
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
  return p;
}

} // namespace caisson::vcpu_hotplug
