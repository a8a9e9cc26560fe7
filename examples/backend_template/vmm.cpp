#include "examples/backend_template/vmm.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>

namespace backend_template {
namespace {

/// A descriptor that is closed with its owner.
class descriptor {
public:
  explicit descriptor(int fd) : fd_(fd) {}
  ~descriptor() {
    if (fd_ >= 0)
      ::close(fd_);
  }
  descriptor(const descriptor&) = delete;
  descriptor& operator=(const descriptor&) = delete;
  int get() const { return fd_; }

private:
  int fd_;
};

int left_ms(deadline until) {
  auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count();
  return left < 0 ? 0 : static_cast<int>(left) + 1;
}

int pidfd_of(const process& p) {
  return lives(p) ? static_cast<int>(::syscall(SYS_pidfd_open, p.pid, 0)) : -1;
}

int connect_to(const std::string& path) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  if (path.size() >= sizeof name.sun_path)
    throw failure("invalid_argument", "socket path " + path + " is too long: at most 107 bytes, choose a shorter --run-dir");
  path.copy(name.sun_path, sizeof name.sun_path - 1);
  int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || ::connect(fd, reinterpret_cast<sockaddr*>(&name), sizeof name) != 0) {
    auto why = std::string{std::strerror(errno)};
    if (fd >= 0)
      ::close(fd);
    throw failure("backend_lost", "the VMM does not listen on " + path + ": " + why);
  }
  return fd;
}

} // namespace

std::optional<process> look_at(pid_t pid, char* state) {
  std::ifstream in{"/proc/" + std::to_string(pid) + "/stat"};
  std::string text{std::istreambuf_iterator<char>{in}, {}};
  auto name_end = text.rfind(')');
  if (name_end == text.npos)
    return {};
  std::istringstream rest{text.substr(name_end + 1)};
  process found{pid, 0};
  std::string field;
  for (int number = 3; number <= 22 && rest >> field; ++number) {
    if (number == 3 && (field == "Z" || field == "X"))
      return {};
    if (number == 3 && state)
      *state = field[0];
    if (number == 22)
      found.start_ticks = std::stoull(field);
  }
  return found;
}

process start(const std::vector<std::string>& command_line) {
  std::vector<char*> argv;
  for (const auto& part : command_line)
    argv.push_back(const_cast<char*>(part.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t files;
  ::posix_spawn_file_actions_init(&files);
  for (int fd = 0; fd < 3; ++fd)
    ::posix_spawn_file_actions_addopen(&files, fd, "/dev/null", O_RDWR, 0);
  posix_spawnattr_t how;
  ::posix_spawnattr_init(&how);
  ::posix_spawnattr_setflags(&how, POSIX_SPAWN_SETSID);
  pid_t pid = 0;
  int rc = ::posix_spawn(&pid, argv[0], &files, &how, argv.data(), environ);
  ::posix_spawnattr_destroy(&how);
  ::posix_spawn_file_actions_destroy(&files);
  if (rc != 0)
    throw failure("host_missing", "VMM " + command_line[0] + " does not start: " + std::strerror(rc));
  auto started = look_at(pid);
  if (!started)
    throw failure("host_io", "VMM " + command_line[0] + " has ended at once");
  return *started;
}

bool end(const process& victim, deadline until) {
  descriptor fd{pidfd_of(victim)};
  if (fd.get() < 0)
    return true;
  ::syscall(SYS_pidfd_send_signal, fd.get(), SIGKILL, nullptr, 0);
  pollfd gone{fd.get(), POLLIN, 0};
  return ::poll(&gone, 1, left_ms(until)) == 1;
}

std::string wait_for_end(const process& p) {
  descriptor fd{pidfd_of(p)};
  if (fd.get() >= 0) {
    pollfd gone{fd.get(), POLLIN, 0};
    while (::poll(&gone, 1, -1) < 0 && errno == EINTR) {
    }
  }
  int status = 0;
  if (::waitpid(p.pid, &status, 0) != p.pid)
    return "is gone"; // a child of an earlier process of this backend
  return WIFSIGNALED(status) ? "was killed by signal " + std::to_string(WTERMSIG(status))
                             : "exited with status " + std::to_string(WEXITSTATUS(status));
}

std::optional<process> listener_of(const std::string& socket_path) {
  try {
    descriptor fd{connect_to(socket_path)};
    ucred who{};
    socklen_t size = sizeof who;
    if (::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &who, &size) == 0)
      return look_at(who.pid);
  } catch (const failure&) {
    // Nobody: it has ended.
  }
  return {};
}

namespace {

std::string ask_on(int fd, const std::string& socket_path, const std::string& line, deadline until) {
  auto text = line + "\n";
  if (::send(fd, text.data(), text.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(text.size()))
    throw failure("backend_lost", "the VMM has closed " + socket_path);
  std::string reply;
  while (reply.find('\n') == reply.npos) {
    pollfd ready{fd, POLLIN, 0};
    if (::poll(&ready, 1, left_ms(until)) != 1)
      throw failure("outcome_unknown", "the VMM has not answered \"" + line + "\"; it may still do it");
    char bytes[4096];
    auto n = ::recv(fd, bytes, sizeof bytes, 0);
    if (n <= 0 || reply.size() > (1u << 20))
      throw failure("backend_lost", "the VMM has closed " + socket_path + " without an answer to \"" + line + "\"");
    reply.append(bytes, static_cast<std::size_t>(n));
  }
  reply.resize(reply.find('\n'));
  if (reply == "ok" || reply.starts_with("ok "))
    return reply;
  throw failure("backend_refused", "the VMM says: " + reply);
}

} // namespace

std::string ask(const std::string& socket_path, const std::string& line, deadline until) {
  descriptor fd{connect_to(socket_path)};
  return ask_on(fd.get(), socket_path, line, until);
}

vmm_status ask_status(const std::string& socket_path, deadline until) {
  std::istringstream in{ask(socket_path, "status", until)};
  vmm_status s;
  std::string ok, state, text;
  in >> ok >> state >> s.boot_bytes >> s.plugged_bytes >> s.vcpus >> s.max_vcpus;
  s.paused = state == "paused";
  while (in >> text) {
    auto first = text.find(':'), second = text.find(':', first + 1);
    if (second != text.npos)
      s.devices.push_back({text.substr(0, first), text.substr(first + 1, second - first - 1), text.substr(second + 1)});
  }
  return s;
}

int begin_watch(const std::string& socket_path, deadline until) {
  int fd = connect_to(socket_path);
  try {
    ask_on(fd, socket_path, "watch", until);
  } catch (...) {
    ::close(fd);
    throw;
  }
  return fd;
}

void watch(int watched, const std::function<void(const std::string& line)>& heard) {
  descriptor fd{watched};
  std::string text;
  char bytes[4096];
  for (ssize_t n; (n = ::recv(fd.get(), bytes, sizeof bytes, 0)) > 0;) {
    text.append(bytes, static_cast<std::size_t>(n));
    for (auto end = text.find('\n'); end != text.npos; end = text.find('\n')) {
      heard(text.substr(0, end));
      text.erase(0, end + 1);
    }
  }
}

} // namespace backend_template
