#include "guest/agent/boot.hpp"

#include "guest/agent/facts.hpp"
#include "guest/agent/files.hpp"
#include "guest/agent/report.hpp"
#include "guest/agent/unique_fd.hpp"

#include <fcntl.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

namespace caisson::agent {

namespace {

void mount_at(const char* type, const char* where, unsigned long flags, const char* options = nullptr) {
  ::mkdir(where, 0755);
  if (::mount(type, where, type, flags, options) != 0)
    report("cannot mount " + std::string{where}, errno);
}

} // namespace

void mount_file_systems() {
  // The initial root cannot be left by pivot_root. A bind of it, moved over itself, can.
  ::mkdir("/mnt", 0755);
  if (::mount("/", "/mnt", nullptr, MS_BIND, nullptr) != 0 || ::chdir("/mnt") != 0 ||
      ::mount(".", "/", nullptr, MS_MOVE, nullptr) != 0 || ::chroot(".") != 0 || ::chdir("/") != 0)
    report("cannot move the root file system", errno);
  constexpr unsigned long quiet = MS_NOSUID | MS_NODEV | MS_NOEXEC;
  mount_at("proc", "/proc", quiet);
  mount_at("sysfs", "/sys", quiet);
  mount_at("devtmpfs", "/dev", MS_NOSUID, "mode=0755");
  mount_at("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
  mount_at("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
  mount_at("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755");
  mount_at("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777");
  mount_at("cgroup2", "/sys/fs/cgroup", quiet);
  for (const auto& [target, link] : {std::pair{"/proc/self/fd", "/dev/fd"}, std::pair{"/proc/self/fd/0", "/dev/stdin"},
                                     std::pair{"/proc/self/fd/1", "/dev/stdout"},
                                     std::pair{"/proc/self/fd/2", "/dev/stderr"}})
    if (::symlink(target, link) != 0 && errno != EEXIST)
      report("cannot make " + std::string{link}, errno);
}

void load_modules() {
  const auto list = read_file("/etc/caisson/modules");
  for (std::size_t at = 0; at < list.size();) {
    const auto end = std::min(list.find('\n', at), list.size());
    const auto path = list.substr(at, end - at);
    at = end + 1;
    if (path.empty())
      continue;
    const unique_fd file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (!file || (::syscall(SYS_finit_module, file.get(), "", 0) != 0 && errno != EEXIST))
      report("cannot load " + path, errno);
  }
}

void online_new_memory() {
  if (const int failed = set_online_policy(); failed != 0)
    report("cannot say how new memory comes online", failed);
}

void set_up_machine() {
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &files);
  }
  constexpr std::string_view name = "caisson";
  ::sethostname(name.data(), name.size());
  const unique_fd socket{::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
  ifreq loopback{};
  std::strcpy(loopback.ifr_name, "lo");
  loopback.ifr_flags = IFF_UP | IFF_RUNNING;
  if (!socket || ::ioctl(socket.get(), SIOCSIFFLAGS, &loopback) != 0)
    report("cannot bring up the loopback interface", errno);
  const std::string cgroup = "/sys/fs/cgroup/";
  const auto controllers = read_line(cgroup + "cgroup.controllers");
  for (std::size_t at = 0; at < controllers.size();) {
    const auto end = std::min(controllers.find(' ', at), controllers.size());
    write_file(cgroup + "cgroup.subtree_control", "+" + controllers.substr(at, end - at));
    at = end + 1;
  }
}

} // namespace caisson::agent
