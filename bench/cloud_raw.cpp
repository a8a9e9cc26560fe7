#include "bench/cloud_raw.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>
#include <utility>
#include <vector>

namespace caisson::bench {
namespace {

constexpr int answer_within_ms = 90'000;
constexpr int connect_attempts = 10'000; // a millisecond between two

} // namespace

cloud_raw::cloud_raw(const std::string& program, const std::string& socket) : socket_{socket} {
  std::vector<std::string> words{program, "--api-socket", "path=" + socket, "--event-monitor",
                                 "path=" + socket + "-events"};
  std::vector<char*> argv;
  for (auto& word : words)
    argv.push_back(word.data());
  argv.push_back(nullptr);
  std::string tunable = "GLIBC_TUNABLES=glibc.malloc.arena_max=1"; // the same that the backend has to give it
  char* environment[] = {tunable.data(), nullptr};
  posix_spawn_file_actions_t files;
  ::posix_spawn_file_actions_init(&files);
  for (int fd : {1, 2})
    ::posix_spawn_file_actions_addopen(&files, fd, "/dev/null", O_WRONLY, 0);
  const int rc = ::posix_spawn(&pid_, program.c_str(), &files, nullptr, argv.data(), environment);
  ::posix_spawn_file_actions_destroy(&files);
  if (rc != 0) {
    pid_ = -1;
    failure_ = program + " cannot be started";
    return;
  }
  pidfd_ = static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0));
  for (int attempt = 0; !connected(); ++attempt)
    if (attempt == connect_attempts || await_end(1)) {
      failure_ = program + " does not serve its API on " + socket;
      return;
    }
}

cloud_raw::~cloud_raw() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  for (int fd : {pidfd_, fd_})
    if (fd >= 0)
      ::close(fd);
  for (const auto* ending : {"", ".lock", "-events"})
    ::unlink((socket_ + ending).c_str());
}

bool cloud_raw::connected() {
  fd_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socket_.copy(address.sun_path, sizeof address.sun_path - 1);
  if (::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
    return true;
  ::close(std::exchange(fd_, -1));
  return false;
}

bool cloud_raw::more(std::string& into) {
  char part[16 * 1024];
  pollfd p{fd_, POLLIN, 0};
  if (::poll(&p, 1, answer_within_ms) != 1)
    return false;
  const auto got = ::recv(fd_, part, sizeof part, 0);
  if (got <= 0)
    return false;
  into.append(part, static_cast<std::size_t>(got));
  return true;
}

raw_answer cloud_raw::ask(const cloud_hypervisor::request& what) {
  auto text = what.method + " " + what.path + " HTTP/1.1\r\nHost: localhost\r\n";
  if (!what.body.empty())
    text += "Content-Type: application/json\r\nContent-Length: " + std::to_string(what.body.size()) + "\r\n";
  text += "\r\n" + what.body;
  if (::send(fd_, text.data(), text.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(text.size()))
    return {};
  std::string got;
  auto end = got.npos;
  while ((end = got.find("\r\n\r\n")) == got.npos)
    if (!more(got))
      return {};
  raw_answer answer;
  answer.status = got.size() > 12 ? std::atoi(got.c_str() + 9) : 0;
  constexpr std::string_view name = "Content-Length: ";
  const auto at = got.find(name);
  const auto length = at < end ? std::strtoull(got.c_str() + at + name.size(), nullptr, 10) : 0;
  while (got.size() < end + 4 + length)
    if (!more(got))
      return {};
  answer.body = got.substr(end + 4, length);
  return answer;
}

bool cloud_raw::await_end(int within_ms) {
  if (pid_ < 0)
    return true;
  pollfd p{pidfd_, POLLIN, 0};
  if (::poll(&p, 1, within_ms) != 1)
    return false;
  ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
  return true;
}

} // namespace caisson::bench
