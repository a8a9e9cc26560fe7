#include "guest/agent/uevents.hpp"

#include "guest/agent/report.hpp"

#include <linux/netlink.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace caisson::agent {

uevents::uevents(event_loop& loop, std::function<void(const event&)> on_event)
    : socket_{::socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT)},
      on_event_{std::move(on_event)} {
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = 1;
  const int room = 1024 * 1024;
  ::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
  if (!socket_ || ::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    report("cannot listen to the kernel's device events", errno);
    return;
  }
  loop.watch(socket_.get(), EPOLLIN, [this](std::uint32_t) { read_all(); });
}

void uevents::read_all() {
  std::array<char, 8192> message;
  for (;;) {
    sockaddr_nl from{};
    socklen_t from_size = sizeof from;
    const auto n =
        ::recvfrom(socket_.get(), message.data(), message.size(), 0, reinterpret_cast<sockaddr*>(&from), &from_size);
    if (n < 0 && errno == ENOBUFS) {
      on_event_({"lost", ""});
      continue;
    }
    if (n <= 0)
      return;
    if (from.nl_pid != 0)
      continue; // not from the kernel
    event seen;
    const std::string_view text{message.data(), static_cast<std::size_t>(n)};
    for (std::size_t at = 0; at < text.size();) {
      const auto end = std::min(text.find('\0', at), text.size());
      const auto field = text.substr(at, end - at);
      if (field.starts_with("ACTION="))
        seen.action = field.substr(7);
      else if (field.starts_with("SUBSYSTEM="))
        seen.subsystem = field.substr(10);
      at = end + 1;
    }
    on_event_(seen);
  }
}

} // namespace caisson::agent
