#include "tests/conformance/libvirt_daemon.hpp"

#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

namespace caisson::tests {
namespace {

namespace fs = std::filesystem;

class own_daemon {
public:
  own_daemon() {
    std::string program;
    for (const auto* place : {"/usr/sbin/libvirtd", "/usr/local/sbin/libvirtd"})
      if (program.empty() && ::access(place, X_OK) == 0)
        program = place;
    if (program.empty() || ::geteuid() != 0) {
      why_not = program.empty() ? "CAISSON_TEST_LIBVIRT_URI names no running libvirt (qemu+unix:///system?socket=PATH), and "
                                  "there is no libvirtd to start (package libvirt-daemon)"
                                : "a private libvirtd takes root, and CAISSON_TEST_LIBVIRT_URI names no other";
      return;
    }
    char pattern[] = "/dev/shm/caisson-libvirtd-XXXXXX";
    if (!::mkdtemp(pattern)) {
      why_not = "there is no room in /dev/shm";
      return;
    }
    directory_ = pattern;
    std::string script = CAISSON_PRIVATE_LIBVIRTD;
    char* const argv[] = {script.data(), program.data(), directory_.data(), nullptr};
    if (::posix_spawn(&pid_, script.c_str(), nullptr, nullptr, argv, environ) != 0)
      pid_ = 0;
    auto socket = directory_ + "/libvirt-sock";
    for (int turn = 0; turn < 600 && pid_ > 0 && !fs::exists(socket) && ::waitpid(pid_, nullptr, WNOHANG) == 0; ++turn)
      ::poll(nullptr, 0, 100);
    if (fs::exists(socket))
      uri = "qemu+unix:///system?socket=" + socket;
    else
      why_not = "a private libvirtd does not start here (" + script + " has said why)";
  }

  ~own_daemon() {
    if (pid_ > 0 && ::kill(pid_, SIGTERM) == 0)
      ::waitpid(pid_, nullptr, 0);
    std::error_code ignored;
    if (!directory_.empty())
      fs::remove_all(directory_, ignored);
  }

  std::string uri, why_not;

private:
  std::string directory_;
  pid_t pid_ = 0;
};

} // namespace

std::string libvirt_daemon_uri(std::string& why_not) {
  if (const char* uri = std::getenv("CAISSON_TEST_LIBVIRT_URI"); uri && *uri)
    return uri;
  static own_daemon daemon;
  why_not = daemon.why_not;
  return daemon.uri;
}

} // namespace caisson::tests
