#include "backends/cloud-hypervisor/tap.hpp"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "backends/cloud-hypervisor/http_reply.hpp"

namespace caisson::cloud_hypervisor {
namespace {

constexpr const char* tun_device = "/dev/net/tun";

std::string shown(const std::string& name) {
  return "\"" + escaped_text(name, 40) + "\"";
}

std::string system_text(int number) {
  return std::strerror(number);
}

/// "" where the interface does not have it. Only for names of interfaces that are there: they have no slash.
std::string attribute(const std::string& name, const char* what) {
  std::ifstream in{"/sys/class/net/" + name + "/" + what};
  std::string text;
  in >> text;
  return text;
}

problem not_there(const std::string& name) {
  return {"host_missing", "there is no interface " + shown(name) +
                              " here; expected a tap that exists (ip tuntap add NAME mode tap)"};
}

/// Flags of a tap, or why it is none.
problem look(const std::string& name, unsigned& index, unsigned long& flags) {
  index = name.size() < IFNAMSIZ ? ::if_nametoindex(name.c_str()) : 0;
  if (index == 0)
    return not_there(name);
  const auto text = attribute(name, "tun_flags");
  flags = std::strtoul(text.c_str(), nullptr, 16);
  if ((flags & IFF_TAP) == 0)
    return {"host_missing", "interface " + shown(name) + " is no tap" +
                                ((flags & IFF_TUN) != 0 ? " but a tun, which carries no Ethernet" : "") +
                                "; expected one that was made by: ip tuntap add NAME mode tap"};
  return {};
}

problem denied(const std::string& name) {
  const auto owner = attribute(name, "owner"), user = std::to_string(::geteuid());
  return {"host_denied", "tap " + shown(name) + " may not be used by user " + user + ": it is " +
                             (owner.empty() || owner == "-1" ? "nobody's, so root's" : "user " + owner + "'s") +
                             "; make it for this user (ip tuntap add NAME mode tap user " + user +
                             "), or let the engine have CAP_NET_ADMIN"};
}

problem no_device(int number) {
  const bool rights = number == EACCES || number == EPERM;
  return {rights ? "host_denied" : "host_missing",
          std::string{tun_device} + ", through which taps are used, cannot be opened: " + system_text(number) +
              (rights ? "; let this user read and write it (its usual mode is 0666)"
                      : "; load its module (modprobe tun), or let the container have the device")};
}

problem not_attached(const std::string& name, int number) {
  if (number == EBUSY)
    return {"backend_refused",
            "tap " + shown(name) +
                " is in use: another VM or program holds it, or the device that had it has not left its VM yet; a tap "
                "serves one at a time"};
  if (number == EPERM || number == EACCES)
    return denied(name);
  return {"backend_refused", "tap " + shown(name) + " cannot be attached: " + system_text(number)};
}

/// The VMM does so with taps that it opens by name, and with no others; what a guest sends into one that is down is an
/// error to it.
problem bring_up(const std::string& name) {
  const int socket = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  ifreq ask{};
  name.copy(ask.ifr_name, IFNAMSIZ - 1);
  int number = 0;
  if (socket < 0 || ::ioctl(socket, SIOCGIFFLAGS, &ask) != 0) {
    number = errno;
  } else if ((ask.ifr_flags & IFF_UP) == 0) {
    ask.ifr_flags = static_cast<short>(ask.ifr_flags | IFF_UP);
    number = ::ioctl(socket, SIOCSIFFLAGS, &ask) == 0 ? 0 : errno;
  }
  if (socket >= 0)
    ::close(socket);
  if (number == 0)
    return {};
  const bool rights = number == EPERM || number == EACCES;
  return {rights ? "host_denied" : "backend_refused", "tap " + shown(name) + " is down and could not be brought up: " +
                                                  system_text(number) + "; do it beforehand (ip link set NAME up)"};
}

} // namespace

problem tap_problem(const std::string& name) {
  unsigned index = 0;
  unsigned long flags = 0;
  return look(name, index, flags);
}

attached_tap::~attached_tap() {
  if (fd_ >= 0)
    ::close(fd_);
}

attached_tap attach_tap(const std::string& name) {
  unsigned index = 0;
  unsigned long flags = 0;
  if (auto why = look(name, index, flags); !why.code.empty())
    return attached_tap{std::move(why)};
  attached_tap out{::open(tun_device, O_RDWR | O_NONBLOCK | O_CLOEXEC)};
  if (!out)
    return attached_tap{no_device(errno)};
  ifreq ask{};
  name.copy(ask.ifr_name, IFNAMSIZ - 1);
  // A tap with several queues gives out one of them only to who asks for one of several.
  ask.ifr_flags = static_cast<short>(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (flags & IFF_MULTI_QUEUE));
  if (::ioctl(out.fd(), TUNSETIFF, &ask) != 0)
    return attached_tap{not_attached(name, errno)};
  // One that went away since the look was made anew by this, and goes with the descriptor.
  if (::if_nametoindex(name.c_str()) != index)
    return attached_tap{not_there(name)};
  if (auto why = bring_up(name); !why.code.empty())
    return attached_tap{std::move(why)};
  return out;
}

} // namespace caisson::cloud_hypervisor
