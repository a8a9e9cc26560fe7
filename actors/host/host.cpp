#include "actors/host/host.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "actors/host/cgroup.hpp"

namespace caisson {
namespace {

namespace fs = std::filesystem;

// Field 22 of /proc/PID/stat; the command's name may hold anything, so fields are counted after its last bracket.
std::uint64_t start_ticks(std::int64_t pid) {
  std::ifstream in{fmt::format("/proc/{}/stat", pid)};
  std::string line;
  std::getline(in, line);
  auto at = line.rfind(')');
  if (at == std::string::npos)
    return 0;
  std::istringstream rest{line.substr(at + 1)};
  std::string field;
  for (int i = 3; i <= 22; ++i)
    rest >> field;
  return std::strtoull(field.c_str(), nullptr, 10);
}

v1::ProcessFigures measure(const v1::MeasureProcess& m) {
  v1::ProcessFigures figures;
  if (m.pid() <= 0 || (m.start_ticks() != 0 && start_ticks(m.pid()) != m.start_ticks()))
    return figures;
  std::ifstream in{fmt::format("/proc/{}/smaps_rollup", m.pid())};
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("Pss:"))
      figures.set_pss_bytes(std::strtoull(line.c_str() + 4, nullptr, 10) * 1024);
  return figures;
}

caf::result<v1::HostFigures> measure_host() {
  v1::HostFigures figures;
  std::ifstream in{"/proc/meminfo"};
  for (std::string line; std::getline(in, line);) {
    const auto value = [&](std::string_view name) {
      return std::strtoull(line.c_str() + name.size(), nullptr, 10) * 1024;
    };
    if (line.starts_with("MemTotal:"))
      figures.set_total_bytes(value("MemTotal:"));
    else if (line.starts_with("MemAvailable:"))
      figures.set_available_bytes(value("MemAvailable:"));
  }
  if (figures.total_bytes() == 0)
    return make_error(ec::host_io, "/proc/meminfo: it has no MemTotal; is /proc mounted?");
  return figures;
}

caf::result<v1::Empty> prepare(const std::string& path) {
  std::error_code why;
  fs::remove_all(path, why);
  fs::create_directories(fs::path{path}.parent_path(), why);
  if (::mkdir(path.c_str(), 0700) != 0)
    return make_error(ec::host_io, fmt::format("directory {}: it cannot be made: {}", path, std::strerror(errno)));
  return v1::Empty{};
}

caf::result<v1::Empty> remove(const std::string& path) {
  std::error_code why;
  fs::remove_all(path, why);
  if (why)
    return make_error(ec::host_io, fmt::format("directory {}: it cannot be removed: {}", path, why.message()));
  return v1::Empty{};
}

caf::result<v1::Empty> save(const v1::SaveText& m) {
  std::ofstream out{m.path(), std::ios::binary | std::ios::trunc};
  out << m.text();
  out.close();
  if (!out)
    return make_error(ec::host_io, fmt::format("file {}: it cannot be written", m.path()));
  return v1::Empty{};
}

} // namespace

host_actor::behavior_type host_worker(host_actor::pointer) {
  return {
      [](const v1::MeasureProcess& m) { return measure(m); },
      [](const v1::MeasureHost&) { return measure_host(); },
      [cgroups = std::make_shared<host_cgroups>()](const v1::FollowCgroup& m) { return cgroups->follow(m); },
      [](const v1::PrepareDirectory& m) { return prepare(m.path()); },
      [](const v1::RemoveDirectory& m) { return remove(m.path()); },
      [](const v1::SaveText& m) { return save(m); },
  };
}

} // namespace caisson
