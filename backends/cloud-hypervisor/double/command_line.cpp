#include "backends/cloud-hypervisor/double/command_line.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <optional>
#include <string_view>

namespace caisson::cloud_hypervisor::api_double {
namespace {

bool number(std::string_view text, int& out) {
  const auto [at, problem] = std::from_chars(text.data(), text.data() + text.size(), out);
  return problem == std::errc{} && at == text.data() + text.size() && out >= 0;
}

std::string refused_value(const std::string& value, const std::string& option, const std::string& possible) {
  return "error: invalid value '" + value + "' for '" + option + "'\n  [possible values: " + possible +
         "]\n\nFor more information, try '--help'.";
}

void take_profile(command_line& c, const std::string& text) {
  if (const auto p = parse_profile(text))
    c.as = *p;
  else
    c.problem = refused_value(text, "--profile <profile>", "v51.1, v53.0, head");
}

void take_faults(command_line& c, const std::string& text) {
  if (const auto wrong = c.faults.set_all(text); !wrong.empty())
    c.problem = "error: " + wrong + "\n\nFor more information, try '--help'.";
}

void api_socket(command_line& c, const std::string& value) {
  if (value.starts_with("fd=")) {
    if (!number(std::string_view{value}.substr(3), c.api_socket_fd))
      c.failure = "Error parsing API socket: invalid digit found in string";
  } else {
    c.api_socket_path = value.starts_with("path=") ? value.substr(5) : value;
  }
}

void event_monitor(command_line& c, const std::string& value) {
  if (value.starts_with("path="))
    c.event_monitor_path = value.substr(5);
  else if (!value.starts_with("fd=") || !number(std::string_view{value}.substr(3), c.event_monitor_fd))
    c.failure = "Error parsing --event-monitor";
}

} // namespace

std::string help_text() {
  return "Answers like Cloud Hypervisor's API, with a model guest behind it. A double for tests.\n"
         "\n"
         "Usage: caisson-ch-double [OPTIONS]\n"
         "\n"
         "Options:\n"
         "      --api-socket <path=SOCKET|SOCKET|fd=N>   where the API listens; fd: an inherited listening socket\n"
         "      --event-monitor <path=FILE|fd=N>         where events are written\n"
         "      --log-file <FILE>                        instead of standard error\n"
         "  -v                                           more of it; up to three times\n"
         "      --seccomp <true|false|log|errno>         understood, without effect\n"
         "      --no-shutdown                            a guest's power-off ends the VM alone (not in v51.1)\n"
         "      --profile <v51.1|v53.0|head>             which release answers (or CAISSON_CH_PROFILE) [v53.0]\n"
         "      --fault <NAME=VALUE>                     repeatable (or CAISSON_CH_FAULTS, with commas between)\n"
         "  -V, --version\n"
         "  -h, --help\n"
         "\n"
         "The faults are described in backends/cloud-hypervisor/double/knobs.hpp.\n";
}

command_line read_command_line(const std::vector<std::string>& arguments) {
  command_line c;
  if (const auto* p = std::getenv("CAISSON_CH_PROFILE"); p && *p)
    take_profile(c, p);
  if (const auto* f = std::getenv("CAISSON_CH_FAULTS"); f && *f)
    take_faults(c, f);
  if (arguments.empty()) {
    c.help = true;
    c.problem = help_text();
    return c;
  }
  constexpr std::array<std::string_view, 6> with_value{"--api-socket", "--event-monitor", "--log-file",
                                                       "--seccomp",    "--profile",       "--fault"};
  for (std::size_t i = 0; i < arguments.size() && c.problem.empty(); ++i) {
    auto name = arguments[i];
    std::optional<std::string> value;
    if (const auto equals = name.find('='); name.starts_with("--") && equals != name.npos) {
      value = name.substr(equals + 1);
      name.resize(equals);
    }
    if (name == "--version" || name == "-V") {
      c.version = true;
    } else if (name == "--help" || name == "-h") {
      c.help = true;
    } else if (name == "--no-shutdown") {
      c.no_shutdown = true;
    } else if (name.size() > 1 && name[0] == '-' && name.find_first_not_of('v', 1) == name.npos) {
      c.verbosity += static_cast<std::uint32_t>(name.size() - 1);
    } else if (std::find(with_value.begin(), with_value.end(), name) != with_value.end()) {
      if (!value && ++i < arguments.size())
        value = arguments[i];
      if (!value)
        c.problem = "error: a value is required for '" + name + " <" + name.substr(2) +
                    ">' but none was supplied\n\nFor more information, try '--help'.";
      else if (name == "--api-socket")
        api_socket(c, *value);
      else if (name == "--event-monitor")
        event_monitor(c, *value);
      else if (name == "--log-file")
        c.log_file = *value;
      else if (name == "--profile")
        take_profile(c, *value);
      else if (name == "--fault")
        take_faults(c, *value);
      else if (*value != "true" && *value != "false" && *value != "log" && (*value != "errno" || c.as == profile::v51_1))
        c.problem = refused_value(*value, "--seccomp <seccomp>", "true, false, log, errno");
    } else {
      c.problem = "error: unexpected argument '" + arguments[i] +
                  "' found\n\nUsage: caisson-ch-double [OPTIONS]\n\nFor more information, try '--help'.";
    }
  }
  if (c.problem.empty() && c.no_shutdown && c.as == profile::v51_1)
    c.problem = "error: unexpected argument '--no-shutdown' found\n\nUsage: caisson-ch-double [OPTIONS]\n\n"
                "For more information, try '--help'.";
  return c;
}

} // namespace caisson::cloud_hypervisor::api_double
