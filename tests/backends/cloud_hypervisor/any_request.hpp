#pragma once

// Every request that the builders can make, at random.

#include <rapidcheck.h>

#include "backends/cloud-hypervisor/requests.hpp"

namespace caisson::cloud_hypervisor::testing {

inline rc::Gen<std::string> any_name() {
  return rc::gen::nonEmpty(rc::gen::container<std::string>(rc::gen::elementOf(std::string{"abcxyz0189-_/. =,\"\\"})));
}
inline std::string some_or_none() {
  return *rc::gen::arbitrary<bool>() ? *any_name() : std::string{};
}
// Small, round and large ones, within what the API takes.
inline std::uint64_t some_bytes(std::uint64_t least) {
  return *rc::gen::oneOf(rc::gen::inRange<std::uint64_t>(least, 1000), rc::gen::just(std::uint64_t{512} << 20),
                         rc::gen::inRange<std::uint64_t>(least, std::uint64_t{1} << 62),
                         rc::gen::just<std::uint64_t>(INT64_MAX));
}
inline std::uint32_t some_count() {
  return *rc::gen::inRange<std::uint32_t>(1, 8193);
}

inline disk_config any_disk() {
  return {some_or_none(), *any_name(), *rc::gen::arbitrary<bool>()};
}
inline net_config any_net() {
  return {some_or_none(), some_or_none(), some_or_none(), 2 * *rc::gen::inRange<std::uint32_t>(1, 257)};
}
inline share_config any_share() {
  return {some_or_none(), *any_name(), *any_name()};
}

template <class T> std::vector<T> some_of(T (*make)()) {
  std::vector<T> out;
  for (int i = *rc::gen::inRange(0, 4); i > 0; --i)
    out.push_back(make());
  return out;
}

inline serial_config any_line(bool with_socket) {
  auto mode = static_cast<console_mode>(*rc::gen::inRange(0, with_socket ? 6 : 5));
  return {mode, *any_name()};
}

inline vm_config any_vm() {
  const auto flag = [] { return *rc::gen::arbitrary<bool>(); };
  vm_config vm;
  vm.boot_vcpus = some_count();
  vm.max_vcpus = some_count();
  vm.memory_bytes = some_bytes(1);
  vm.hotplug_bytes = flag() ? some_bytes(0) : 0;
  vm.hotplugged_bytes = flag() ? some_bytes(0) : 0;
  vm.method = flag() ? hotplug_method::acpi : hotplug_method::virtio_mem;
  vm.shared = flag();
  vm.hugepages = flag();
  vm.prefault = flag();
  vm.firmware = some_or_none();
  vm.kernel = some_or_none();
  vm.command_line = some_or_none();
  vm.initramfs = some_or_none();
  vm.disks = some_of(any_disk);
  vm.nets = some_of(any_net);
  vm.shares = some_of(any_share);
  vm.entropy_source = some_or_none();
  if (flag())
    vm.balloon = balloon_config{some_bytes(0), flag(), flag()};
  vm.serial = any_line(true);
  vm.console = any_line(false);
  if (flag())
    vm.vsock = vsock_config{*rc::gen::inRange<std::uint32_t>(3, 0xffffffff), *any_name()};
  vm.pvpanic = flag();
  vm.watchdog = flag();
  return vm;
}

inline constexpr int request_kinds = 18;

/// The builder number `kind`, below request_kinds.
inline request any_request(int kind) {
  switch (kind) {
  case 0: return requests::ping();
  case 1: return requests::shutdown_vmm();
  case 2: return requests::info();
  case 3: return requests::counters();
  case 4: return requests::boot();
  case 5: return requests::pause();
  case 6: return requests::resume();
  case 7: return requests::shutdown_vm();
  case 8: return requests::remove_vm();
  case 9: return requests::power_button();
  case 10: return requests::resize_ram(some_bytes(1));
  case 11: return requests::resize_vcpus(some_count());
  case 12: return requests::resize_balloon(some_bytes(0));
  case 13: return requests::add_disk(any_disk());
  case 14: return requests::add_net(any_net());
  case 15: return requests::add_share(any_share());
  case 16: return requests::remove_device(*any_name());
  default: return requests::create(any_vm());
  }
}

} // namespace caisson::cloud_hypervisor::testing
