#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace caisson::daemon {

/// Writes plain lines ("2026-01-02T03:04:05.678Z text") to DIRECTORY/engine.log, at most 4 MiB each in four files.
/// Every line is escaped and cut at 4 KiB, since guest text may be in it. gRPC's own complaints go there too. Throws
/// where the file cannot be written.
std::function<void(std::string_view)> open_log(const std::string& directory);

} // namespace caisson::daemon
