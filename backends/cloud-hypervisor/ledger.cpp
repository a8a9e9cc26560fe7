#include "backends/cloud-hypervisor/ledger.hpp"

#include <algorithm>

namespace caisson::cloud_hypervisor {

std::uint64_t ledger::dimm_bytes() const {
  std::uint64_t sum = 0;
  for (const auto& d : dimms)
    sum += d.size_bytes;
  return sum;
}

bool ledger::has_dimm(const std::string& id) const {
  return std::any_of(dimms.begin(), dimms.end(), [&](const auto& d) { return d.id == id; });
}

held_device* ledger::device(const std::string& id) {
  auto at = std::find_if(devices.begin(), devices.end(), [&](const auto& d) { return d.id == id; });
  return at == devices.end() ? nullptr : &*at;
}

void ledger::dimm_plugged() {
  if (asked_dimm)
    dimms.push_back(std::move(*asked_dimm));
  asked_dimm.reset();
}

void ledger::device_added(const std::string& address) {
  if (!asked_device)
    return;
  device_left(asked_device->id);
  asked_device->address = address;
  devices.push_back(std::move(*asked_device));
  asked_device.reset();
}

void ledger::device_left(const std::string& id) {
  std::erase_if(devices, [&](const auto& d) { return d.id == id; });
}

void ledger::settle(const info_reply& info, bool actual_counts) {
  switch (info.state) {
  case vm_state::running:
  case vm_state::break_point:
    state = v1::VM_STATE_RUNNING;
    break;
  case vm_state::paused:
    state = v1::VM_STATE_PAUSED;
    break;
  default:
    state = v1::VM_STATE_CREATED;
    break;
  }
  if (asked_dimm) {
    if (info.memory_bytes == acpi_total_bytes() + asked_dimm->size_bytes)
      dimm_plugged();
    else
      asked_dimm.reset();
  }
  if (info.virtio_mem) {
    virtio_mem_requested_bytes = info.hotplugged_bytes;
    if (actual_counts && info.memory_actual_bytes)
      virtio_mem_plugged_bytes = *info.memory_actual_bytes > boot_bytes ? *info.memory_actual_bytes - boot_bytes : 0;
  }
  vcpus_asked = info.boot_vcpus;
  vcpus_present = std::max(vcpus_present, vcpus_asked);
  // One that was attached while the answer was lost is known here; one that is nowhere has left while nobody looked.
  auto configured = [&](const auto& held) {
    return std::any_of(info.devices.begin(), info.devices.end(), [&](const auto& d) { return d.id == held.id; });
  };
  std::erase_if(devices, [&](const auto& held) { return !info.addresses.contains(held.id) && !configured(held); });
  // The configuration forgets a device as soon as it is asked to leave, the device tree when it has left.
  for (auto& held : devices)
    held.leaving = held.leaving || !configured(held);
  for (const auto& d : info.devices) {
    if (d.kind == "vsock")
      continue;
    if (!device(d.id)) {
      devices.push_back({.id = d.id, .kind = d.kind});
      if (asked_device && asked_device->id == d.id)
        devices.back().source = asked_device->source;
    }
    device(d.id)->address = d.bdf;
    if (!d.host.empty())
      device(d.id)->source = d.host;
  }
}

ledger ledger_at_boot(const v1::VmSpec& spec) {
  ledger out;
  out.boot_bytes = spec.boot_bytes();
  out.vcpus_present = out.vcpus_asked = spec.boot_vcpus();
  for (const auto& d : spec.disks())
    out.devices.push_back({.id = d.id(), .kind = "disk", .source = d.path()});
  for (const auto& n : spec.nets())
    out.devices.push_back({.id = n.id(), .kind = "net", .source = n.tap_name()});
  for (const auto& s : spec.shares())
    out.devices.push_back({.id = s.id(), .kind = "share", .source = s.socket_path()});
  return out;
}

} // namespace caisson::cloud_hypervisor
