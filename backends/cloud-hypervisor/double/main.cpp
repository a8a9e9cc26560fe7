// caisson-ch-double: a process that answers like Cloud Hypervisor, for tests of whatever drives one.

#include <fcntl.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <utility>

#include "backends/cloud-hypervisor/double/command_line.hpp"
#include "backends/cloud-hypervisor/double/model.hpp"
#include "backends/cloud-hypervisor/double/posix_host.hpp"
#include "backends/cloud-hypervisor/double/server.hpp"

namespace {

using namespace caisson::cloud_hypervisor::api_double;

/// A way to end with 1 and the chain of causes on standard error.
struct fatal {
  std::vector<std::string> chain;
};

[[noreturn]] void fail_start(std::vector<std::string> chain) {
  throw fatal{std::move(chain)};
}

const std::string start_failed = "Failed to start the VMM thread", socket_failed = "Error creation API server's socket";

/// Held as long as the process lives, so that a second one on the same path ends at once (since v53).
unique_fd lock_socket(const std::string& path) {
  unique_fd lock{::open((path + ".lock").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600)};
  if (!lock)
    fail_start({start_failed, socket_failed, os_error(errno)});
  struct flock whole {};
  whole.l_type = F_WRLCK;
  whole.l_whence = SEEK_SET;
  if (::fcntl(lock.get(), F_OFD_SETLK, &whole) != 0)
    fail_start({start_failed, "API socket \"" + path + "\" is already in use by another running instance"});
  ::unlink(path.c_str()); // whatever is there is stale
  return lock;
}

event_sink open_events(const command_line& c) {
  event_sink sink;
  sink.lose_each = c.faults.events_lost;
  if (c.event_monitor_fd >= 0) {
    sink.fd = unique_fd{c.event_monitor_fd};
    ::fcntl(c.event_monitor_fd, F_SETFL, ::fcntl(c.event_monitor_fd, F_GETFL) | O_NONBLOCK);
  } else if (!c.event_monitor_path.empty()) {
    sink.fd = unique_fd{::open(c.event_monitor_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
    if (!sink.fd)
      fail_start({"Error doing event monitor I/O", os_error(errno)});
  }
  return sink;
}

int serve(command_line& c) {
  if (!c.failure.empty())
    fail_start({c.failure});
  ::umask(077);
  ::signal(SIGPIPE, SIG_IGN);
  sigset_t ending;
  sigemptyset(&ending);
  sigaddset(&ending, SIGTERM);
  sigaddset(&ending, SIGINT);
  ::sigprocmask(SIG_BLOCK, &ending, nullptr);
  const unique_fd signals{::signalfd(-1, &ending, SFD_CLOEXEC | SFD_NONBLOCK)};
  if (!c.log_file.empty() && !std::freopen(c.log_file.c_str(), "w", stderr))
    fail_start({"Error creating log file", os_error(errno)});

  loop events_loop;
  posix_host host{events_loop, open_events(c)};
  unique_fd lock, listener;
  if (c.api_socket_fd >= 0) {
    listener = unique_fd{c.api_socket_fd};
    ::fcntl(c.api_socket_fd, F_SETFL, ::fcntl(c.api_socket_fd, F_GETFL) | O_NONBLOCK);
  } else if (!c.api_socket_path.empty()) {
    if (c.as > profile::v51_1)
      lock = lock_socket(c.api_socket_path);
    int error = 0;
    listener = listen_on(c.api_socket_path, 128, error);
    if (error)
      fail_start({start_failed, socket_failed, os_error(error)});
  }
  host.event("vmm", "starting", {});

  model vmm{{c.as, c.faults, c.no_shutdown, ::getpid()}, host, events_loop.time};
  vmm.on_exit = [&] { events_loop.stop(0); };
  const auto leave = [&](int code, bool clean) {
    if (!clean)
      ::_exit(code); // leaves everything behind that a crash leaves
    events_loop.stop(code);
  };
  events_loop.watch(signals.get(), POLLIN, [&](short) {
    vmm.shut_down();
    events_loop.stop(0);
  });
  std::optional<api_server> server;
  if (listener)
    server.emplace(events_loop, std::move(listener), body_limit_bytes(c.as), c.faults,
                   api_server::telling{[&](request r) { return vmm.handle(std::move(r)); }, leave});
  const auto code = events_loop.run();
  events_loop.forget(signals.get());
  if (!c.api_socket_path.empty() && !c.faults.stale_socket)
    ::unlink(c.api_socket_path.c_str());
  return code;
}

} // namespace

int main(int argc, char** argv) {
  auto c = read_command_line({argv + 1, argv + argc});
  if (!c.problem.empty()) {
    std::cerr << c.problem << "\n";
    return 2;
  }
  if (c.help) {
    std::cout << help_text();
    return 0;
  }
  if (c.version) {
    std::cout << "cloud-hypervisor " << name_of(c.as) << "\n";
    if (c.as > profile::v51_1)
      std::cout << "Migration Protocol Versions: 0\n";
    if (c.verbosity > 0)
      std::cout << "Enabled features: [\"io_uring\", \"kvm\"]\n";
    std::cout << "caisson-ch-double: a double for tests; no hypervisor\n";
    return 0;
  }
  try {
    return serve(c);
  } catch (const fatal& f) {
    std::cerr << "Error: Cloud Hypervisor exited with the following chain of errors:\n";
    for (std::size_t i = 0; i < f.chain.size(); ++i)
      std::cerr << "  " << i << ": " << f.chain[i] << "\n";
    return 1;
  }
}
