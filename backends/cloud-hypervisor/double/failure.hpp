#pragma once

#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backends/cloud-hypervisor/double/profile.hpp"

namespace caisson::cloud_hypervisor::api_double {

/// Why a call is refused: the chain of texts as the API shows it, from the second element on (the first names the
/// endpoint), and what the status code is chosen from.
struct failure {
  enum class cause {
    other,
    not_created,    ///< no VM, no configuration
    unknown_device, ///< no device of that identifier
    validation,     ///< the configuration breaks a rule
    not_unique,     ///< an identifier or a device path is there twice
    vcpu_pending,   ///< the guest has not given back the vCPUs of an earlier request
  };
  std::vector<std::string> chain;
  cause why = cause::other;
};

using outcome = std::optional<failure>; ///< nothing: it was done

inline failure fail(std::vector<std::string> chain, failure::cause why = failure::cause::other) {
  return {std::move(chain), why};
}

/// The text of an errno as the API writes it: "No such file or directory (os error 2)".
inline std::string os_error(int number) {
  return std::string{std::strerror(number)} + " (os error " + std::to_string(number) + ")";
}

/// How a device is named that is not there; releases before v52 did not say which.
inline std::string no_such_device(const std::string& id, profile p) {
  const std::string text = "Failed to find device corresponding to the given identifier";
  return p == profile::v51_1 ? text : text + ": " + id;
}

} // namespace caisson::cloud_hypervisor::api_double
