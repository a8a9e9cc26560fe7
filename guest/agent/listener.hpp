#pragma once

#include "guest/agent/event_loop.hpp"
#include "guest/agent/unique_fd.hpp"

#include <cstdint>
#include <functional>

namespace caisson::agent {

/// Where the host connects to the agent: a listening AF_VSOCK socket (Cloud Hypervisor), or an AF_UNIX one in tests.
class listener {
public:
  /// `on_connection` gets each connection of the host, the newest last.
  listener(event_loop& loop, unique_fd listening, std::function<void(unique_fd)> on_connection);
  ~listener();
  listener(const listener&) = delete;

private:
  void accept_all();

  event_loop& loop_;
  unique_fd listening_;
  std::function<void(unique_fd)> on_connection_;
};

/// A socket that listens on this AF_VSOCK port; empty descriptor and errno when the kernel cannot.
unique_fd listen_on_vsock(std::uint32_t port);

/// True when the machine has a vsock device, so that a host could connect.
bool has_vsock_device();

} // namespace caisson::agent
