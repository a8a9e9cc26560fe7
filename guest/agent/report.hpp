#pragma once

#include <string_view>

/// What the agent says on the guest's console: little, one line each.
namespace caisson::agent {

/// In a virtual machine fatal() powers off; an agent that runs as an ordinary process exits with 1.
void set_is_init(bool is_init);
bool is_init();

/// One line on the console. `error_number` 0: none.
void report(std::string_view text, int error_number = 0);

/// One line on the console, then the machine is switched off: without its agent it is of no use to anybody.
[[noreturn]] void fatal(std::string_view text, int error_number = 0);

/// Syncs and switches the machine off (an ordinary process exits with 0).
[[noreturn]] void power_off();

} // namespace caisson::agent
