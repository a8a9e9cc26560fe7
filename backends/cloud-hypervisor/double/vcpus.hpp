#pragma once

#include <cstdint>

#include "backends/cloud-hypervisor/double/failure.hpp"

namespace caisson::cloud_hypervisor::api_double {

/// The vCPUs of one booted VM as the VMM keeps them.
class vcpu_ledger {
public:
  vcpu_ledger() = default;
  vcpu_ledger(std::uint32_t boot, std::uint32_t max, bool hotplug) : present_{boot}, max_{max}, hotplug_{hotplug} {}

  enum class change { none, grown, removing };

  /// vm.resize desired_vcpus; what the guest has to hear of is `did`.
  outcome resize(std::uint32_t desired, change& did) {
    did = change::none;
    if (desired == present_)
      return {};
    if (desired == 0)
      return fail({"Error from CPU manager", "Requested zero vCPUs"});
    if (pending_)
      return fail({"Error from CPU manager", "Still pending removed vCPU"}, failure::cause::vcpu_pending);
    if (desired > max_)
      return fail({"Error from CPU manager", "Requested vCPUs exceed maximum"});
    if (desired < present_) {
      pending_ = true;
      target_ = desired;
      did = change::removing;
      return {};
    }
    if (!hotplug_)
      return fail({"Error from CPU manager", "Error creating vCPU", "Device or resource busy (os error 16)"});
    present_ = desired;
    did = change::grown;
    return {};
  }

  /// The guest has given them back.
  void ejected() {
    present_ = target_;
    pending_ = false;
  }

  [[nodiscard]] std::uint32_t present() const noexcept { return present_; }
  [[nodiscard]] std::uint32_t target() const noexcept { return pending_ ? target_ : present_; }
  [[nodiscard]] bool pending() const noexcept { return pending_; }

private:
  std::uint32_t present_ = 1, max_ = 1, target_ = 1;
  bool hotplug_ = true, pending_ = false;
};

} // namespace caisson::cloud_hypervisor::api_double
