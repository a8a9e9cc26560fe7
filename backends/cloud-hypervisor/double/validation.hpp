#pragma once

#include <set>
#include <string>

#include "backends/cloud-hypervisor/double/failure.hpp"
#include "backends/cloud-hypervisor/double/json_reader.hpp"
#include "backends/cloud-hypervisor/double/profile.hpp"

namespace caisson::cloud_hypervisor::api_double {

/// The rules that vm.boot and the hot-adds hold a whole configuration against, in the VMM's order. On success `ids`
/// holds every identifier that the configuration gives.
[[nodiscard]] outcome validate(const json& config, profile p, std::set<std::string>& ids);

} // namespace caisson::cloud_hypervisor::api_double
