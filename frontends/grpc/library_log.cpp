#include "frontends/grpc/library_log.hpp"

#include <grpc/support/log.h>

#include <string>

namespace caisson::door {
namespace {

std::function<void(std::string_view)>& sink() {
  static std::function<void(std::string_view)> line;
  return line;
}

void take(gpr_log_func_args* what) {
  if (sink())
    sink()(std::string{what->file} + ":" + std::to_string(what->line) + ": " + what->message);
}

} // namespace

void take_library_log(std::function<void(std::string_view)> line) {
  sink() = std::move(line);
  gpr_set_log_verbosity(sink() ? GPR_LOG_SEVERITY_ERROR : static_cast<gpr_log_severity>(GPR_LOG_SEVERITY_ERROR + 1));
  gpr_set_log_function(take);
}

} // namespace caisson::door
