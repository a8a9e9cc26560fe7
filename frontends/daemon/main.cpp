// caissond: the engine behind its local door, for as long as it is needed.

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <exception>
#include <optional>
#include <utility>

#include "engine/directories.hpp"
#include "engine/service.hpp"
#include "frontends/daemon/engine_log.hpp"
#include "frontends/daemon/orphans.hpp"
#include "frontends/daemon/start_lock.hpp"
#include "frontends/grpc/door_error.hpp"
#include "frontends/grpc/server.hpp"

namespace caisson::daemon {
namespace {

using clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

struct settings {
  std::string state_dir, run_dir;
  unsigned idle_exit_s = 0; // 0: never
  int ready_fd = -1;        // of a starter that waits to be told
};

int wake_fd = -1;
std::atomic<bool> asked_to_end = false;

void wake() {
  std::uint64_t one = 1;
  [[maybe_unused]] auto n = ::write(wake_fd, &one, sizeof one);
}

void on_signal(int) {
  int saved = errno;
  asked_to_end = true;
  wake();
  errno = saved;
}

// Handlers and no blocked mask or SIG_IGN: programs that the engine starts must not inherit either.
void take_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGTERM, &action, nullptr);
  ::sigaction(SIGINT, &action, nullptr);
  action.sa_handler = [](int) {};
  ::sigaction(SIGPIPE, &action, nullptr);
  ::sigaction(SIGHUP, &action, nullptr);
}

// Tells the starter, if there is one: an empty message is "ready".
class starter {
public:
  explicit starter(int fd) : fd_{fd} {
    if (fd_ >= 0)
      ::fcntl(fd_, F_SETFD, FD_CLOEXEC);
  }

  void ready() { tell("R"); }

  int failed(const v1::Error& e) {
    if (fd_ >= 0)
      tell("E" + e.SerializeAsString());
    else
      std::fprintf(stderr, "caissond: %s\n", e.text().c_str());
    return e.exit_code() > 0 ? e.exit_code() : 125;
  }

private:
  void tell(const std::string& message) {
    if (fd_ < 0)
      return;
    [[maybe_unused]] auto n = ::write(fd_, message.data(), message.size());
    ::close(std::exchange(fd_, -1));
  }

  int fd_;
};

// A started engine belongs to nobody: own session, no terminal, no descriptor of its starter.
void leave_starter() {
  if (::fork() != 0)
    ::_exit(0);
  ::setsid();
  int null = ::open("/dev/null", O_RDWR);
  for (int fd : {0, 1, 2})
    ::dup2(null, fd);
  if (null > 2)
    ::close(null);
}

// An engine of this directory that was killed a moment ago may still hold its lock: `busy` is tried again for 5 s.
engine::outcome<std::unique_ptr<engine::service>> open_engine(const engine::options& o) {
  auto until = clock::now() + seconds{5};
  for (;;) {
    auto opened = engine::open(o);
    auto* failure = std::get_if<v1::Error>(&opened);
    if (!failure || failure->code() != "busy" || clock::now() >= until || asked_to_end)
      return opened;
    pollfd p{wake_fd, POLLIN, 0};
    ::poll(&p, 1, 100);
  }
}

void serve(engine::service& service, door::server& door, orphans& swept, start_lock& lock, const std::string& run,
           const settings& s, const std::function<void(std::string_view)>& log) {
  auto idle = seconds{s.idle_exit_s};
  auto unused = [&] {
    return s.idle_exit_s > 0 && door.active_calls() == 0 && service.sandbox_count() == 0 &&
           clock::now() - door.last_activity() >= idle;
  };
  while (!asked_to_end) {
    swept.sweep();
    if (unused()) {
      // With the lock in hand nobody is starting us; who has connected meanwhile keeps us.
      v1::Error why;
      const bool locked = lock.take(run, 1, why);
      const bool reachable = locked || why.code() != "host_io"; // a run directory that is gone has no socket
      if ((locked || !reachable) && unused()) {
        log("nobody needs this engine any more: it ends");
        return;
      }
      lock.release();
    }
    int timeout_ms = -1;
    if (s.idle_exit_s > 0)
      timeout_ms = static_cast<int>(s.idle_exit_s) * 1000 + 50;
    if (swept.any())
      timeout_ms = 5000;
    pollfd p{wake_fd, POLLIN, 0};
    if (::poll(&p, 1, timeout_ms) > 0) {
      std::uint64_t n = 0;
      [[maybe_unused]] auto got = ::read(wake_fd, &n, sizeof n);
    }
  }
  log("asked to end: the sandboxes run on");
  v1::Error why;
  lock.take(run, 5, why);
}

int run(const settings& s) {
  starter told{s.ready_fd};
  engine::options o;
  o.state_directory = s.state_dir;
  o.run_directory = s.run_dir;
  v1::Error why;
  auto directories = engine::prepare_directories(o, &why);
  if (!why.code().empty())
    return told.failed(why);
  start_lock lock;
  if (!lock.take(directories.run, 120, why))
    return told.failed(why);
  if (is_served(directories.socket)) {
    if (s.ready_fd < 0)
      return told.failed(
          door::make_error("busy", "state directory " + directories.state +
                                       ": another engine has it already; every command may use that one"));
    told.ready();
    return 0;
  }
  std::function<void(std::string_view)> log;
  try {
    log = open_log(directories.logs);
  } catch (const std::exception& e) {
    return told.failed(door::make_error("host_io", directories.logs + "/engine.log: " + e.what()));
  }
  o.log = log;
  auto opened = open_engine(o);
  if (auto* failure = std::get_if<v1::Error>(&opened)) {
    log("the engine cannot start: " + failure->text());
    return told.failed(*failure);
  }
  auto& service = *std::get<0>(opened);
  orphans swept{service, log};
  swept.look();
  auto started = door::server::start(service, {.socket = directories.socket,
                                               .log = log,
                                               .on_shut_down =
                                                   [] {
                                                     asked_to_end = true;
                                                     wake();
                                                   },
                                               .on_idle = [] { wake(); }});
  if (auto* failure = std::get_if<v1::Error>(&started))
    return told.failed(*failure);
  auto& door = *std::get<0>(started);
  [[maybe_unused]] int root = ::chdir("/");
  log("ready: state directory " + directories.state + ", socket " + directories.socket);
  lock.release();
  told.ready();
  serve(service, door, swept, lock, directories.run, s, log);
  door.stop(milliseconds{1000});
  std::get<0>(opened).reset();
  log("ended");
  return 0;
}

int main(int argc, char** argv) {
  settings s;
  CLI::App app{"The engine of one state directory, behind a Unix socket that only its owner may open.", "caissond"};
  app.add_option("--state-dir", s.state_dir, "Where sandboxes are remembered");
  app.add_option("--run-dir", s.run_dir, "Where sockets are made; on a tmpfs");
  app.add_option("--idle-exit-s", s.idle_exit_s, "End so many seconds after the last sandbox and call; 0: never");
  app.add_option("--ready-fd", s.ready_fd, "Go to the background and tell this descriptor when commands are taken")
      ->group("");
  app.set_version_flag("--version", CAISSON_VERSION);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  ::umask(0077);
  if (s.ready_fd >= 0)
    leave_starter();
  wake_fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  take_signals();
  return run(s);
}

} // namespace
} // namespace caisson::daemon

int main(int argc, char** argv) {
  return caisson::daemon::main(argc, argv);
}
