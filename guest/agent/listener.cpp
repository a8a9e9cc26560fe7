#include "guest/agent/listener.hpp"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <linux/vm_sockets.h>

#include <cerrno>
#include <utility>

namespace caisson::agent {

namespace {

constexpr int backlog = 8;

// The workload may open vsock sockets too (vsock_loopback): only the host is served.
bool is_host(const sockaddr_storage& peer) {
  if (peer.ss_family != AF_VSOCK)
    return true;
  return reinterpret_cast<const sockaddr_vm&>(peer).svm_cid == VMADDR_CID_HOST;
}

} // namespace

listener::listener(event_loop& loop, unique_fd listening, std::function<void(unique_fd)> on_connection)
    : loop_{loop}, listening_{std::move(listening)}, on_connection_{std::move(on_connection)} {
  ::fcntl(listening_.get(), F_SETFL, ::fcntl(listening_.get(), F_GETFL) | O_NONBLOCK);
  loop_.watch(listening_.get(), EPOLLIN, [this](std::uint32_t) { accept_all(); });
}

listener::~listener() { loop_.forget(listening_.get()); }

void listener::accept_all() {
  for (;;) {
    sockaddr_storage peer{};
    socklen_t size = sizeof peer;
    unique_fd connection{
        ::accept4(listening_.get(), reinterpret_cast<sockaddr*>(&peer), &size, SOCK_CLOEXEC | SOCK_NONBLOCK)};
    if (!connection && errno != EINTR && errno != ECONNABORTED)
      return;
    if (connection && is_host(peer))
      on_connection_(std::move(connection));
  }
}

unique_fd listen_on_vsock(std::uint32_t port) {
  unique_fd listening{::socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!listening)
    return listening;
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = VMADDR_CID_ANY;
  address.svm_port = port;
  if (::bind(listening.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listening.get(), backlog) != 0) {
    const int failed = errno;
    listening.reset();
    errno = failed;
  }
  return listening;
}

bool has_vsock_device() {
  const unique_fd device{::open("/dev/vsock", O_RDONLY | O_CLOEXEC)};
  unsigned int cid = VMADDR_CID_ANY;
  return device && ::ioctl(device.get(), IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid) == 0 && cid != VMADDR_CID_ANY &&
         cid != VMADDR_CID_LOCAL;
}

} // namespace caisson::agent
