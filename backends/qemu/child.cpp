#include "backends/qemu/child.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char** environ;

namespace caisson::qemu {
namespace {
constexpr std::size_t max_output_bytes = 64u << 10;
}

child_result run_child(const std::vector<std::string>& argv, std::chrono::milliseconds time,
                       const std::function<bool(const std::string&)>& enough) {
  child_result result;
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    result.why_not_started = ::strerror(errno);
    return result;
  }
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
  ::posix_spawn_file_actions_adddup2(&actions, ends[1], 2);
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  sigset_t none, defaults;
  ::sigemptyset(&none);
  ::sigemptyset(&defaults);
  ::sigaddset(&defaults, SIGPIPE);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setsigdefault(&attributes, &defaults);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  std::vector<char*> raw;
  for (const auto& a : argv)
    raw.push_back(const_cast<char*>(a.c_str()));
  raw.push_back(nullptr);
  pid_t pid = 0;
  int error = ::posix_spawn(&pid, raw[0], &actions, &attributes, raw.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::posix_spawnattr_destroy(&attributes);
  ::close(ends[1]);
  if (error != 0) {
    ::close(ends[0]);
    result.why_not_started = ::strerror(error);
    return result;
  }
  result.started = true;
  auto deadline = std::chrono::steady_clock::now() + time;
  bool ended = false;
  for (;;) {
    auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
    pollfd p{ends[0], POLLIN, 0};
    int n = left > 0 ? ::poll(&p, 1, static_cast<int>(left)) : 0;
    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      break;
    char buffer[4096];
    auto got = ::read(ends[0], buffer, sizeof buffer);
    if (got <= 0) {
      ended = true;
      break;
    }
    if (result.output.size() < max_output_bytes)
      result.output.append(buffer, static_cast<std::size_t>(got));
    if (enough && enough(result.output)) {
      result.in_time = true;
      break;
    }
  }
  ::close(ends[0]);
  if (ended)
    result.in_time = true;
  else
    ::kill(pid, SIGKILL);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status))
    result.exit_status = WEXITSTATUS(status);
  return result;
}

} // namespace caisson::qemu
