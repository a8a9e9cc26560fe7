#include "frontends/daemon/engine_log.hpp"

#include <spdlog/sinks/rotating_file_sink.h>
#include <spdlog/spdlog.h>

#include "frontends/grpc/library_log.hpp"
#include "messages/validate.hpp"

namespace caisson::daemon {

std::function<void(std::string_view)> open_log(const std::string& directory) {
  constexpr std::size_t file_bytes = 4 * 1024 * 1024;
  auto log = spdlog::rotating_logger_mt("engine", directory + "/engine.log", file_bytes, 3);
  log->set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %v", spdlog::pattern_time_type::utc);
  log->flush_on(spdlog::level::info);
  auto write = [log](std::string_view line) { log->info(escape_guest_text(line)); };
  door::take_library_log([write](std::string_view line) { write("grpc: " + std::string{line}); });
  return write;
}

} // namespace caisson::daemon
