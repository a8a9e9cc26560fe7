// vm.resize and its relatives.

#include "backends/cloud-hypervisor/double/model.hpp"

namespace caisson::cloud_hypervisor::api_double {
namespace {

void set_hotplugged(json& of, std::uint64_t bytes) {
  if (bytes > 0)
    of["hotplugged_size"] = bytes;
  else
    of.erase("hotplugged_size");
}

} // namespace

outcome model::resize(const json& wanted) {
  if (!config_)
    return fail({"VM is not created"}, failure::cause::not_created);
  if (vm_)
    return resize_running(wanted);
  // Without a VM the configuration is edited, and nothing is checked.
  if (wanted.contains("desired_vcpus"))
    (*config_)["cpus"]["boot_vcpus"] = wanted["desired_vcpus"];
  if (wanted.contains("desired_ram"))
    (*config_)["memory"]["size"] = wanted["desired_ram"];
  if (wanted.contains("desired_balloon") && config_->contains("balloon"))
    (*config_)["balloon"]["size"] = wanted["desired_balloon"];
  return {};
}

/// Processors, then memory, then the balloon; what was done before a failure stays done.
outcome model::resize_running(const json& wanted) {
  event("resizing");
  if (wanted.contains("desired_vcpus")) {
    const std::uint32_t desired = wanted["desired_vcpus"];
    auto did = vcpu_ledger::change::none;
    if (auto problem = vm_->vcpus.resize(desired, did))
      return problem;
    if (did == vcpu_ledger::change::grown)
      vm_->inside->vcpus_added(vm_->vcpus.present());
    if (did == vcpu_ledger::change::removing)
      vm_->inside->eject_vcpus(desired, [this] { vm_->vcpus.ejected(); });
    (*config_)["cpus"]["boot_vcpus"] = desired;
  }
  if (wanted.contains("desired_ram")) {
    const std::uint64_t desired = wanted["desired_ram"];
    std::uint64_t grown = 0;
    if (auto problem = vm_->memory.resize(desired, grown))
      return problem;
    if (grown > 0)
      vm_->inside->dimm_added(grown);
    auto& memory = (*config_)["memory"];
    if (vm_->memory.acpi()) {
      memory["size"] = desired; // also where nothing happened: the number is believed at the next boot
    } else {
      follow_virtio_mem();
      const std::uint64_t size = memory["size"];
      set_hotplugged(memory, desired > size ? desired - size : 0);
    }
  }
  if (wanted.contains("desired_balloon")) {
    if (!config_->contains("balloon"))
      return fail({"Error from device manager", "Missing virtio-balloon, can't proceed as expected"});
    vm_->inside->set_balloon(wanted["desired_balloon"]);
    (*config_)["balloon"]["size"] = wanted["desired_balloon"];
  }
  event("resized");
  return {};
}

void model::follow_virtio_mem() {
  if (vm_->memory.regions().empty())
    return;
  std::uint64_t sum = 0;
  for (const auto& [id, r] : vm_->memory.regions())
    sum += r.requested;
  vm_->inside->virtio_mem_requested(sum);
}

outcome model::resize_disk(const std::string& id, std::uint64_t bytes) {
  if (!config_)
    return fail({"VM is not created"}, failure::cause::not_created);
  if (!vm_)
    return fail({"Failed resizing a disk image"});
  const auto it = vm_->resources.find(id);
  if (it == vm_->resources.end() || !it->second.image)
    return fail({"Error from device manager", no_such_device(id, settings_.as)},
                failure::cause::unknown_device);
  if (const auto error = it->second.image->resize(bytes))
    return fail({"Error from device manager", "Disk resize error", os_error(error)});
  return {};
}

outcome model::resize_zone(const std::string& id, std::uint64_t bytes) {
  if (!config_)
    return fail({"VM is not created"}, failure::cause::not_created);
  auto& memory = (*config_)["memory"];
  if (memory.contains("zones"))
    for (auto& z : memory["zones"]) {
      if (z["id"] != id)
        continue;
      if (!vm_) {
        z["size"] = bytes;
        return {};
      }
      const std::uint64_t size = z["size"];
      if (auto problem = vm_->memory.resize_zone(id, size, bytes))
        return problem;
      follow_virtio_mem();
      if (bytes >= size)
        z["hotplugged_size"] = bytes - size;
      return {};
    }
  return fail({"Failed resizing a memory zone"});
}

} // namespace caisson::cloud_hypervisor::api_double
