#include "frontends/cli/engine_start.hpp"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "frontends/cli/progress.hpp"

extern char** environ;

namespace caisson::cli {
namespace {

using clock = std::chrono::steady_clock;

std::string find_caissond(const engine::directories& d) {
  std::error_code error;
  auto beside = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  for (const auto& directory : {beside, std::filesystem::path{d.programs}}) {
    auto path = directory / "caissond";
    if (::access(path.c_str(), X_OK) == 0)
      return path;
  }
  fail("host_missing", "caissond, the engine's program, is neither beside caisson (" + beside.string() + ") nor in " +
                           d.programs + "; build or install it");
}

// What the engine says about itself: "R", or "E" and an error. Empty: it ended without a word.
std::string read_answer(int fd, std::chrono::seconds at_most) {
  std::string text;
  for (auto until = clock::now() + at_most;;) {
    auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - clock::now()).count();
    pollfd p{fd, POLLIN, 0};
    int ready = left > 0 ? ::poll(&p, 1, static_cast<int>(left)) : 0;
    if (ready == 0)
      fail("deadline_exceeded", "the engine has not come up within " + std::to_string(at_most.count()) +
                                    " s; see engine.log in the state directory's logs");
    char buffer[4096];
    auto n = ready > 0 ? ::read(fd, buffer, sizeof buffer) : -1;
    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      return text;
    text.append(buffer, static_cast<std::size_t>(n));
  }
}

} // namespace

void start_engine(const engine::directories& d, bool json) {
  progress shown{"starting the engine", json};
  auto program = find_caissond(d);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0)
    fail("host_resources", std::string{"a pipe to the engine cannot be made: "} + std::strerror(errno));
  const char* idle = std::getenv("CAISSON_IDLE_EXIT_S");
  std::string words[] = {program, "--state-dir=" + d.state, "--run-dir=" + d.run,
                         "--idle-exit-s=" + std::string{idle && *idle ? idle : "30"}, "--ready-fd=3"};
  char* argv[] = {words[0].data(), words[1].data(), words[2].data(), words[3].data(), words[4].data(), nullptr};

  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&files, 1, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addopen(&files, 2, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_adddup2(&files, ends[1], 3);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
  sigset_t all, none;
  sigfillset(&all);
  sigemptyset(&none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setsigmask(&attributes, &none);
  pid_t pid = 0;
  int error = ::posix_spawn(&pid, program.c_str(), &files, &attributes, argv, environ);
  posix_spawn_file_actions_destroy(&files);
  posix_spawnattr_destroy(&attributes);
  ::close(ends[1]);
  if (error != 0) {
    ::close(ends[0]);
    fail("host_io", program + ": cannot be started: " + std::strerror(error));
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  } // ends at once: it goes to the background
  auto said = read_answer(ends[0], std::chrono::seconds{150});
  ::close(ends[0]);
  if (said == "R")
    return;
  v1::Error why;
  if (said.size() > 1 && said[0] == 'E' && why.ParseFromString(said.substr(1)))
    throw failed{std::move(why)};
  fail("internal",
       program + ": it ended before it took commands; the last lines of " + d.logs + "/engine.log say more");
}

std::unique_ptr<door::client> command_context::engine() const {
  auto d = directories();
  // An engine may end between our look and our call; three times in a row is no chance any more.
  for (int attempt = 0; attempt < 3; ++attempt) {
    if (auto connected = door::client::connect(d.socket))
      return take(std::move(*connected));
    start_engine(d, global.json);
  }
  if (auto connected = door::client::connect(d.socket))
    return take(std::move(*connected));
  fail("backend_lost",
       "the engine was started three times and is gone again; the last lines of " + d.logs + "/engine.log say why");
}

engine::directories command_context::directories() const {
  auto whole = [](const std::string& path) {
    return path.empty() ? path : std::filesystem::absolute(path).lexically_normal().string();
  };
  engine::options o;
  o.state_directory = whole(global.state_dir);
  o.run_directory = whole(global.run_dir);
  v1::Error why;
  auto d = engine::resolve_directories(o, &why);
  if (!why.code().empty())
    throw failed{std::move(why)};
  return d;
}

} // namespace caisson::cli
