#include "tests/backends/qemu/backend_client.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>

namespace caisson::tests {

namespace fs = std::filesystem;
using clock = std::chrono::steady_clock;

backend_client::backend_client(const std::string& program, const std::string& directory, const std::string& cache) {
  for (auto name : {"state", "run", "log"})
    fs::create_directories(directory + "/" + name);
  fs::create_directories(cache);
  int ends[2];
  ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends);
  std::vector<std::string> arguments{program, "--state", directory + "/state", "--run",  directory + "/run",
                                     "--cache", cache, "--log", directory + "/log"};
  std::vector<char*> raw;
  for (auto& a : arguments)
    raw.push_back(a.data());
  raw.push_back(nullptr);
  pid_ = ::fork();
  if (pid_ == 0) {
    ::setsid();
    if (ends[1] == host::protocol_fd)
      ::fcntl(host::protocol_fd, F_SETFD, 0);
    else
      ::dup2(ends[1], host::protocol_fd);
    ::dup2(::open("/dev/null", O_RDONLY), 0);
    ::execv(raw[0], raw.data());
    ::_exit(127);
  }
  ::close(ends[1]);
  fd_ = ends[0];
}

backend_client::~backend_client() {
  ::close(fd_);
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
}

void backend_client::kill9() {
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

std::uint64_t backend_client::send(v1::BackendCall call) {
  call.set_id(next_id_++);
  auto frame = host::to_frame(call).value();
  for (std::size_t at = 0; at < frame.size();) {
    auto n = ::send(fd_, frame.data() + at, frame.size() - at, MSG_NOSIGNAL);
    if (n <= 0)
      break;
    at += static_cast<std::size_t>(n);
  }
  return call.id();
}

bool backend_client::read_some(milliseconds limit) {
  pollfd p{fd_, POLLIN, 0};
  if (::poll(&p, 1, static_cast<int>(limit.count())) <= 0)
    return false;
  std::array<std::byte, 4096> buffer;
  auto n = ::read(fd_, buffer.data(), buffer.size());
  if (n <= 0 || !reader_.feed({buffer.data(), static_cast<std::size_t>(n)}))
    return false;
  while (auto message = reader_.next()) {
    v1::BackendSays says;
    if (!says.ParseFromArray(message->data(), static_cast<int>(message->size())))
      return false;
    if (says.has_answer())
      answers_[says.answer().id()] = says.answer();
    else if (says.has_event())
      events.push_back(says.event());
    else if (says.has_ready())
      ready = says.ready();
    else
      log.push_back(says.log_line());
  }
  return true;
}

bool backend_client::wait(milliseconds limit, const std::function<bool()>& done) {
  auto until = clock::now() + limit;
  while (!done()) {
    auto left = std::chrono::duration_cast<milliseconds>(until - clock::now());
    if (left.count() <= 0 || (!read_some(left) && clock::now() < until && !done()))
      return done();
  }
  return true;
}

std::optional<v1::BackendAnswer> backend_client::wait_answer(std::uint64_t id, milliseconds limit) {
  if (!wait(limit, [&] { return answers_.contains(id); }))
    return {};
  return answers_.at(id);
}

std::optional<v1::BackendAnswer> backend_client::ask(v1::BackendCall call, milliseconds limit) {
  return wait_answer(send(std::move(call)), limit);
}

bool backend_client::wait_event(v1::VmEvent::Kind kind, milliseconds limit) {
  return wait(limit, [&] {
    return std::any_of(events.begin(), events.end(), [&](const auto& e) { return e.kind() == kind; });
  });
}

} // namespace caisson::tests
