#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

/// What a configuration is adapted to. Injected, so that resolving is a pure function; read_host_facts() has the real
/// one.
namespace caisson::config {

/// One line of the backend registry, as far as a configuration needs it.
struct backend_line {
  std::string name;                       ///< "qemu"
  std::vector<std::string> architectures; ///< {"x86_64"}; empty: whatever is asked
};

struct host_facts {
  std::uint64_t memory_bytes = 0; ///< MemTotal
  std::uint32_t cpus = 1;         ///< processors that this process may use
  std::string architecture;       ///< uname -m
  std::vector<backend_line> backends;
  std::vector<std::string> search_paths;  ///< where a configuration.toml is looked for, first one that exists
  std::vector<std::string> program_paths; ///< directories where host programs are looked for, PATH first
  std::function<bool(const std::string& path)> exists;                        ///< any kind of file
  std::function<std::vector<std::string>(const std::string& directory)> list; ///< names in a directory; empty if none
};

/// A path that exists and is spelt most like `path` (other case, a similar component); "" where there is none.
std::string nearest_path(const host_facts& host, const std::string& path);

/// The first of `names` in host.program_paths, as a whole path; "" where there is none.
std::string find_program(const host_facts& host, const std::vector<std::string>& names);

} // namespace caisson::config
