#pragma once

/// From the vCPUs that a VM has and its guest runs to those that are wanted. Pure.
///
/// Two figures: `plugged` (the VMM's word) and `online` (the guest's claim, and what a workload feels). Up: those that
/// are plugged and offline are brought online first, then new ones are plugged, then brought online. Down: offline in
/// the guest, then unplugged where the VMM can; where it cannot they stay plugged and are used again at the next
/// growth.
///
/// A part of a vCPU is a quota of the workload in the guest (thousandths) beside whole vCPUs. A quota that holds the
/// workload to less than it may now comes before everything else, one that gives it more comes last: at no moment it
/// may use more than the larger of what it had and what was asked.

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "messages/error.hpp"

namespace caisson::vcpu_hotplug {

struct situation {
  std::uint32_t online = 0;
  std::uint32_t plugged = 0;
  std::uint32_t max = 0;
  std::uint32_t guest_possible = 0; ///< the guest's claim; 0: unknown
  bool can_plug = true;
  bool can_unplug = true;
  std::string why_no_unplug;
  bool guest_can = true; ///< CONFIG_HOTPLUG_CPU
  std::uint32_t quota_milli = 0; ///< of the workload, the guest's claim; 0: none
  bool guest_quota = true;       ///< it has a cgroup to limit
};

struct refusal {
  ec code = ec::internal;
  std::string text;
};

enum class action : std::uint8_t {
  set_online, ///< the guest: until exactly `count` run
  plug,       ///< the VMM: until it has `count`
  unplug,     ///< the VMM: down to `count`; what cannot leave stays, which is no failure
  set_quota   ///< the guest: the workload's quota is `count` thousandths; 0: none
};

struct step {
  action what = action::set_online;
  std::uint32_t count = 0;
  std::string text;
};

struct plan {
  std::uint32_t target = 0;
  std::uint32_t quota_milli = 0;
  std::vector<step> steps;
  std::vector<std::string> notes;
};

/// "1 vCPU", "2 vCPUs".
std::string vcpus(std::uint32_t n);

/// "1.5 vCPUs" for 1500.
std::string milli_vcpus(std::uint32_t milli);

/// The quota that makes `milli` of whole vCPUs; 0 where it is whole.
inline std::uint32_t quota_of(std::uint32_t milli) { return milli % 1000 == 0 ? 0 : milli; }

/// 0 and more than the maximum are refused; so is a change that VMM or guest cannot make at all. `quota_milli` 0: none.
std::variant<plan, refusal> make_plan(const situation& s, std::uint32_t target, std::uint32_t quota_milli = 0);

} // namespace caisson::vcpu_hotplug
