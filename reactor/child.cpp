#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "reactor/core.hpp"

namespace caisson::reactor {
namespace {

constexpr const char* shell = "/bin/sh";
constexpr int first_borrowed_fd = 200; // copies stand above every number that a child may ask for

class descriptor_copies {
public:
  descriptor_copies() = default;
  descriptor_copies(const descriptor_copies&) = delete;
  descriptor_copies& operator=(const descriptor_copies&) = delete;
  ~descriptor_copies() {
    for (int fd : fds_)
      ::close(fd);
  }
  // So that no dup2 in the child overwrites a descriptor that a later one needs.
  int add(int fd) {
    int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, first_borrowed_fd);
    if (copy >= 0)
      fds_.push_back(copy);
    return copy;
  }

private:
  std::vector<int> fds_;
};

struct spawn_plan {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  spawn_plan() {
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawnattr_init(&attributes);
  }
  spawn_plan(const spawn_plan&) = delete;
  spawn_plan& operator=(const spawn_plan&) = delete;
  ~spawn_plan() {
    ::posix_spawn_file_actions_destroy(&actions);
    ::posix_spawnattr_destroy(&attributes);
  }
};

int plan_descriptors(const program& what, descriptor_copies& copies, posix_spawn_file_actions_t& actions) {
  int highest = 2;
  for (int standard = 0; standard <= 2; ++standard)
    ::posix_spawn_file_actions_addopen(&actions, standard, "/dev/null", standard == 0 ? O_RDONLY : O_WRONLY, 0);
  for (auto [ours, theirs] : what.descriptors) {
    int copy = copies.add(ours);
    if (copy < 0)
      return errno;
    ::posix_spawn_file_actions_adddup2(&actions, copy, theirs);
    highest = std::max(highest, theirs);
  }
  return ::posix_spawn_file_actions_addclosefrom_np(&actions, highest + 1);
}

void plan_signals(posix_spawnattr_t& attributes) {
  sigset_t none;
  sigset_t all;
  ::sigemptyset(&none);
  ::sigfillset(&all);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setsigdefault(&attributes, &all);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
}

std::vector<std::string> variables_of(const program& what) {
  auto out = what.environment;
  for (char** v = environ; v && *v; ++v) {
    std::string_view ours{*v};
    auto name = ours.substr(0, ours.find('=') + 1);
    auto is = [&](const auto& e) { return e.starts_with(name); };
    auto unwanted = [&](const auto& e) { return name == e + "="; };
    if (std::none_of(what.environment.begin(), what.environment.end(), is) &&
        std::none_of(what.without.begin(), what.without.end(), unwanted))
      out.emplace_back(ours);
  }
  return out;
}

// posix_spawn sets no umask, and one of this process's own would be that of all its threads.
std::vector<std::string> command_of(const program& what) {
  std::vector<std::string> out;
  if (what.umask) {
    std::array<char, 16> octal{};
    std::snprintf(octal.data(), octal.size(), "%04o", *what.umask & 0777u);
    out = {shell, "-c", "umask " + std::string{octal.data()} + R"( && exec "$0" "$@")"};
  }
  out.push_back(what.path);
  out.insert(out.end(), what.arguments.begin(), what.arguments.end());
  return out;
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> out;
  for (auto& s : strings)
    out.push_back(s.data());
  out.push_back(nullptr);
  return out;
}

exit_status reap(int pidfd) {
  siginfo_t info{};
  if (::waitid(P_PIDFD, static_cast<id_t>(pidfd), &info, WEXITED | WNOHANG) != 0 || info.si_pid == 0)
    return {};
  return {true, info.si_code != CLD_EXITED, info.si_status};
}

class child_watch final : public open_thing {
public:
  child_watch(std::shared_ptr<core> on, std::shared_ptr<child> process, int pidfd,
              std::function<void(exit_status)> on_exit)
      : core_(std::move(on)), process_(std::move(process)), fd_(core_->io, pidfd), on_exit_(std::move(on_exit)) {}

  void begin() {
    if (core_->ending)
      return;
    core_->enlist(shared_from_this());
    fd_.async_wait(asio::posix::stream_descriptor::wait_read,
                   [self = std::static_pointer_cast<child_watch>(shared_from_this())](auto) { self->ended(); });
  }

  void end() override {
    on_exit_ = {};
    boost::system::error_code ignored;
    fd_.close(ignored);
  }

private:
  void ended() {
    core_->dismiss(shared_from_this());
    if (!on_exit_)
      return;
    auto status = reap(fd_.native_handle());
    std::exchange(on_exit_, {})(status);
  }

  std::shared_ptr<core> core_;
  std::shared_ptr<child> process_;
  asio::posix::stream_descriptor fd_;
  std::function<void(exit_status)> on_exit_;
};

// False: the descriptor could not be copied.
bool begin_watching(const std::shared_ptr<core>& on, const std::shared_ptr<child>& process, int pidfd,
                    std::function<void(exit_status)> on_exit) {
  int watched = pidfd < 0 ? -1 : ::fcntl(pidfd, F_DUPFD_CLOEXEC, 0);
  if (watched < 0)
    return false;
  bool taken = on->post([on, process, watched, on_exit = std::move(on_exit)] {
    std::make_shared<child_watch>(on, process, watched, on_exit)->begin();
  });
  if (!taken)
    ::close(watched);
  return true;
}

int open_pidfd(pid_t pid) {
  return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
}

} // namespace

std::uint64_t start_ticks_of(pid_t pid) {
  std::ifstream file{"/proc/" + std::to_string(pid) + "/stat"};
  std::string text; // getline, since an iterator would throw for a process that has ended since the opening
  std::getline(file, text, '\0');
  // Field 2 is the program's name in brackets and may hold anything; 22 is the 20th after it.
  auto at = text.rfind(')');
  for (int field = 2; field < 22 && at != std::string::npos; ++field)
    at = text.find(' ', at + 1);
  return at == std::string::npos ? 0 : std::strtoull(text.c_str() + at, nullptr, 10);
}

std::string exit_status::text() const {
  if (!known)
    return "has ended (another part of this program has taken its exit status)";
  if (!signalled)
    return "exited with status " + std::to_string(code);
  const char* name = ::strsignal(code);
  return "was killed by signal " + std::to_string(code) + " (" + (name ? name : "unknown") + ")";
}

child::child(pid_t pid, int pidfd) : pid_(pid), pidfd_(pidfd), start_ticks_(start_ticks_of(pid)) {}

child::~child() {
  if (pidfd_ < 0)
    return;
  reap(pidfd_); // for a reactor that has ended before the process did
  ::close(pidfd_);
}

bool child::kill(int signal) const {
  return pidfd_ >= 0 && ::syscall(SYS_pidfd_send_signal, pidfd_, signal, nullptr, 0) == 0;
}

bool child::await_exit(std::chrono::milliseconds at_most) const {
  if (pidfd_ < 0)
    return true;
  pollfd ready{pidfd_, POLLIN, 0};
  auto until = std::chrono::steady_clock::now() + at_most;
  for (;;) {
    auto left = std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count();
    int rc = ::poll(&ready, 1, static_cast<int>(std::max<long>(left, 0)));
    if (rc > 0)
      return true;
    if (rc == 0 || errno != EINTR)
      return false;
  }
}

std::shared_ptr<child> reactor::start(const program& what, std::function<void(exit_status)> on_exit,
                                      std::string& error) {
  spawn_plan plan;
  descriptor_copies copies;
  int rc = plan_descriptors(what, copies, plan.actions);
  plan_signals(plan.attributes);
  auto arguments = command_of(what);
  auto variables = variables_of(what);
  auto argv = pointers(arguments);
  auto envp = pointers(variables);
  pid_t pid = -1;
  if (rc == 0)
    rc = ::posix_spawn(&pid, argv.front(), &plan.actions, &plan.attributes, argv.data(), envp.data());
  if (rc != 0) {
    error = "cannot start " + what.path + ": " + std::strerror(rc);
    return nullptr;
  }
  int pidfd = open_pidfd(pid);
  auto out = std::make_shared<child>(pid, pidfd);
  if (begin_watching(core_, out, pidfd, std::move(on_exit)))
    return out;
  error = "cannot watch " + what.path + ": " + std::strerror(errno);
  // No descriptor, no supervision: such a process is not kept. The pid is ours until it is reaped.
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  return nullptr;
}

std::shared_ptr<child> reactor::watch(pid_t pid, std::uint64_t start_ticks, std::function<void(exit_status)> on_exit) {
  int pidfd = open_pidfd(pid);
  if (pidfd < 0)
    return nullptr;
  auto out = std::make_shared<child>(pid, pidfd);
  // Compared after the descriptor is open: from then on it cannot become another process.
  if (start_ticks == 0 || out->start_ticks() != start_ticks || !begin_watching(core_, out, pidfd, std::move(on_exit)))
    return nullptr;
  return out;
}

} // namespace caisson::reactor
