#include "tests/frontends/program.hpp"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <stdexcept>
#include <tuple>

extern char** environ;

namespace caisson::test {
namespace {

using clock = std::chrono::steady_clock;

void close_end(int& fd) {
  if (fd >= 0)
    ::close(fd);
  fd = -1;
}

int left_ms(clock::time_point until) {
  auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - clock::now()).count();
  return left > 0 ? static_cast<int>(left) : 0;
}

} // namespace

program::program(std::vector<std::string> words, std::string input, bool keep_stdin_open) {
  std::signal(SIGPIPE, SIG_IGN);
  int in[2], out[2], err[2];
  if (::pipe2(in, O_CLOEXEC) != 0 || ::pipe2(out, O_CLOEXEC) != 0 || ::pipe2(err, O_CLOEXEC) != 0)
    throw std::runtime_error{"no pipes"};
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_adddup2(&files, in[0], 0);
  posix_spawn_file_actions_adddup2(&files, out[1], 1);
  posix_spawn_file_actions_adddup2(&files, err[1], 2);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t all;
  sigfillset(&all);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
  posix_spawnattr_setsigdefault(&attributes, &all);
  std::vector<char*> argv;
  for (auto& w : words)
    argv.push_back(w.data());
  argv.push_back(nullptr);
  int error = ::posix_spawn(&pid_, argv[0], &files, &attributes, argv.data(), environ);
  posix_spawn_file_actions_destroy(&files);
  posix_spawnattr_destroy(&attributes);
  for (int fd : {in[0], out[1], err[1]})
    ::close(fd);
  in_ = in[1];
  out_ = out[0];
  err_ = err[0];
  if (error != 0)
    throw std::runtime_error{words[0] + " cannot be started"};
  ::fcntl(in_, F_SETFL, O_NONBLOCK);
  pending_ = std::move(input);
  close_when_sent_ = !keep_stdin_open;
  send_some();
}

program::~program() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  close_end(in_);
  close_end(out_);
  close_end(err_);
}

void program::send_some() {
  while (in_ >= 0 && !pending_.empty()) {
    auto n = ::write(in_, pending_.data(), pending_.size());
    if (n < 0 && errno == EAGAIN)
      return;
    if (n < 0 && errno != EINTR)
      pending_.clear();
    else if (n > 0)
      pending_.erase(0, static_cast<std::size_t>(n));
  }
  if (close_when_sent_)
    close_end(in_);
}

void program::signal(int number) {
  ::kill(pid_, number);
}

bool program::read_some(int timeout_ms) {
  pollfd fds[3] = {{out_, POLLIN, 0}, {err_, POLLIN, 0}, {pending_.empty() ? -1 : in_, POLLOUT, 0}};
  if (out_ < 0 && err_ < 0)
    return false;
  ::poll(fds, 3, timeout_ms);
  if (fds[2].revents != 0)
    send_some();
  char buffer[64 * 1024];
  for (auto [fd, end, text] : {std::tuple{&fds[0], &out_, &result_.out}, std::tuple{&fds[1], &err_, &result_.err}}) {
    if (fd->fd < 0 || fd->revents == 0)
      continue;
    auto n = ::read(fd->fd, buffer, sizeof buffer);
    if (n > 0)
      text->append(buffer, static_cast<std::size_t>(n));
    else if (n == 0)
      close_end(*end);
  }
  return out_ >= 0 || err_ >= 0;
}

bool program::wait_output(const std::string& text, int at_most_s) {
  auto until = clock::now() + std::chrono::seconds{at_most_s};
  while (result_.out.find(text) == std::string::npos)
    if (clock::now() >= until || !read_some(left_ms(until)))
      return result_.out.find(text) != std::string::npos;
  return true;
}

program_result program::finish(int at_most_s) {
  close_when_sent_ = true;
  send_some();
  auto until = clock::now() + std::chrono::seconds{at_most_s};
  while (clock::now() < until && read_some(left_ms(until))) {
  }
  int pidfd = static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0));
  pollfd p{pidfd, POLLIN, 0};
  bool ended = ::poll(&p, 1, left_ms(until) + 200) > 0;
  ::close(pidfd);
  if (!ended)
    ::kill(pid_, SIGKILL);
  int status = 0;
  ::waitpid(pid_, &status, 0);
  pid_ = -1;
  if (ended)
    result_.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result_;
}

program_result run_program(std::vector<std::string> words, std::string input, int at_most_s) {
  program p{std::move(words), std::move(input)};
  return p.finish(at_most_s);
}

} // namespace caisson::test
