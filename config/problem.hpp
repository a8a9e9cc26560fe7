#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "config/toml_reader.hpp"
#include "messages/config.pb.h"

/// One thing that is wrong with a configuration. The message type itself is used: it is what every door shows.
namespace caisson::config {

using problem = v1::ConfigProblem;
using adaptation = v1::ConfigAdaptation;
using warning = v1::ConfigWarning;

/// Where something stands: a place in a file, an annotation, the command line, or built in.
struct place {
  std::string file; ///< "" unless in a file
  position at;
  std::string other; ///< "annotation NAME", "command line", "built-in (page)"
};

/// "FILE:LINE:COLUMN", or place::other.
std::string to_string(const place& where);

/// The parts of a message. Everything but `what` may be empty; `found` is escaped here.
struct finding {
  std::string key;
  std::string found;
  std::string what;
  std::string allowed;
  std::string nearest;
  v1::ConfigSeverity severity = v1::CONFIG_SEVERITY_ERROR;
};

/// "WHERE: KEY = FOUND: WHAT; allowed: ALLOWED; did you mean NEAREST?"
problem make_problem(const place& where, const finding& parts);

bool has_error(const std::vector<problem>& problems);

} // namespace caisson::config
