#pragma once

#include "guest/agent/unique_fd.hpp"
#include "messages/agent.pb.h"

#include <sys/types.h>

#include <string>

namespace caisson::agent {

/// A process that was started and the agent's ends of its standard streams (non-blocking). With a terminal `in` and
/// `out` are the same terminal and `err` is empty.
struct spawned {
  pid_t pid = -1;
  unique_fd in, out, err;
  int error_number = 0; // pid -1: why
  std::string what;     // pid -1: what failed
};

/// Starts argv in its own session. A program that is not there ends with 127, one that cannot be executed with 126,
/// each with a line on its standard error. It runs in the control group of this directory from its first moment on; ""
/// leaves it in the agent's.
spawned spawn(const v1::ExecStart& request, const std::string& cgroup);

/// Signals as a fresh process has them: to be called in a child before it executes anything.
void reset_signals();

} // namespace caisson::agent
