#pragma once

#include "backends/simulated/world.hpp"

namespace caisson::backends::simulated {

/// One machine of a world, with its guest and what is connected to it.
struct world::vm {
  std::string id;
  std::size_t spec_hash = 0;
  std::string architecture;
  v1::VmState state = v1::VM_STATE_RUNNING;
  std::string stop_reason;
  boot_fate boots = boot_fate::normal;
  std::shared_ptr<model_machine> machine;
  std::unique_ptr<model_guest> guest; // while its agent answers
  std::string console;
  connection_id agent_connection = 0, console_connection = 0;
};

/// What the spec names, in its order; `problem` where an id is no id or stands there twice.
std::vector<machine_device> devices_of(const v1::VmSpec& spec, std::string& problem);

} // namespace caisson::backends::simulated
