#include "frontends/cli/host_checks.hpp"

#include <fcntl.h>
#include <glob.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "engine/directories.hpp"

namespace caisson::cli {
namespace {

namespace fs = std::filesystem;

host_check vmm(const config::host_facts& host) {
  auto program = "qemu-system-" + host.architecture;
  auto path = config::find_program(host, {program});
  host_check c{.name = "QEMU", .found = !path.empty(), .text = path};
  if (path.empty()) {
    c.text = program + " is neither in PATH nor in the usual directories";
    c.mend = std::string{"apt-get install "} +
             (host.architecture == "aarch64" ? "qemu-system-arm qemu-efi-aarch64" : "qemu-system-x86");
  }
  return c;
}

host_check libvirt_driver() {
  host_check c{.name = "libvirt's QEMU driver"};
  for (const char* pattern : {"/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so",
                              "/usr/lib*/libvirt/connection-driver/libvirt_driver_qemu.so"}) {
    glob_t found{};
    if (::glob(pattern, 0, nullptr, &found) == 0 && found.gl_pathc > 0) {
      c.found = true;
      c.text = found.gl_pathv[0];
    }
    ::globfree(&found);
    if (c.found)
      return c;
  }
  c.text = "libvirt_driver_qemu.so is not installed";
  c.mend = "apt-get install libvirt-daemon-driver-qemu (no daemon has to run)";
  return c;
}

host_check own_program(const engine::directories& d, const char* program) {
  std::error_code error;
  auto beside = fs::read_symlink("/proc/self/exe", error).parent_path();
  for (const auto& directory : {beside, fs::path{d.programs}})
    if (auto path = directory / program; ::access(path.c_str(), X_OK) == 0)
      return {.name = program, .found = true, .text = path.string()};
  return {.name = program,
          .text = "neither in " + beside.string() + " nor in " + d.programs,
          .mend = "build it (cmake --build --preset release) or install Caisson"};
}

host_check guest(const engine::options& o, const engine::directories& d, const config::host_facts& host) {
  auto found = engine::find_guest(host.architecture, o, d);
  if (auto* files = std::get_if<engine::guest_files>(&found))
    return {.name = "Caisson's guest", .found = true, .text = files->directory};
  return {.name = "Caisson's guest",
          .text = std::get<v1::Error>(found).text(),
          .mend = "caisson run makes it; cmake --build --preset release --target guest_image does the same"};
}

host_check kvm() {
  host_check c{.name = "/dev/kvm", .required = false};
  int fd = ::open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (fd >= 0) {
    ::close(fd);
    c.found = true;
    c.text = "can be opened; whether our guest boots under it is tried below";
    return c;
  }
  bool there = errno != ENOENT;
  c.text = there ? std::string{"cannot be opened: "} + std::strerror(errno) : std::string{"is not there"};
  c.text += "; sandboxes run under TCG, about ten times slower";
  c.mend = there ? "add the user to the group kvm (as root: usermod -aG kvm USER), then log in again"
                 : "switch on virtualisation in the firmware, or nested virtualisation in the host of this machine";
  return c;
}

host_check run_directory(const engine::directories& d) {
  host_check c{.name = "run directory", .required = false, .text = d.run};
  fs::path at = d.run;
  while (!fs::exists(at) && at.has_relative_path())
    at = at.parent_path();
  struct statfs s {};
  constexpr long tmpfs_magic = 0x01021994;
  c.found = ::statfs(at.c_str(), &s) == 0 && s.f_type == tmpfs_magic;
  if (c.found) {
    c.text += " (tmpfs)";
  } else {
    c.text += " is not on a tmpfs: what is left there after a reboot is removed at the next start, not by itself";
    c.mend = "give one with --run-dir, or set XDG_RUNTIME_DIR";
  }
  return c;
}

host_check state_directory(const engine::directories& d) {
  host_check c{.name = "state directory", .text = d.state};
  fs::path at = d.state;
  while (!fs::exists(at) && at.has_relative_path())
    at = at.parent_path();
  c.found = ::access(at.c_str(), W_OK) == 0;
  if (!c.found) {
    c.text += ": " + at.string() + " cannot be written";
    c.mend = "give one of your own with --state-dir";
  }
  return c;
}

host_check cgroups() {
  host_check c{.name = "cgroups", .required = false};
  bool unified = ::access("/sys/fs/cgroup/cgroup.controllers", R_OK) == 0;
  bool older = ::access("/sys/fs/cgroup/memory", F_OK) == 0;
  c.found = unified || older;
  c.text = unified ? "version 2" : older ? "version 1" : "not mounted; a VMM's memory is not bounded by the host";
  if (!c.found)
    c.mend = "mount -t cgroup2 none /sys/fs/cgroup";
  return c;
}

host_check user() {
  auto id = ::geteuid();
  if (id == 0)
    return {.name = "user", .found = true, .required = false, .text = "root"};
  return {.name = "user",
          .found = true,
          .required = false,
          .text = "uid " + std::to_string(id) +
                  ": sandboxes run as this user; only huge pages and cgroup limits need root"};
}

} // namespace

std::vector<host_check> check_host(const engine::options& o, const engine::directories& d,
                                   const config::host_facts& host, std::string_view backend) {
  auto for_qemu = [&](host_check c) {
    c.required = c.required && backend == "qemu";
    return c;
  };
  return {user(),
          state_directory(d),
          run_directory(d),
          own_program(d, "caissond"),
          for_qemu(own_program(d, "caisson-backend-qemu")),
          for_qemu(vmm(host)),
          for_qemu(libvirt_driver()),
          guest(o, d, host),
          kvm(),
          cgroups()};
}

} // namespace caisson::cli
