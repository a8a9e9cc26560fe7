#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backends/cloud-hypervisor/double/knobs.hpp"
#include "backends/cloud-hypervisor/double/profile.hpp"

namespace caisson::cloud_hypervisor::api_double {

/// What the program was asked for: Cloud Hypervisor's options as far as a client of the API gives them, and the
/// double's own --profile and --fault.
struct command_line {
  std::string api_socket_path;
  int api_socket_fd = -1;
  std::string event_monitor_path;
  int event_monitor_fd = -1;
  std::string log_file;
  std::uint32_t verbosity = 0;
  bool no_shutdown = false, version = false, help = false;
  profile as = profile::v53_0;
  knobs faults;

  std::string problem; ///< the arguments cannot be used: exit 2
  std::string failure; ///< an argument's value cannot be used: exit 1, as the first of the chain
};

/// Arguments win over the environment's CAISSON_CH_PROFILE and CAISSON_CH_FAULTS; faults add up.
[[nodiscard]] command_line read_command_line(const std::vector<std::string>& arguments);
[[nodiscard]] std::string help_text();

} // namespace caisson::cloud_hypervisor::api_double
