#include "guest/agent/spawn.hpp"

#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace caisson::agent {

namespace {

constexpr const char* default_path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";

constexpr rlim_t open_files = 1024;

struct child_ends {
  unique_fd in, out, err;
};

bool make_pipe(unique_fd& read_end, unique_fd& write_end, bool agent_reads) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0)
    return false;
  read_end.reset(ends[0]);
  write_end.reset(ends[1]);
  const int ours = agent_reads ? ends[0] : ends[1];
  return ::fcntl(ours, F_SETFL, ::fcntl(ours, F_GETFL) | O_NONBLOCK) == 0;
}

bool make_pipes(spawned& agent, child_ends& child) {
  return make_pipe(child.in, agent.in, false) && make_pipe(agent.out, child.out, true) &&
         make_pipe(agent.err, child.err, true);
}

bool make_terminal(const v1::ExecStart& request, spawned& agent, child_ends& child) {
  agent.out.reset(::open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK));
  int unlock = 0;
  if (!agent.out || ::ioctl(agent.out.get(), TIOCSPTLCK, &unlock) != 0)
    return false;
  child.in.reset(::ioctl(agent.out.get(), TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!child.in)
    return false;
  if (request.rows() != 0 && request.columns() != 0) {
    winsize size{};
    size.ws_row = static_cast<unsigned short>(request.rows());
    size.ws_col = static_cast<unsigned short>(request.columns());
    ::ioctl(agent.out.get(), TIOCSWINSZ, &size);
  }
  agent.in.reset(::fcntl(agent.out.get(), F_DUPFD_CLOEXEC, 3));
  return static_cast<bool>(agent.in);
}

std::vector<std::string> environment(const v1::ExecStart& request) {
  std::vector<std::string> variables;
  const auto add_unless_given = [&](const std::string& assignment) {
    const auto name = assignment.substr(0, assignment.find('=') + 1);
    for (const auto& given : request.environment())
      if (given.starts_with(name))
        return;
    variables.push_back(assignment);
  };
  add_unless_given(default_path);
  add_unless_given("HOME=/root");
  if (request.terminal())
    add_unless_given("TERM=xterm");
  variables.insert(variables.end(), request.environment().begin(), request.environment().end());
  return variables;
}

[[noreturn]] void complain(const std::string& name, int error_number, int code) {
  std::string line = "caisson-agent: " + name + ": " + strerror(error_number) + "\n";
  [[maybe_unused]] const auto n = ::write(STDERR_FILENO, line.data(), line.size());
  _exit(code);
}

[[noreturn]] void become(const v1::ExecStart& request, const child_ends& child, std::vector<char*>& argv,
                         std::vector<char*>& envp) {
  ::setsid();
  if (request.terminal())
    ::ioctl(child.in.get(), TIOCSCTTY, 0);
  ::dup2(child.in.get(), STDIN_FILENO);
  ::dup2(request.terminal() ? child.in.get() : child.out.get(), STDOUT_FILENO);
  ::dup2(request.terminal() ? child.in.get() : child.err.get(), STDERR_FILENO);
  reset_signals();
  // The agent's own limit is higher: it holds three descriptors a command.
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur > open_files) {
    files.rlim_cur = open_files;
    ::setrlimit(RLIMIT_NOFILE, &files);
  }
  ::umask(022);
  const auto& directory = request.working_directory();
  if (::chdir(directory.empty() ? "/" : directory.c_str()) != 0)
    complain(directory, errno, 126);
  environ = envp.data();
  ::execvp(argv[0], argv.data());
  const int why = errno;
  complain(argv[0], why, why == ENOENT || why == ENOTDIR ? 127 : 126);
}

/// A fork whose child is in the group already: what it takes is counted there, and no running process has to be moved.
/// The agent has one thread, so that the bare system call will do.
pid_t fork_into(const std::string& cgroup) {
  if (cgroup.empty())
    return ::fork();
  const unique_fd group{::open(cgroup.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  clone_args how{};
  how.flags = CLONE_INTO_CGROUP;
  how.exit_signal = SIGCHLD;
  how.cgroup = static_cast<std::uint64_t>(group.get());
  return group ? static_cast<pid_t>(::syscall(SYS_clone3, &how, sizeof how)) : -1;
}

} // namespace

void reset_signals() {
  ::signal(SIGPIPE, SIG_DFL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

spawned spawn(const v1::ExecStart& request, const std::string& cgroup) {
  spawned agent;
  child_ends child;
  const auto refuse = [&](const char* what) {
    agent.error_number = errno;
    agent.what = what;
    return std::move(agent);
  };
  if (request.terminal() ? !make_terminal(request, agent, child) : !make_pipes(agent, child))
    return refuse(request.terminal() ? "cannot make a terminal" : "cannot make pipes");
  // Everything that needs memory is made before the fork.
  auto variables = environment(request);
  std::vector<char*> argv, envp;
  for (const auto& argument : request.argv())
    argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  for (auto& variable : variables)
    envp.push_back(variable.data());
  envp.push_back(nullptr);
  const pid_t pid = fork_into(cgroup);
  if (pid < 0)
    return refuse("cannot start a process");
  if (pid == 0)
    become(request, child, argv, envp);
  agent.pid = pid;
  return agent;
}

} // namespace caisson::agent
