#pragma once

/// The registry line "cloud-hypervisor": one actor a sandbox over one driver (driver.hpp) on the engine's reactor.

#include <memory>

#include "backends/backend.hpp"
#include "backends/cloud-hypervisor/driver.hpp"

namespace caisson::cloud_hypervisor {

std::unique_ptr<backends::provider> make_provider(const backends::environment& e);
/// `directory`, `log` and, where it is empty, the host's architecture are filled in.
std::unique_ptr<backends::provider> make_provider(const backends::environment& e, driver_settings settings);

} // namespace caisson::cloud_hypervisor
