#include "guest/agent/report.hpp"

#include <sys/reboot.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>

namespace caisson::agent {

namespace {
bool init = false;
}

void set_is_init(bool is_init) { init = is_init; }

bool is_init() { return init; }

void report(std::string_view text, int error_number) {
  std::string line = "caisson-agent: ";
  line += text;
  if (error_number != 0) {
    line += ": ";
    line += strerror(error_number);
  }
  line += '\n';
  [[maybe_unused]] const auto n = ::write(STDERR_FILENO, line.data(), line.size());
}

void fatal(std::string_view text, int error_number) {
  report(text, error_number);
  if (!init)
    _exit(1);
  power_off();
}

void power_off() {
  if (!init)
    _exit(0);
  sync();
  reboot(RB_POWER_OFF);
  // Without ACPI there is nothing to switch off; a halted machine at least costs nothing.
  reboot(RB_HALT_SYSTEM);
  _exit(1);
}

} // namespace caisson::agent
