#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

/// Small files of /proc and /sys.
namespace caisson::agent {

/// The whole file, at most `most` bytes; "" when it cannot be read.
std::string read_file(const std::string& path, std::size_t most = 64 * 1024);

/// The first line without its end.
std::string read_line(const std::string& path);

/// 0 or an errno.
int write_file(const std::string& path, std::string_view text);

bool exists(const std::string& path);

/// Names in a directory that begin with `prefix`, without . and ..; nothing when it cannot be read.
std::vector<std::string> list_directory(const std::string& path, std::string_view prefix = "");

/// "0-2,5" as the kernel writes sets of processors; at most 4096 entries.
std::vector<unsigned> parse_cpu_list(std::string_view list);

} // namespace caisson::agent
