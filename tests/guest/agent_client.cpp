#include "tests/guest/agent_client.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <random>

namespace caisson::guest_protocol {

agent_client::agent_client(int fd) : session{events()}, fd_{fd} {
  ::fcntl(fd_, F_SETFL, ::fcntl(fd_, F_GETFL) | O_NONBLOCK);
  std::random_device random;
  session.open((static_cast<std::uint64_t>(random()) << 32 | random()) | 1);
}

agent_client::~agent_client() { ::close(fd_); }

host_events agent_client::events() {
  return {
      .on_hello = [this](const v1::AgentHello& h) { hello = h; },
      .on_reply =
          [this](const v1::AgentReply& r) {
            if (const auto it = commands_.find(r.id()); it != commands_.end()) {
              if (r.has_failure())
                it->second.failure = r.failure();
              else
                it->second.exec_id = r.exec_started().exec_id();
            }
            replies[r.id()] = r;
          },
      .on_notice =
          [this](const v1::AgentNotice& n) {
            if (n.has_exec_exited())
              for (auto& [id, c] : commands_)
                if (c.exec_id == n.exec_exited().exec_id())
                  c.exited = n.exec_exited();
            notices.push_back(n);
          },
      .on_data =
          [this](std::uint32_t stream, std::span<const std::byte> bytes) {
            if (auto* c = by_stream(stream))
              (stream == c->out ? c->output : c->errors)
                  .append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
            if (reading)
              session.consumed(stream, bytes.size());
            else if (auto* c = by_stream(stream))
              c->unread += bytes.size();
          },
      .on_eof = nullptr,
      .on_writable = nullptr,
      .on_stopped = [this](std::uint32_t stream) { stopped.push_back(stream); },
      .on_protocol_error = [this](const std::string& text) { protocol_error = text; },
  };
}

agent_client::command* agent_client::by_stream(std::uint32_t stream) {
  for (auto& [id, c] : commands_)
    if (stream == c.out || stream == c.err)
      return &c;
  return nullptr;
}

bool agent_client::wait(milliseconds limit, const std::function<bool()>& done) {
  const auto until = std::chrono::steady_clock::now() + limit;
  std::array<std::byte, 65536> input;
  for (;;) {
    if (done())
      return true;
    const auto left = std::chrono::duration_cast<milliseconds>(until - std::chrono::steady_clock::now());
    if (left.count() <= 0 || closed)
      return false;
    if (output_at_ == output_.size()) {
      output_ = session.take_output();
      output_at_ = 0;
    }
    pollfd p{fd_, static_cast<short>(POLLIN | (output_.empty() ? 0 : POLLOUT)), 0};
    if (::poll(&p, 1, static_cast<int>(left.count())) <= 0)
      continue;
    if (p.revents & POLLOUT)
      if (const auto n = ::send(fd_, output_.data() + output_at_, output_.size() - output_at_, MSG_NOSIGNAL); n > 0)
        output_at_ += static_cast<std::size_t>(n);
    if (p.revents & (POLLIN | POLLHUP)) {
      const auto n = ::read(fd_, input.data(), input.size());
      if (n > 0)
        session.feed(std::span{input}.first(static_cast<std::size_t>(n)));
      else if (n == 0 || errno != EAGAIN)
        closed = true;
    }
  }
}

std::uint64_t agent_client::send(v1::AgentRequest request) {
  request.set_id(next_request_++);
  if (const auto refused = session.send_request(request)) {
    v1::AgentReply local;
    local.mutable_failure()->set_text(*refused);
    replies[request.id()] = local;
  }
  return request.id();
}

std::optional<v1::AgentReply> agent_client::ask(v1::AgentRequest request, milliseconds limit) {
  const auto id = send(std::move(request));
  if (!wait(limit, [&] { return replies.contains(id); }))
    return std::nullopt;
  return replies[id];
}

agent_client::command& agent_client::start(std::vector<std::string> argv,
                                           const std::function<void(v1::ExecStart&)>& adjust) {
  v1::AgentRequest request;
  auto& exec = *request.mutable_exec_start();
  for (auto& argument : argv)
    exec.add_argv(std::move(argument));
  auto& c = commands_[next_request_];
  c.request = next_request_;
  c.in = next_stream_++;
  c.out = next_stream_++;
  c.err = next_stream_++;
  exec.set_stdin_stream(c.in);
  exec.set_stdout_stream(c.out);
  exec.set_stderr_stream(c.err);
  if (adjust)
    adjust(exec);
  send(std::move(request));
  return c;
}

bool agent_client::finish(command& c, milliseconds limit) {
  return wait(limit, [&] { return c.exited || c.failure; });
}

bool agent_client::write(command& c, const std::string& text, milliseconds limit) {
  std::size_t at = 0;
  return wait(limit, [&] {
    at += session.write(c.in, std::as_bytes(std::span{text}).subspan(at));
    return at == text.size();
  });
}

pid_t start_with_socket(std::vector<std::string> arguments, int& our_end) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0)
    return -1;
  our_end = ends[0];
  ::fcntl(our_end, F_SETFD, FD_CLOEXEC);
  arguments.insert(arguments.begin() + 1, {"--test-socket", std::to_string(ends[1])});
  std::vector<char*> argv;
  for (auto& argument : arguments)
    argv.push_back(argument.data());
  argv.push_back(nullptr);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  ::close(ends[1]);
  return pid;
}

} // namespace caisson::guest_protocol
