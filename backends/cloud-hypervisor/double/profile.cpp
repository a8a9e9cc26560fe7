#include "backends/cloud-hypervisor/double/profile.hpp"

namespace caisson::cloud_hypervisor::api_double {

std::optional<profile> parse_profile(std::string_view text) {
  if (text == "v51.1")
    return profile::v51_1;
  if (text == "v53.0")
    return profile::v53_0;
  if (text == "head")
    return profile::head;
  return std::nullopt;
}

std::string name_of(profile p) {
  switch (p) {
  case profile::v51_1:
    return "v51.1";
  case profile::v53_0:
    return "v53.0";
  case profile::head:
    break;
  }
  return "v54.0";
}

std::string version_of(profile p) {
  return name_of(p).substr(1) + ".0";
}

std::size_t body_limit_bytes(profile p) {
  return p == profile::head ? std::size_t{4} << 20 : 51'200;
}

} // namespace caisson::cloud_hypervisor::api_double
