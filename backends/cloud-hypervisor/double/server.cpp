#include "backends/cloud-hypervisor/double/server.hpp"

#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

namespace caisson::cloud_hypervisor::api_double {
namespace {

constexpr std::size_t most_connections = 10, most_descriptors = 253;
constexpr short reading = POLLIN | POLLRDHUP, writing = POLLOUT | POLLRDHUP;

std::string endpoint_of(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

} // namespace

api_server::api_server(loop& on, unique_fd listener, std::size_t body_limit_bytes, knobs& faults, telling tell)
    : loop_{on}, listener_{std::move(listener)}, limit_{body_limit_bytes}, faults_{faults}, tell_{std::move(tell)} {
  loop_.watch(listener_.get(), POLLIN, [this](short) { accept(); });
}

api_server::~api_server() {
  loop_.forget(listener_.get());
  for (const auto& [which, c] : connections_)
    loop_.forget(c.fd.get());
}

void api_server::accept() {
  unique_fd fd{::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
  if (!fd)
    return;
  if (faults_.full || connections_.size() >= most_connections) {
    const auto text = full_text();
    (void)!::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL);
    return;
  }
  const auto which = ++last_;
  const auto number = fd.get();
  connections_.emplace(which, connection{std::move(fd), http_input{limit_}, {}, 0, false, false, false});
  loop_.watch(number, reading, [this, which](short events) { on_event(which, events); });
}

void api_server::on_event(id which, short events) {
  const auto it = connections_.find(which);
  if (it == connections_.end())
    return;
  auto& c = it->second;
  if (events & (POLLERR | POLLHUP | POLLRDHUP)) {
    break_off(which, c);
    return;
  }
  if (events & POLLIN)
    read(which, c);
  else if (events & POLLOUT)
    write(which, c);
}

/// The other end takes nothing any more.
void api_server::break_off(id which, connection& c) {
  c.out.clear();
  c.closed = true;
  if (c.last)
    tell_.exit(0, true);
  drop(which);
}

/// Gone once nothing of it is under way.
void api_server::drop(id which) {
  const auto it = connections_.find(which);
  if (it == connections_.end())
    return;
  if (it->second.in_flight > 0) {
    loop_.set_aside(it->second.fd.get(), true);
    return;
  }
  loop_.forget(it->second.fd.get());
  connections_.erase(it);
}

void api_server::read(id which, connection& c) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(most_descriptors * sizeof(int))> control{};
  iovec place{c.input.space(), c.input.room()};
  msghdr message{};
  message.msg_iov = &place;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const auto count = ::recvmsg(c.fd.get(), &message, MSG_CMSG_CLOEXEC);
  if (count <= 0) {
    if (count < 0 && (errno == EAGAIN || errno == EINTR))
      return;
    c.closed = true;
    drop(which);
    return;
  }
  std::vector<int> descriptors;
  for (auto* h = CMSG_FIRSTHDR(&message); h; h = CMSG_NXTHDR(&message, h)) {
    if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
      continue;
    const auto bytes = h->cmsg_len - CMSG_LEN(0);
    descriptors.resize(bytes / sizeof(int));
    std::memcpy(descriptors.data(), CMSG_DATA(h), bytes);
  }
  auto got = c.input.take(static_cast<std::size_t>(count), descriptors);
  if (!got.interim.empty())
    c.out.push_back(std::move(got.interim));
  if (got.mistake)
    c.out.push_back(mistake_text(*got.mistake));
  c.in_flight += static_cast<std::uint32_t>(got.requests.size());
  for (auto& r : got.requests)
    requests_.emplace_back(which, std::move(r));
  follow(c);
  next_request();
}

/// Reads while nothing waits to be written, as the API's library does.
void api_server::follow(connection& c) {
  loop_.change(c.fd.get(), c.out.empty() ? reading : writing);
}

void api_server::write(id which, connection& c) {
  if (c.slow) {
    loop_.change(c.fd.get(), POLLRDHUP);
    write_slowly(which);
    return;
  }
  if (!c.out.empty()) {
    auto& text = c.out.front();
    const auto count = ::send(c.fd.get(), text.data(), text.size(), MSG_NOSIGNAL);
    if (count < 0 && errno != EAGAIN && errno != EINTR) {
      break_off(which, c);
      return;
    }
    if (count > 0)
      text.erase(0, static_cast<std::size_t>(count));
    if (text.empty())
      c.out.pop_front();
  }
  if (c.out.empty() && c.last) {
    tell_.exit(0, true);
    return;
  }
  if (c.out.empty() && c.closed) {
    drop(which);
    return;
  }
  follow(c);
}

void api_server::write_slowly(id which) {
  const auto it = connections_.find(which);
  if (it == connections_.end() || it->second.out.empty())
    return;
  auto& c = it->second;
  auto& text = c.out.front();
  if (::send(c.fd.get(), text.data(), 1, MSG_NOSIGNAL) == 1)
    text.erase(0, 1);
  if (text.empty())
    c.out.pop_front();
  if (c.out.empty()) {
    c.slow = false;
    if (c.last)
      tell_.exit(0, true);
    follow(c);
    return;
  }
  loop_.time.after(std::chrono::milliseconds{faults_.slow_byte_ms}, [this, which] { write_slowly(which); });
}

void api_server::hold(bool on) {
  held_ = on;
  loop_.set_aside(listener_.get(), on);
  for (auto& [which, c] : connections_)
    if (!c.closed)
      loop_.set_aside(c.fd.get(), on);
}

void api_server::next_request() {
  while (!held_ && !requests_.empty() && !loop_.stopped()) {
    auto [which, r] = std::move(requests_.front());
    requests_.pop_front();
    perform(which, std::move(r));
  }
}

void api_server::perform(id which, request r) {
  const auto endpoint = endpoint_of(r.path);
  if (faults_.crash.strikes(endpoint)) {
    tell_.exit(1, false);
    return;
  }
  auto out = tell_.handle(std::move(r));
  if (out.panics) {
    tell_.exit(1, false);
    return;
  }
  if (faults_.delay.strikes(endpoint))
    out.after += std::chrono::milliseconds{faults_.delay_ms};
  if (faults_.hang.strikes(endpoint)) {
    hold(true);
    return;
  }
  if (out.after.count() == 0) {
    deliver(which, endpoint, out);
    return;
  }
  hold(true);
  loop_.time.after(out.after, [this, which = which, endpoint, out] {
    hold(false);
    deliver(which, endpoint, out);
    next_request();
  });
}

void api_server::deliver(id which, const std::string& endpoint, const reply& r) {
  const auto it = connections_.find(which);
  if (it == connections_.end()) {
    if (r.ends)
      tell_.exit(0, true);
    return;
  }
  auto& c = it->second;
  --c.in_flight;
  if (faults_.exit_before_reply.strikes(endpoint)) {
    tell_.exit(0, true);
    return;
  }
  const bool dropped = faults_.drop_reply.strikes(endpoint);
  if (c.closed || dropped) {
    c.closed = true;
    if (r.ends)
      tell_.exit(0, true);
    drop(which);
    return;
  }
  auto text = wire_text(r);
  if (faults_.garbage.strikes(endpoint))
    text = "\x16\x03\x01 this is no HTTP \xff\xfe\r\n\r\n";
  if (faults_.partial.strikes(endpoint)) {
    text.resize(text.size() / 2);
    c.closed = true; // once it is written
  }
  c.slow = c.slow || faults_.slow.strikes(endpoint);
  c.last = r.ends;
  c.out.push_back(std::move(text));
  follow(c);
}

} // namespace caisson::cloud_hypervisor::api_double
