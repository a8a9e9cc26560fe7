#pragma once

#include <string>

#include "frontends/cli/command_line.hpp"

namespace caisson::cli {

struct session_options {
  bool stdin_attached = false;
  bool terminal = false;
  bool owns_sandbox = false; ///< the request makes it; it is gone when this returns
};

/// Runs one process over an Exec stream with this program's stdin, stdout, stderr, terminal and signals. Gives the exit
/// status: the process's own, or 128+n where signal n ended this session. SIGINT, SIGTERM and SIGQUIT are passed on;
/// one that has not ended the process within 10 s, a second one, and SIGHUP hang up. Throws failed.
int run_session(const command_context& context, v1::ExecRequest request, const session_options& options);

} // namespace caisson::cli
