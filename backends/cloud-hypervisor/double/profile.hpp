#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace caisson::cloud_hypervisor::api_double {

/// Which release of Cloud Hypervisor the double answers like; later releases compare greater.
enum class profile { v51_1, v53_0, head };

/// "v51.1", "v53.0" or "head".
[[nodiscard]] std::optional<profile> parse_profile(std::string_view text);
[[nodiscard]] std::string name_of(profile p);

/// `version` of vmm.ping: "53.0.0".
[[nodiscard]] std::string version_of(profile p);

/// The largest body that a request may announce, in bytes.
[[nodiscard]] std::size_t body_limit_bytes(profile p);

} // namespace caisson::cloud_hypervisor::api_double
