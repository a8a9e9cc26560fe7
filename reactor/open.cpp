#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <optional>

#include "reactor/core.hpp"

namespace caisson::reactor {
namespace {

using done_function = std::function<void(std::unique_ptr<byte_pipe>, std::string)>;

constexpr std::string_view unix_prefix = "unix:";
constexpr std::string_view hybrid_prefix = "hybrid-vsock:";
constexpr std::size_t longest_greeting_bytes = 64;
constexpr std::chrono::seconds greeting_time{10};
constexpr std::chrono::milliseconds hybrid_pause{100};
constexpr std::chrono::minutes hybrid_patience{5};

std::string says(const std::string& endpoint, const std::string& what) {
  return "channel \"" + endpoint + "\": " + what;
}

// A connected, non-blocking socket; -1 and the reason.
int connect_unix(const std::string& endpoint, std::string_view path, std::string& error) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.find('\0') != std::string_view::npos) {
    error = says(endpoint, "expected the path of a Unix socket");
    return -1;
  }
  if (path.size() > longest_socket_path_bytes) {
    error = says(endpoint, "the socket's path is " + std::to_string(path.size()) + " bytes long, the system takes " +
                               std::to_string(longest_socket_path_bytes) +
                               " at most; choose a shorter directory for sockets (--run-dir)");
    return -1;
  }
  path.copy(address.sun_path, path.size());
  int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  // A Unix socket connects at once or not at all: EAGAIN means that its listener's queue is full.
  if (fd >= 0 && ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0)
    return fd;
  int number = errno;
  if (fd >= 0)
    ::close(fd);
  error = says(endpoint, std::string{"cannot connect: "} +
                             (number == EAGAIN ? "its listener's queue is full" : std::strerror(number)) +
                             (number == ENOENT         ? "; whoever makes this socket has not made it yet, or has ended"
                              : number == ECONNREFUSED ? "; nobody listens there any more"
                              : number == EACCES       ? "; this user may not open it"
                                                       : ""));
  return -1;
}

// Cloud Hypervisor's way to a port of the guest: "CONNECT PORT\n" is answered with "OK ...\n"; by closing, while nothing in
// the guest listens there; and not at all, before the guest's driver is up.
class hybrid_opening final : public open_thing {
public:
  hybrid_opening(std::shared_ptr<core> on, std::string endpoint, std::string path, std::uint32_t port,
                 done_function done)
      : core_(std::move(on)), endpoint_(std::move(endpoint)), path_(std::move(path)), port_(port), fd_(core_->io),
        timer_(core_->io), done_(std::move(done)) {}

  std::shared_ptr<hybrid_opening> self() { return std::static_pointer_cast<hybrid_opening>(shared_from_this()); }

  void begin() {
    core_->enlist(shared_from_this());
    // Whoever asks again has given the earlier one up, and the guest would take a late one for the newest.
    auto& newest = core_->openings[endpoint_];
    if (auto earlier = std::exchange(newest, weak_from_this()).lock())
      std::static_pointer_cast<hybrid_opening>(earlier)->refuse("the channel was asked for once more");
    try_once();
  }

  void end() override { refuse("the reactor is ending"); }

private:
  void try_once() {
    ++tries_;
    answer_.clear();
    std::string error;
    const int fd = connect_unix(endpoint_, path_, error);
    if (fd < 0)
      return finish(nullptr, std::move(error));
    fd_.assign(fd);
    auto hello = "CONNECT " + std::to_string(port_) + "\n";
    if (::send(fd, hello.data(), hello.size(), MSG_DONTWAIT | MSG_NOSIGNAL) != static_cast<ssize_t>(hello.size()))
      return later("the VMM does not take the request for guest port " + std::to_string(port_));
    wake_after(greeting_time, [](hybrid_opening& o) {
      o.later("the VMM has not answered \"CONNECT " + std::to_string(o.port_) + "\" within 10 s");
    });
    await();
  }

  void wake_after(std::chrono::milliseconds time, void (*then)(hybrid_opening&)) {
    timer_.expires_after(time);
    timer_.async_wait([self = self(), then, at = tries_](boost::system::error_code failed) {
      if (!failed && self->done_ && at == self->tries_)
        then(*self);
    });
  }

  void await() {
    fd_.async_wait(asio::posix::stream_descriptor::wait_read, [self = self(), at = tries_](auto failed) {
      if (!failed && self->done_ && at == self->tries_)
        self->look();
    });
  }

  // Takes the line and not a byte more: what follows it is the guest's.
  void look() {
    char line[longest_greeting_bytes];
    auto seen = ::recv(fd_.native_handle(), line, sizeof line, MSG_PEEK | MSG_DONTWAIT);
    if (seen < 0 && (errno == EAGAIN || errno == EINTR))
      return await();
    if (seen <= 0)
      return later("closed by the VMM: nothing in the guest listens on port " + std::to_string(port_) + " yet");
    std::string_view text{line, static_cast<std::size_t>(seen)};
    auto newline = text.find('\n');
    // Consumed before more is waited for, so that the wait does not fire again for the same bytes.
    auto take = newline == std::string_view::npos ? text.size() : newline + 1;
    answer_.append(text.substr(0, take));
    [[maybe_unused]] auto n = ::recv(fd_.native_handle(), line, take, MSG_DONTWAIT);
    if (newline == std::string_view::npos && answer_.size() < longest_greeting_bytes)
      return await();
    if (answer_.size() > longest_greeting_bytes || !answer_.starts_with("OK ") || !answer_.ends_with('\n'))
      return refuse("the VMM has answered something that is not \"OK ...\": is this its hybrid vsock socket?");
    finish(make_pipe(core_, fd_.release()), {});
  }

  void later(const std::string& why) {
    if (!done_)
      return;
    boost::system::error_code ignored;
    fd_.close(ignored);
    if (std::chrono::steady_clock::now() - began_ >= hybrid_patience)
      return refuse(why);
    wake_after(hybrid_pause, [](hybrid_opening& o) { o.try_once(); });
  }

  void refuse(const std::string& why) { finish(nullptr, says(endpoint_, why)); }

  void finish(std::unique_ptr<byte_pipe> pipe, std::string error) {
    if (!done_)
      return;
    timer_.cancel();
    boost::system::error_code ignored;
    fd_.close(ignored);
    if (auto it = core_->openings.find(endpoint_); it != core_->openings.end() && it->second.lock() == shared_from_this())
      core_->openings.erase(it);
    const auto keep = shared_from_this();
    core_->dismiss(keep);
    std::exchange(done_, {})(std::move(pipe), std::move(error));
  }

  std::shared_ptr<core> core_;
  std::string endpoint_, path_;
  std::uint32_t port_;
  asio::posix::stream_descriptor fd_;
  asio::steady_timer timer_;
  const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
  std::uint64_t tries_ = 0;
  std::string answer_;
  done_function done_;
};

std::optional<std::uint32_t> parse_port(std::string_view text) {
  std::uint32_t port = 0;
  auto [end, bad] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (text.empty() || bad != std::errc{} || end != text.data() + text.size())
    return std::nullopt;
  return port;
}

} // namespace

void open_endpoint(const std::shared_ptr<core>& on, const std::string& endpoint, done_function done) {
  std::string_view text{endpoint};
  std::string error;
  if (on->ending)
    return done(nullptr, says(endpoint, "the reactor is ending"));
  if (text.starts_with(unix_prefix)) {
    int fd = connect_unix(endpoint, text.substr(unix_prefix.size()), error);
    return fd < 0 ? done(nullptr, error) : done(make_pipe(on, fd), {});
  }
  if (text.starts_with(hybrid_prefix)) {
    auto colon = text.rfind(':');
    auto path = colon < hybrid_prefix.size() ? std::string_view{}
                                             : text.substr(hybrid_prefix.size(), colon - hybrid_prefix.size());
    auto port = parse_port(text.substr(colon + 1));
    if (path.empty() || !port)
      return done(nullptr, says(endpoint, "expected hybrid-vsock:PATH:PORT"));
    return std::make_shared<hybrid_opening>(on, endpoint, std::string{path}, *port, std::move(done))->begin();
  }
  done(nullptr,
       says(endpoint, "expected unix:PATH or hybrid-vsock:PATH:PORT; other channels are opened by their backend"));
}

} // namespace caisson::reactor
