#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace caisson::bench {

/// Memory confirmed by a guest that runs: the whole engine over Cloud Hypervisor against the raw REST API and the same
/// agent. A row for each step of `dimm` (ACPI, up only: the VMM lets no such memory go) or virtio-mem, both ways.
/// Throws what went wrong as a std::runtime_error.
nlohmann::json guest_confirmed(bool dimm, int pairs, const std::string& vmm, const std::string& guest_directory);

} // namespace caisson::bench
