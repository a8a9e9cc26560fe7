#include "actors/host/cgroup.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include <fmt/format.h>

#include "messages/validate.hpp"

namespace caisson {
namespace {

constexpr std::uint64_t page_bytes = 4096;

bool has_word(const std::string& text, std::string_view word) {
  std::istringstream in{text};
  for (std::string each; in >> each;)
    if (each == word)
      return true;
  return false;
}

/// The path in a hierarchy by /proc/PID/cgroup: "0::/a/b" for v2, "4:memory:/a/b" for a v1 controller.
std::string own_path(const std::string& text, std::string_view controller) {
  std::istringstream in{text};
  for (std::string line; std::getline(in, line);) {
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (first == line.npos || second == line.npos)
      continue;
    auto names = "," + line.substr(first + 1, second - first - 1) + ",";
    if (controller.empty() ? names == ",," : names.find("," + std::string{controller} + ",") != names.npos)
      return line.substr(second + 1);
  }
  return {};
}

/// The number beside a name, one pair a line: memory.events (v2), memory.oom_control (v1).
std::uint64_t count_of(const std::string& text, std::string_view name) {
  std::istringstream in{text};
  std::string word;
  for (std::uint64_t count = 0; in >> word >> count;)
    if (word == name)
      return count;
  return 0;
}

std::string parent(const std::string& path) {
  const auto slash = path.rfind('/');
  return slash == path.npos ? std::string{} : path.substr(0, slash);
}

} // namespace

cgroup_files cgroup_files::real() {
  cgroup_files f;
  f.superuser = ::geteuid() == 0;
  f.write = [](const std::string& path, const std::string& text) -> std::string {
    const int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd < 0)
      return fmt::format("{}: {}", path, std::strerror(errno));
    const bool ok = ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
    const int why = errno;
    ::close(fd);
    return ok ? std::string{} : fmt::format("{}: {}", path, std::strerror(why));
  };
  f.read = [](const std::string& path) {
    std::ifstream in{path};
    return std::string{std::istreambuf_iterator<char>{in}, {}};
  };
  f.make = [](const std::string& path) -> std::string {
    return ::mkdir(path.c_str(), 0755) == 0 || errno == EEXIST ? std::string{}
                                                              : fmt::format("{}: {}", path, std::strerror(errno));
  };
  f.remove = [](const std::string& path) -> std::string {
    return ::rmdir(path.c_str()) == 0 || errno == ENOENT ? std::string{}
                                                        : fmt::format("{}: {}", path, std::strerror(errno));
  };
  f.writable = [](const std::string& path) { return ::access(path.c_str(), W_OK | X_OK) == 0; };
  return f;
}

void host_cgroups::look() {
  looked_ = true;
  const auto own = files_.read(files_.own);
  if (has_word(files_.read(files_.root + "/cgroup.controllers"), "memory")) {
    const auto gives_memory = [&](const std::string& path) {
      return has_word(files_.read(path + "/cgroup.subtree_control"), "memory");
    };
    std::string why;
    if (files_.superuser) {
      const auto mine = files_.root + "/caisson";
      if (!gives_memory(files_.root))
        why = files_.write(files_.root + "/cgroup.subtree_control", "+memory");
      if (why.empty())
        why = files_.make(mine);
      if (why.empty() && !gives_memory(mine))
        why = files_.write(mine + "/cgroup.subtree_control", "+memory");
      if (why.empty()) {
        base_ = mine;
        return;
      }
    }
    for (auto at = own_path(own, ""); !at.empty(); at = parent(at)) {
      const auto path = files_.root + (at == "/" ? std::string{} : at);
      if (gives_memory(path) && files_.writable(path)) {
        base_ = path;
        return;
      }
    }
    why_not_ = fmt::format("no cgroup above the engine's own ({}) may be used: none is writable and gives its children "
                           "the memory controller{}; start the engine in a delegated subtree (systemd: Delegate=yes "
                           "with the engine in a subgroup), or as root",
                           own_path(own, ""), why.empty() ? std::string{} : " (" + why + ")");
    return;
  }
  const auto hierarchy = files_.root + "/memory";
  if (!files_.read(hierarchy + "/cgroup.procs").empty() || files_.writable(hierarchy)) {
    v1_ = true;
    for (const auto& path : {hierarchy + own_path(own, "memory"), hierarchy}) {
      auto at = path;
      while (at.ends_with('/'))
        at.pop_back();
      if (files_.writable(at)) {
        base_ = at;
        return;
      }
    }
    why_not_ = fmt::format("{} may not be written; start the engine as root to bound its VMMs there", hierarchy);
    return;
  }
  why_not_ = fmt::format("{} has no memory controller, neither cgroup v2 nor v1", files_.root);
}

v1::CgroupFollowed host_cgroups::remove(const std::string& path) {
  v1::CgroupFollowed done;
  done.set_path(path);
  done.set_why_not(files_.remove(path));
  return done;
}

v1::CgroupFollowed host_cgroups::killed_in(const std::string& path) const {
  v1::CgroupFollowed seen;
  seen.set_path(path);
  const auto kills = count_of(files_.read(path + (v1_ ? "/memory.oom_control" : "/memory.events")), "oom_kill");
  if (kills == 0)
    return seen;
  const auto limit = std::strtoull(files_.read(path + limit_name()).c_str(), nullptr, 10);
  seen.set_why_not(fmt::format("the host's kernel killed in {} (oom_kill {}), whose limit of {} it had reached", path,
                               kills, show_bytes(limit)));
  return seen;
}

v1::CgroupFollowed host_cgroups::follow(const v1::FollowCgroup& m) {
  if (!looked_)
    look();
  v1::CgroupFollowed done;
  if (base_.empty()) {
    done.set_why_not(why_not_);
    return done;
  }
  const auto path = base_ + "/caisson-" + m.sandbox_id();
  if (m.limit_bytes() == 0)
    return remove(path);
  if (m.pid() == 0)
    return killed_in(path);
  auto failed = files_.make(path);
  const auto usage_name = path + (v1_ ? "/memory.usage_in_bytes" : "/memory.current");
  // A limit below what the VMM holds would kill it.
  const std::uint64_t usage = std::strtoull(files_.read(usage_name).c_str(), nullptr, 10);
  const std::uint64_t held = (usage + page_bytes - 1) / page_bytes * page_bytes;
  const auto limit = std::max<std::uint64_t>(m.limit_bytes(), held);
  if (failed.empty())
    failed = files_.write(path + limit_name(), std::to_string(limit));
  // The kernel takes ten milliseconds for a move, also for one to where the process is.
  const auto members = path + "/cgroup.procs", pid = std::to_string(m.pid());
  if (failed.empty() && !has_word(files_.read(members), pid))
    failed = files_.write(members, pid);
  if (!failed.empty()) {
    done.set_why_not(failed);
    return done;
  }
  done.set_path(path);
  if (limit > m.limit_bytes())
    done.set_why_not(fmt::format("{} holds {} bytes, more than the {} that it is to have; it gets no more", path, held,
                                 m.limit_bytes()));
  return done;
}

} // namespace caisson
