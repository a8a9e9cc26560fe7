#pragma once

#include "frontends/cli/command_line.hpp"

namespace caisson::cli {

/// Starts caissond for these directories and waits until it takes commands (or says why it cannot). Of two starters at
/// once one engine stays.
void start_engine(const engine::directories& d, bool json);

} // namespace caisson::cli
