#include "frontends/daemon/start_lock.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

#include "frontends/grpc/door_error.hpp"

namespace caisson::daemon {

using door::make_error;

start_lock::~start_lock() {
  release();
}

void start_lock::release() {
  if (fd_ >= 0)
    ::close(fd_);
  fd_ = -1;
}

bool start_lock::take(const std::string& run_directory, unsigned seconds, v1::Error& why) {
  auto path = run_directory + "/start.lock";
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd_ < 0) {
    why = make_error("host_io", path + ": cannot be opened: " + std::strerror(errno));
    return false;
  }
  if (::flock(fd_, LOCK_EX | LOCK_NB) == 0)
    return true;
  // The timer repeats, so that a signal that comes just before flock() does not leave it waiting for ever.
  struct sigaction wake {};
  wake.sa_handler = [](int) {};
  struct sigaction before {};
  ::sigaction(SIGALRM, &wake, &before);
  itimerval timer{{1, 0}, {static_cast<time_t>(seconds), 0}};
  ::setitimer(ITIMER_REAL, &timer, nullptr);
  int result = ::flock(fd_, LOCK_EX);
  timer = {};
  ::setitimer(ITIMER_REAL, &timer, nullptr);
  ::sigaction(SIGALRM, &before, nullptr);
  if (result == 0)
    return true;
  why = make_error("busy", path + ": another engine of this run directory has been starting or ending for " +
                               std::to_string(seconds) + " s; see its log, or end its process (caissond)");
  release();
  return false;
}

bool is_served(const std::string& socket) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket.size() >= sizeof address.sun_path)
    return false;
  std::memcpy(address.sun_path, socket.data(), socket.size());
  int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0)
    return false;
  bool served = ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  ::close(fd);
  return served;
}

} // namespace caisson::daemon
