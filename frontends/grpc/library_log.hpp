#pragma once

#include <functional>
#include <string_view>

namespace caisson::door {

/// gRPC's own error lines, process-wide, instead of stderr; an empty function drops them. Once, before anything of
/// gRPC.
void take_library_log(std::function<void(std::string_view)> line);

} // namespace caisson::door
