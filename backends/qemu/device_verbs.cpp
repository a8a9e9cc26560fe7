/// Disks, network interfaces and shares: looked at before they are given to a VM, attached and detached.

#include <net/if.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "backends/qemu/device_xml.hpp"
#include "backends/qemu/domain_xml.hpp"
#include "backends/qemu/driver.hpp"
#include "backends/qemu/text_checks.hpp"

namespace caisson::qemu {
namespace {

void check_disk(const v1::VmDisk& disk) {
  if (::access(disk.path().c_str(), disk.read_only() ? R_OK : R_OK | W_OK) != 0)
    throw failure("host_missing", "disk " + disk.id() + ": image " + printable(disk.path()) + " cannot be " +
                                      (disk.read_only() ? "read: " : "read and written: ") + std::strerror(errno));
}

void check_net(const v1::VmNet& net) {
  if (::if_nametoindex(net.tap_name().c_str()) == 0)
    throw failure("host_missing", "net " + net.id() + ": there is no interface " + printable(net.tap_name()) +
                                      " here; expected a tap that exists (ip tuntap add NAME mode tap)");
}

// The daemon serves one client, so nobody may connect to look: a socket of another type finds the name, is refused for
// its type, and the daemon hears nothing of it.
void check_share(const v1::VmShare& share) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  share.socket_path().copy(name.sun_path, sizeof name.sun_path - 1);
  int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  int rc = fd < 0 ? -1 : ::connect(fd, reinterpret_cast<sockaddr*>(&name), sizeof name);
  int why = errno;
  if (fd >= 0)
    ::close(fd);
  if (rc == 0 || why != EPROTOTYPE)
    throw failure("host_missing", "share " + share.id() + ": nothing listens on " + printable(share.socket_path()) + " (" +
                                      (rc == 0 ? "a datagram socket is there" : std::strerror(why)) +
                                      "); start its virtiofsd first");
}

constexpr std::chrono::milliseconds busy_port_look_again{200};

bool port_is_busy() {
  auto* e = virGetLastError();
  return e && e->message && std::string_view{e->message}.find("guest is busy") != std::string_view::npos;
}

} // namespace

void driver::check_devices(const v1::VmSpec& spec) {
  std::for_each(spec.disks().begin(), spec.disks().end(), check_disk);
  std::for_each(spec.nets().begin(), spec.nets().end(), check_net);
  std::for_each(spec.shares().begin(), spec.shares().end(), check_share);
}

void driver::must(virDomainPtr domain, int rc, const std::string& doing) {
  if (rc == 0)
    return;
  auto why = library_failure(doing);
  if (virDomainIsActive(domain) != 1)
    throw failure("vmm_died", std::string{why.what()} + "; the VM has ended meanwhile");
  // host_io: the monitor broke, which of a VMM that is being killed is seen before its end.
  throw failure(why.code() == "unsupported" ? "backend_refused" : why.code() == "host_io" ? "outcome_unknown" : why.code(),
                why.what());
}

v1::VmObserved driver::attach(const vm_ptr& vm, const call_ptr& call, const v1::AttachDevice& asked) {
  auto wanted = device_of(asked);
  auto domain = living_domain(vm);
  library_text xml{virDomainGetXMLDesc(domain.get(), 0)};
  if (!xml)
    throw library_failure("cannot read the VM's document");
  auto there = read_domain_xml(xml.get()).devices;
  auto same_id = std::find_if(there.begin(), there.end(), [&](const auto& d) { return d.id == wanted.id; });
  if (same_id != there.end()) {
    std::lock_guard lock{vm->mutex};
    if (vm->leaving.contains(wanted.id))
      throw failure("already_exists", same_id->kind + " " + wanted.id + " is still leaving; its event tells when it is gone");
    if (!same_id->same_as(wanted))
      throw failure("already_exists", "a " + same_id->kind + " with the id " + wanted.id + " is there already, over " +
                                          printable(same_id->source) + "; choose another id or detach it first");
  } else {
    if (asked.has_disk())
      check_disk(asked.disk());
    else
      check_net(asked.net());
    auto device = attach_xml(asked, xml.get());
    must(domain.get(),
         in_library([&] { return virDomainAttachDeviceFlags(domain.get(), device.c_str(), VIR_DOMAIN_AFFECT_LIVE); }),
         wanted.kind + " " + wanted.id + " was not attached (each one takes a root port, VmSpec.free_root_ports)");
  }
  return read_back(vm, domain.get(), read_back_budget(*call));
}

v1::VmObserved driver::detach(const vm_ptr& vm, const call_ptr& call, const std::string& id) {
  auto domain = living_domain(vm);
  library_text xml{virDomainGetXMLDesc(domain.get(), 0)};
  if (!xml)
    throw library_failure("cannot read the VM's document");
  auto there = read_domain_xml(xml.get()).devices;
  if (std::any_of(there.begin(), there.end(), [&](const auto& d) { return d.id == id; })) {
    bool asked_before = false;
    {
      std::lock_guard lock{vm->mutex};
      asked_before = !vm->leaving.insert(id).second;
    }
    // By alias: returns as soon as the guest has been asked; the end is an event.
    int rc = in_library(
        [&] { return virDomainDetachDeviceAlias(domain.get(), device_alias(id).c_str(), VIR_DOMAIN_AFFECT_LIVE); });
    // A port of native PCI Express hotplug (ARM64) takes no request for some five seconds after the one before.
    while (rc != 0 && !asked_before && port_is_busy() && call->left() > busy_port_look_again) {
      {
        std::unique_lock lock{vm->mutex};
        if (vm->changed.wait_for(lock, busy_port_look_again, [&] { return vm->destroying > 0; }))
          throw failure("vmm_died", "the VM is being destroyed");
      }
      rc = in_library(
          [&] { return virDomainDetachDeviceAlias(domain.get(), device_alias(id).c_str(), VIR_DOMAIN_AFFECT_LIVE); });
    }
    if (rc != 0 && !asked_before) {
      {
        std::lock_guard lock{vm->mutex};
        vm->leaving.erase(id);
      }
      must(domain.get(), rc, "the guest could not be asked for device " + id);
    }
  }
  return read_back(vm, domain.get(), read_back_budget(*call));
}

} // namespace caisson::qemu
