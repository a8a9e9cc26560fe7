// What a guest offers on Unix sockets of the host: its serial console, and the hybrid vsock.

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <map>
#include <utility>

#include "backends/cloud-hypervisor/double/posix_host.hpp"

namespace caisson::cloud_hypervisor::api_double {
namespace {

constexpr std::size_t kept_console_bytes = 64u << 10, most_connections = 1023, longest_command = 32;
constexpr std::uint32_t first_local_port = 1u << 30;
constexpr std::size_t piece_bytes = 16u << 10;

class socket_console : public console_sink {
public:
  socket_console(loop& on, std::string path, unique_fd listener)
      : loop_{on}, path_{std::move(path)}, listener_{std::move(listener)} {
    loop_.watch(listener_.get(), POLLIN, [this](short) { accept(); });
  }

  ~socket_console() override {
    loop_.forget(listener_.get());
    hang_up();
    ::unlink(path_.c_str());
  }

  void write(std::string_view text) override {
    waiting_ += text;
    if (waiting_.size() > kept_console_bytes)
      waiting_.erase(0, waiting_.size() - kept_console_bytes);
    follow();
  }

  void hang_up() override {
    if (client_)
      loop_.forget(client_.get());
    client_ = unique_fd{};
  }

private:
  void accept() {
    unique_fd fd{::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
    if (!fd)
      return;
    hang_up();
    client_ = std::move(fd);
    loop_.watch(client_.get(), POLLIN, [this](short events) { on_client(events); });
    follow();
  }

  void on_client(short events) {
    std::array<char, 512> typed{};
    if (events & (POLLIN | POLLHUP | POLLERR))
      if (const auto n = ::recv(client_.get(), typed.data(), typed.size(), 0); n == 0 || (n < 0 && errno != EAGAIN)) {
        hang_up();
        return;
      }
    if (events & POLLOUT) {
      const auto n = ::send(client_.get(), waiting_.data(), waiting_.size(), MSG_NOSIGNAL);
      if (n > 0)
        waiting_.erase(0, static_cast<std::size_t>(n));
      follow();
    }
  }

  void follow() {
    if (client_)
      loop_.change(client_.get(), static_cast<short>(POLLIN | (waiting_.empty() ? 0 : POLLOUT)));
  }

  loop& loop_;
  std::string path_;
  unique_fd listener_, client_;
  std::string waiting_;
};

class hybrid_vsock : public vsock_listener {
public:
  hybrid_vsock(loop& on, std::string path, unique_fd listener)
      : loop_{on}, path_{std::move(path)}, listener_{std::move(listener)} {}

  ~hybrid_vsock() override {
    loop_.forget(listener_.get());
    while (!connections_.empty())
      close(connections_.begin()->first);
    ::unlink(path_.c_str());
  }

  void guest_is_up(std::function<std::unique_ptr<guest_channel>(std::uint32_t)> connect) override {
    connect_ = std::move(connect);
    loop_.watch(listener_.get(), POLLIN, [this](short) { accept(); });
    loop_.set_aside(listener_.get(), frozen_);
  }

  void freeze(bool frozen) override {
    frozen_ = frozen;
    loop_.set_aside(listener_.get(), frozen);
    for (auto& [which, c] : connections_)
      follow(c);
  }

private:
  struct connection {
    unique_fd fd;
    std::string command; ///< until its line is whole
    std::unique_ptr<guest_channel> channel;
    std::string out, in; ///< on the way to the host; what the guest did not take
    bool planned = false; ///< `ready` is about to be called
  };
  using id = std::uint64_t;

  void accept() {
    unique_fd fd{::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
    if (!fd || connections_.size() >= most_connections)
      return;
    const auto which = ++last_;
    const auto number = fd.get();
    connections_[which].fd = std::move(fd);
    loop_.watch(number, POLLIN, [this, which](short events) { on_event(which, events); });
  }

  void on_event(id which, short events) {
    auto* c = find(which);
    if (!c)
      return;
    if (events & POLLOUT) {
      send(which, *c);
      if (!(c = find(which)))
        return;
    }
    if (events & (POLLIN | POLLHUP | POLLERR))
      receive(which, *c);
  }

  void receive(id which, connection& c) {
    if (!c.in.empty())
      return;
    std::array<char, piece_bytes> piece{};
    const auto n = ::recv(c.fd.get(), piece.data(), c.channel ? piece.size() : 1, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
      close(which);
      return;
    }
    if (n < 0)
      return;
    const std::string_view bytes{piece.data(), static_cast<std::size_t>(n)};
    if (c.channel) {
      c.in = bytes;
      pass_in(which);
      return;
    }
    c.command += bytes;
    if (bytes.back() == '\n')
      connect(which, c);
    else if (c.command.size() > longest_command)
      close(which);
  }

  void connect(id which, connection& c) {
    auto line = c.command;
    std::transform(line.begin(), line.end(), line.begin(), [](char x) { return x >= 'A' && x <= 'Z' ? char(x + 32) : x; });
    std::uint32_t port = 0;
    constexpr std::string_view verb = "connect ";
    const auto* end = line.data() + line.size() - 1;
    const bool good = line.starts_with(verb) && std::from_chars(line.data() + verb.size(), end, port).ptr == end;
    auto channel = good ? connect_(port) : nullptr;
    if (!channel) {
      close(which);
      return;
    }
    c.channel = std::move(channel);
    c.channel->on_ready = [this, which] {
      auto* mine = find(which);
      if (!mine || std::exchange(mine->planned, true))
        return;
      loop_.time.after({}, [this, which, weak = std::weak_ptr{alive_}] {
        if (!weak.expired())
          ready(which);
      });
    };
    c.out = "OK " + std::to_string(first_local_port + connected_++) + "\n";
    ready(which);
  }

  void ready(id which) {
    if (auto* c = find(which)) {
      c->planned = false;
      if (c->channel && c->channel->over())
        close(which);
      else
        pass_in(which);
    }
  }

  void pass_in(id which) {
    auto* c = find(which);
    if (!c || !c->channel || frozen_)
      return;
    if (!c->in.empty() && c->channel->receive(c->in)) {
      if (!(c = find(which)))
        return;
      c->in.clear();
    }
    if (c->out.empty())
      c->out = c->channel->take_output();
    follow(*c);
  }

  void send(id which, connection& c) {
    const auto n = ::send(c.fd.get(), c.out.data(), c.out.size(), MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
      close(which);
      return;
    }
    if (n > 0)
      c.out.erase(0, static_cast<std::size_t>(n));
    ready(which);
  }

  void follow(connection& c) {
    loop_.set_aside(c.fd.get(), frozen_);
    loop_.change(c.fd.get(), static_cast<short>((c.in.empty() ? POLLIN : 0) | (c.out.empty() ? 0 : POLLOUT)));
  }

  void close(id which) {
    const auto it = connections_.find(which);
    if (it == connections_.end())
      return;
    loop_.forget(it->second.fd.get());
    auto gone = std::move(it->second);
    connections_.erase(it);
    if (gone.channel)
      gone.channel->closed();
  }

  connection* find(id which) {
    const auto it = connections_.find(which);
    return it == connections_.end() ? nullptr : &it->second;
  }

  loop& loop_;
  std::string path_;
  unique_fd listener_;
  std::function<std::unique_ptr<guest_channel>(std::uint32_t)> connect_;
  std::map<id, connection> connections_;
  id last_ = 0;
  std::uint32_t connected_ = 0;
  bool frozen_ = false;
  std::shared_ptr<char> alive_ = std::make_shared<char>();
};

} // namespace

std::unique_ptr<console_sink> make_socket_console(loop& on, const std::string& path, int& error) {
  auto fd = listen_on(path, 1, error);
  return fd ? std::make_unique<socket_console>(on, path, std::move(fd)) : nullptr;
}

std::unique_ptr<vsock_listener> make_vsock_listener(loop& on, const std::string& path, int& error) {
  auto fd = listen_on(path, 128, error);
  return fd ? std::make_unique<hybrid_vsock>(on, path, std::move(fd)) : nullptr;
}

} // namespace caisson::cloud_hypervisor::api_double
