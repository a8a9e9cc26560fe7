#include "guest/agent/transport.hpp"

#include "guest/agent/files.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>

#include <cerrno>

namespace caisson::agent {

transport::transport(event_loop& loop, unique_fd channel, kind what, events handlers)
    : loop_{loop}, channel_{std::move(channel)}, kind_{what}, handlers_{std::move(handlers)}, input_(64 * 1024) {
  ::fcntl(channel_.get(), F_SETFL, ::fcntl(channel_.get(), F_GETFL) | O_NONBLOCK);
  // Edge-triggered: a port without a host is "readable" for ever, and a level-triggered loop would never sleep.
  loop_.watch(channel_.get(), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, [this](std::uint32_t) { wake(); });
}

transport::~transport() {
  for (const auto& timer : {gone_timer_, again_timer_})
    if (timer)
      loop_.cancel(*timer);
  if (!is_closed())
    loop_.forget(channel_.get());
}

bool transport::host_is_there() const {
  pollfd p{channel_.get(), POLLIN | POLLOUT, 0};
  return ::poll(&p, 1, 0) >= 0 && (p.revents & (POLLHUP | POLLERR)) == 0;
}

void transport::pump() {
  read_all();
  write_all();
  check_host();
}

void transport::end() {
  if (is_closed())
    return;
  loop_.forget(channel_.get());
  channel_.reset();
  output_.clear();
  handlers_.on_gone();
}

void transport::read_all() {
  while (readable_ && !is_closed() && handlers_.wants_bytes()) {
    const auto n = ::read(channel_.get(), input_.data(), input_.size());
    if (n > 0) {
      told_gone_ = false;
      handlers_.on_bytes(std::span{input_}.first(static_cast<std::size_t>(n)));
    } else if (n == 0 || errno != EINTR) {
      readable_ = false;
      if (kind_ == kind::socket && (n == 0 || errno != EAGAIN))
        end();
    }
  }
}

void transport::write_all() {
  while (writable_ && !is_closed()) {
    if (output_at_ == output_.size()) {
      output_ = handlers_.next_output();
      output_at_ = 0;
      if (output_.empty())
        return;
    }
    const auto n = ::write(channel_.get(), output_.data() + output_at_, output_.size() - output_at_);
    if (n > 0)
      output_at_ += static_cast<std::size_t>(n);
    else if (n == 0 || errno != EINTR) {
      writable_ = false;
      if (kind_ == kind::socket && n < 0 && errno != EAGAIN)
        end();
      else
        look_again();
    }
  }
}

void transport::look_again() {
  if (kind_ == kind::socket || told_gone_ || again_timer_)
    return;
  again_timer_ = loop_.after(port_look_again_after, [this] {
    again_timer_.reset();
    writable_ = true;
  });
}

void transport::check_host() {
  if (is_closed() || host_is_there())
    return;
  if (kind_ == kind::socket) {
    end();
    return;
  }
  if (told_gone_ || gone_timer_)
    return;
  gone_timer_ = loop_.after(port_gone_after, [this] {
    gone_timer_.reset();
    if (host_is_there()) {
      readable_ = writable_ = true;
      return;
    }
    told_gone_ = true;
    drop_output();
    handlers_.on_gone();
  });
}

std::string find_port(std::string_view name) {
  const std::string ports = "/sys/class/virtio-ports";
  for (const auto& port : list_directory(ports))
    if (read_line(ports + "/" + port + "/name") == name)
      return "/dev/" + port;
  return "";
}

unique_fd open_port(const std::string& device) {
  unique_fd port{::open(device.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC)};
  if (port) {
    ::fcntl(port.get(), F_SETOWN, ::getpid());
    ::fcntl(port.get(), F_SETFL, ::fcntl(port.get(), F_GETFL) | O_ASYNC);
  }
  return port;
}

} // namespace caisson::agent
