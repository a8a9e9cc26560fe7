#pragma once

/// The VMM's own log file (its stderr): short as a rule, hostile in length at worst.

#include <string>

namespace caisson::qemu {

/// The last line that is not empty, at most 4 KiB; "" where there is none.
std::string last_line(const std::string& path);

/// Cuts a file that has grown beyond `bytes` to nothing (the VMM appends). For a VMM that a guest makes write.
void bound_file(const std::string& path, std::size_t bytes);

} // namespace caisson::qemu
