#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <string_view>

namespace caisson::cloud_hypervisor::api_double {

/// A fault of one reply: at the Nth call of an endpoint ("vm.resize", "vmm.ping"), or at each of them.
struct reply_fault {
  std::string endpoint;    ///< "": never; "*": any
  std::uint32_t nth = 0;   ///< counted from 1; 0: each of them
  std::uint32_t seen = 0;

  /// Counts a call of `called`; true when it is the one.
  bool strikes(std::string_view called);
};

/// What goes wrong, how late, and what kind of host and guest stand behind the API. As text (--fault NAME=VALUE, each
/// repeatable; environment variable CAISSON_CH_FAULTS with commas between them). A bare NAME means NAME=1. Times in
/// milliseconds, sizes in MiB. ENDPOINT[:N] is the Nth call of an endpoint, or each call without a number.
///
///     guest=none             no guest ever runs: the VMM's side alone, as on a host whose KVM runs no guest
///     guest_boot_ms=30       from vm.boot until the guest's agent and drivers are up
///     agent=silent           the guest runs, but its agent answers nothing
///     guest_ack_ms=5         until the guest reacts to plugged memory, vCPUs and devices, and ejects what it is asked for
///     guest_ack=never        it never ejects: vCPU removal stays pending (429), removed devices stay
///     remove_device=never    it ejects vCPUs, but no device
///     early_removal=hangs    a device's removal before the guest has taken it up blocks the VMM for ever, as in real ones
///     virtio_mem=no_driver   the guest plugs nothing, whatever is requested
///     virtio_mem_most=N      it plugs N MiB at most          virtio_mem_floor=N   it gives back all but N MiB
///     virtio_mem_step_ms=2   time of each step of plugging or unplugging
///     balloon_most=N         the balloon inflates to N MiB at most                balloon_step_ms=2  each 64 MiB
///     online_most=N          the guest onlines N MiB of plugged DIMMs at most
///     online_cpus_most=N     the guest brings N vCPUs online at most
///     power_button=ignored   the guest does not react to it
///     guest_panic_ms, guest_poweroff_ms, guest_reset_ms=N     after the guest is up; by itself
///     boot_delay_ms=N        vm.boot takes that long; everything else waits behind it
///     delay=ENDPOINT[:N], delay_ms=100        the same for any call
///     boot_fails=N           the first N boots fail after the VM was made (BOOTFAILED)
///     mmap_fails=N           memory hot-adds fail from the Nth on
///     nested_state=missing   the host cannot save a vCPU's state: vm.snapshot is refused
///     hugetlbfs=1            the host has huge pages
///     vhost_timeout_ms=60000 how long a vhost-user socket without a listener holds everything up
///     drop_reply=ENDPOINT[:N]      it is done, and the connection closed without a reply
///     exit_before_reply=ENDPOINT[:N]   it is done, and the process ends (0) without a reply
///     crash=ENDPOINT[:N]     the process ends (1) instead of doing it
///     hang=ENDPOINT[:N]      it is done, and neither this nor any later request is answered
///     garbage=ENDPOINT[:N]   the reply is no HTTP        partial=ENDPOINT[:N]   half of the reply, then EOF
///     slow=ENDPOINT[:N], slow_byte_ms=1    the reply comes byte by byte
///     full=1                 every connection is told that there are too many (503)
///     stale_socket=1         a clean end leaves the API socket behind, as a crash does
///     events_lost=N          every Nth event is lost
///     arch=aarch64           no vCPU hotplug; DIMMs are seen only where firmware boots
struct knobs {
  bool guest = true, agent = true, ejects = true, ejects_devices = true, early_removal = true;
  bool virtio_mem_driver = true;
  bool power_button = true, nested_state = true, hugetlbfs = false, full = false, stale_socket = false;
  std::uint32_t guest_boot_ms = 30, guest_ack_ms = 5, virtio_mem_step_ms = 2, balloon_step_ms = 2;
  std::uint32_t guest_panic_ms = 0, guest_poweroff_ms = 0, guest_reset_ms = 0;
  std::uint32_t boot_delay_ms = 0, delay_ms = 100, vhost_timeout_ms = 60'000, slow_byte_ms = 1;
  std::uint64_t virtio_mem_most = std::numeric_limits<std::uint64_t>::max(), virtio_mem_floor = 0; ///< bytes
  std::uint64_t balloon_most = std::numeric_limits<std::uint64_t>::max();                          ///< bytes
  std::uint64_t online_most = std::numeric_limits<std::uint64_t>::max();                           ///< bytes
  std::uint32_t online_cpus_most = std::numeric_limits<std::uint32_t>::max();
  std::uint32_t boot_fails = 0, mmap_fails = 0, events_lost = 0;
  std::string architecture = "x86_64";
  reply_fault delay, drop_reply, exit_before_reply, crash, hang, garbage, partial, slow;

  /// Reads one NAME=VALUE. "" or what is wrong with it.
  std::string set(std::string_view text);
  /// The same for a list with commas between.
  std::string set_all(std::string_view list);
};

} // namespace caisson::cloud_hypervisor::api_double
