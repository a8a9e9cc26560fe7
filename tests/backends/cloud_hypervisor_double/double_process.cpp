#include "tests/backends/cloud_hypervisor_double/double_process.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

extern char** environ;

namespace caisson::cloud_hypervisor::tests {
namespace {

namespace fs = std::filesystem;

constexpr int event_fd = 3;

bool ready(int fd, short events, std::chrono::milliseconds limit) {
  pollfd p{fd, events, 0};
  return ::poll(&p, 1, static_cast<int>(limit.count())) > 0;
}

std::string slurp(const std::string& path) {
  std::ifstream in{path, std::ios::binary};
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

/// Starts the program with its outputs in files and, where wanted, a pipe as its descriptor 3.
int start(const std::vector<std::string>& arguments, const std::vector<std::string>& environment, const std::string& out,
          const std::string& err, int pipe_end) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_addopen(&actions, 2, err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (pipe_end >= 0)
    posix_spawn_file_actions_adddup2(&actions, pipe_end, event_fd);
  std::vector<char*> argv, env;
  std::string name = CAISSON_CH_DOUBLE;
  argv.push_back(name.data());
  for (const auto& a : arguments)
    argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  for (auto** e = environ; *e; ++e)
    if (!std::string_view{*e}.starts_with("CAISSON_CH_"))
      env.push_back(*e);
  for (const auto& e : environment)
    env.push_back(const_cast<char*>(e.c_str()));
  env.push_back(nullptr);
  int pid = -1;
  const auto problem = ::posix_spawn(&pid, argv[0], &actions, nullptr, argv.data(), env.data());
  posix_spawn_file_actions_destroy(&actions);
  if (problem != 0)
    throw std::runtime_error{std::string{"cannot start "} + argv[0] + ": " + std::strerror(problem)};
  return pid;
}

int code_of(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

int reap(int pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return code_of(status);
}

} // namespace

scratch::scratch() {
  char name[] = "/tmp/chd-XXXXXX";
  top_ = ::mkdtemp(name);
}

scratch::~scratch() {
  std::error_code ignored;
  fs::remove_all(top_, ignored);
}

std::string scratch::file(const std::string& name, std::string_view content, std::uint64_t size) const {
  const auto where = path(name);
  fs::create_directories(fs::path{where}.parent_path());
  std::ofstream{where, std::ios::binary} << content;
  if (size > 0)
    fs::resize_file(where, size);
  return where;
}

stream::stream(const std::string& socket_path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socket_path.copy(address.sun_path, sizeof address.sun_path - 1);
  fd_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    error_ = errno;
    ::close(std::exchange(fd_, -1));
  }
}

stream::~stream() {
  if (fd_ >= 0)
    ::close(fd_);
}

bool stream::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const auto n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n < 0)
      return false;
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  return true;
}

void stream::send_with_descriptors(std::string_view bytes, const std::vector<int>& descriptors) {
  std::vector<char> control(CMSG_SPACE(descriptors.size() * sizeof(int)));
  iovec place{const_cast<char*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &place;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  auto* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
  std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size() * sizeof(int));
  (void)::sendmsg(fd_, &message, MSG_NOSIGNAL);
}

void stream::half_close() {
  ::shutdown(fd_, SHUT_WR);
}

std::string stream::receive(std::string& into, const std::function<bool(const std::string&)>& enough,
                            std::chrono::milliseconds limit) {
  std::array<char, 4096> piece{};
  into += std::exchange(kept_, {});
  while (!enough(into)) {
    if (!ready(fd_, POLLIN, limit))
      return "silence";
    const auto n = ::recv(fd_, piece.data(), piece.size(), 0);
    if (n == 0)
      return "EOF";
    if (n < 0)
      return "reset";
    into.append(piece.data(), static_cast<std::size_t>(n));
  }
  return {};
}

std::string stream::rest(std::string* how) {
  std::string out;
  const auto end = receive(out, [](const std::string&) { return false; });
  if (how)
    *how = end;
  return out;
}

answer read_reply(stream& from) {
  std::string text;
  const auto header_end = [](const std::string& t) { return t.find("\r\n\r\n"); };
  if (auto end = from.receive(text, [&](const std::string& t) { return header_end(t) != t.npos; }); !end.empty())
    return {"---", text, {}, end};
  const auto split = header_end(text) + 4;
  answer a;
  a.head = text.substr(0, split);
  constexpr std::string_view name = "\r\nContent-Length: ";
  std::size_t length = 0;
  if (const auto at = a.head.find(name); at != a.head.npos)
    length = std::stoul(a.head.substr(at + name.size()));
  a.end = from.receive(text, [&](const std::string& t) { return t.size() >= split + length; });
  a.code = a.end.empty() ? a.head.substr(9, 3) : "---";
  a.body = text.substr(split, length);
  if (a.end.empty())
    from.keep(text.substr(split + length));
  return a;
}

std::string request_text(const std::string& method, const std::string& endpoint, const std::optional<std::string>& body) {
  auto out = method + " /api/v1/" + endpoint + " HTTP/1.1\r\nHost: localhost\r\n";
  if (body)
    out += "Content-Type: application/json\r\nContent-Length: " + std::to_string(body->size()) + "\r\n";
  return out + "\r\n" + body.value_or("");
}

double_process::double_process(std::string directory, std::vector<std::string> arguments)
    : directory_{std::move(directory)} {
  fs::create_directories(directory_);
  socket_ = directory_ + "/api.sock";
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0)
    throw std::runtime_error{"no pipe"};
  event_pipe_ = ends[0];
  std::vector<std::string> all{"--api-socket", "path=" + socket_, "--event-monitor",
                               "fd=" + std::to_string(event_fd)};
  all.insert(all.end(), arguments.begin(), arguments.end());
  pid_ = start(all, {}, directory_ + "/out", directory_ + "/err", ends[1]);
  ::close(ends[1]);
  pidfd_ = static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0));
  // Its first event comes once it listens.
  while (events_.find("starting") == events_.npos)
    if (!read_events(patience))
      throw std::runtime_error{"the double did not start: " + errors()};
}

double_process::double_process(double_process&& other) noexcept
    : directory_{std::move(other.directory_)}, socket_{std::move(other.socket_)}, events_{std::move(other.events_)},
      seen_{other.seen_}, pid_{std::exchange(other.pid_, -1)}, pidfd_{std::exchange(other.pidfd_, -1)},
      event_pipe_{std::exchange(other.event_pipe_, -1)}, status_{other.status_} {}

double_process::~double_process() {
  if (pid_ >= 0 && !status_) {
    ::kill(pid_, SIGKILL);
    reap(pid_);
  }
  if (pidfd_ >= 0)
    ::close(pidfd_);
  if (event_pipe_ >= 0)
    ::close(event_pipe_);
}

bool double_process::read_events(std::chrono::milliseconds limit) {
  if (!ready(event_pipe_, POLLIN, limit))
    return false;
  std::array<char, 4096> piece{};
  const auto n = ::read(event_pipe_, piece.data(), piece.size());
  if (n > 0)
    events_.append(piece.data(), static_cast<std::size_t>(n));
  return n > 0;
}

std::optional<json> double_process::await_event(const std::string& name, const std::function<bool(const json&)>& also) {
  for (;;) {
    if (const auto end = events_.find("\n\n", seen_); end != events_.npos) {
      const auto event = json::parse(events_.substr(seen_, end - seen_));
      seen_ = end + 2;
      const auto called = event["source"].get<std::string>() + "/" + event["event"].get<std::string>();
      if (called == name && (!also || also(event["properties"])))
        return event["properties"];
    } else if (!read_events(patience)) {
      return std::nullopt;
    }
  }
}

std::string double_process::events_to_the_end() {
  while (read_events(patience)) {
  }
  return events_;
}

answer double_process::ask(const std::string& method, const std::string& endpoint,
                           const std::optional<std::string>& body) {
  stream s{socket_};
  if (!s.connected())
    return {"---", {}, {}, s.connect_error() == ECONNREFUSED ? "refused" : "gone"};
  s.send(request_text(method, endpoint, body));
  return read_reply(s);
}

void double_process::signal(int number) {
  ::kill(pid_, number);
}

bool double_process::has_ended() {
  return status_ || ready(pidfd_, POLLIN, std::chrono::milliseconds{0});
}

int double_process::wait() {
  if (!status_) {
    if (!ready(pidfd_, POLLIN, patience))
      ::kill(pid_, SIGKILL);
    status_ = reap(pid_);
  }
  return *status_;
}

std::string double_process::errors() const {
  return slurp(directory_ + "/err");
}

finished run_double(std::vector<std::string> arguments, std::vector<std::string> environment) {
  const scratch at;
  finished f;
  const auto pid = start(arguments, environment, at.path("out"), at.path("err"), -1);
  const auto pidfd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  if (!ready(pidfd, POLLIN, patience))
    ::kill(pid, SIGKILL);
  ::close(pidfd);
  f.code = reap(pid);
  f.out = slurp(at.path("out"));
  f.err = slurp(at.path("err"));
  return f;
}

json small_vm(const scratch& at, const json& more) {
  json c{{"cpus", json{{"boot_vcpus", 1}, {"max_vcpus", 4}}},
         {"memory", json{{"size", 256u << 20}}},
         {"payload", json{{"kernel", at.kernel()}}},
         {"serial", json{{"mode", "Null"}}},
         {"console", json{{"mode", "Off"}}}};
  for (const auto& [name, value] : more.items())
    c[name] = value;
  return c;
}

} // namespace caisson::cloud_hypervisor::tests
