// The devices of a VM: made at boot in the VMM's order, plugged and taken out while it runs.

#include <unistd.h>

#include <algorithm>
#include <array>
#include <utility>

#include "backends/cloud-hypervisor/double/model.hpp"
#include "backends/cloud-hypervisor/double/validation.hpp"

namespace caisson::cloud_hypervisor::api_double {
namespace {

failure manager_failure(std::vector<std::string> tail, failure::cause why = failure::cause::other) {
  tail.insert(tail.begin(), "Error from device manager");
  return fail(std::move(tail), why);
}

std::string lock_text(const std::string& path, bool read_only) {
  return std::string{"Failed to get "} + (read_only ? "Read" : "Write") + " lock for disk image: " + path;
}

/// A segment that the VM does not have; before v52 nobody looked, and the VMM died of it.
bool off_the_buses(const json& config, const json& d) {
  const auto segments = config.contains("platform") ? config["platform"]["num_pci_segments"].get<std::uint16_t>() : 1;
  return d.value("pci_segment", std::uint16_t{0}) >= segments;
}

std::string shown_type(std::string image_type) {
  for (auto& c : image_type)
    c = static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  return image_type;
}

device_tree::node pci_node(std::string id, std::string type) {
  device_tree::node n;
  n.id = std::move(id);
  n.type = std::move(type);
  return n;
}

device_tree::node configured_node(const json& d, std::string type, bool wide = true) {
  auto n = pci_node(d.value("id", std::string{}), std::move(type));
  n.segment = d.value("pci_segment", std::uint16_t{0});
  n.pci_device = d.value("pci_device_id", std::uint8_t{0});
  n.wide = wide || n.segment > 0;
  return n;
}

const failure no_slot = manager_failure({"Failed to find an available PCI device ID"});

} // namespace

void model::announce(const std::string& what, const std::string& id) {
  host_.event("virtio-device", what, {{"id", id}});
}

void model::taken_up(const std::string& id) {
  if (auto* there = vm_->tree.find(id)) {
    there->taken_up = true;
    announce("activated", id);
  }
}

std::string model::named(vm& v, json& d, const std::string& prefix) {
  if (!d.contains("id"))
    d["id"] = v.tree.next_name(prefix);
  return d["id"];
}

outcome model::make_disk(vm& v, json& d, bool hot) {
  const auto id = named(v, d, "_disk");
  device_resources r;
  int error = 0;
  if (d.value("vhost_user", false)) {
    r.connection = host_.connect_vhost_user(d["vhost_socket"], error);
    if (!r.connection) {
      busy_ += std::chrono::milliseconds{settings_.faults.vhost_timeout_ms};
      return manager_failure({"Cannot create vhost-user-blk device", "Connection to socket failed",
                              "vhost-user: can't connect to peer: " + os_error(error)});
    }
    v.resources[id] = std::move(r);
    return {};
  }
  if (!d.contains("path"))
    return manager_failure({"No disk path was specified when one was expected"});
  const auto path = d["path"].get<std::string>();
  r.image_read_only = d.value("readonly", false);
  r.image = host_.open_disk(path, r.image_read_only, error);
  if (!r.image)
    return manager_failure({"Cannot open disk path", "I/O error (path=" + path + " op=open)", os_error(error)});
  if (d["image_type"] == "Unknown")
    d["image_type"] = r.image->image_type();
  else if (d["image_type"] != "FixedVhd" && d["image_type"] != r.image->image_type())
    return manager_failure({"Disk image type does not match expected type: specified = " + shown_type(d["image_type"]) +
                            ", detected = " + shown_type(r.image->image_type())});
  if (hot && !r.image->lock(!r.image_read_only))
    return manager_failure({"Cannot lock images of all block devices", lock_text(path, r.image_read_only),
                            "The file is already locked"});
  v.resources[id] = std::move(r);
  return {};
}

outcome model::make_net(vm& v, json& d) {
  const auto id = named(v, d, "_net");
  device_resources r;
  if (d.value("vhost_user", false)) {
    int error = 0;
    r.connection = host_.connect_vhost_user(d["vhost_socket"], error);
    if (!r.connection) {
      busy_ += std::chrono::milliseconds{settings_.faults.vhost_timeout_ms};
      return manager_failure({"Cannot create vhost-user-net device", "Connection to socket failed",
                              "vhost-user: can't connect to peer: " + os_error(error)});
    }
  } else if (d.contains("fds") && !d.contains("tap")) {
    int error = 0;
    const auto fds = d["fds"].get<std::vector<int>>();
    r.connection = host_.take_tap(fds, error);
    if (!r.connection) {
      constexpr auto* number = "2147767506"; // of the ioctl that tells of a tap
      if (settings_.as == profile::v51_1)
        return manager_failure({"Cannot create virtio-net device", "Using existing tap",
                                std::string{"ioctl ("} + number + ") failed: " + os_error(error), os_error(error)});
      return manager_failure({"Cannot create virtio-net device", "Using existing tap",
                              std::string{"Ioctl failed ("} + number + ")", os_error(error)});
    }
    kept_.insert(fds.begin(), fds.end());
  } else if (settings_.as < profile::head && !d.contains("host_mac")) {
    d["host_mac"] = host_.random_mac(); // the tap's own address
  }
  if (!d.contains("mac"))
    d["mac"] = host_.random_mac();
  v.resources[id] = std::move(r);
  return {};
}

/// What never became a device is forgotten and stays open, as in the VMM.
void model::close_kept(const json& net) {
  for (const auto& fd : net.value("fds", json::array()))
    if (kept_.erase(fd.get<int>()) > 0)
      ::close(fd.get<int>());
}

outcome model::make_fs(vm& v, json& d) {
  const auto id = named(v, d, "_fs");
  device_resources r;
  int error = 0;
  r.connection = host_.connect_vhost_user(d["socket"], error);
  if (!r.connection) {
    busy_ += std::chrono::milliseconds{settings_.faults.vhost_timeout_ms};
    return manager_failure({"Cannot create virtio-fs device", "Connection to socket failed",
                            "vhost-user: can't connect to peer: " + os_error(error)});
  }
  v.resources[id] = std::move(r);
  return {};
}

outcome model::make_pmem(vm& v, json& d, device_tree::node& n) {
  (void)named(v, d, "_pmem");
  n = configured_node(d, "pmem");
  const auto path = d["file"].get<std::string>();
  const bool directory = host_.is_directory(path);
  if (directory && !d.contains("size"))
    return manager_failure({"Trying to use a directory for pmem but no size specified"});
  int error = 0;
  std::uint64_t size = directory ? 0 : host_.file_size(path, !d.value("discard_writes", false), error);
  if (error)
    return manager_failure({"Cannot open persistent memory file", os_error(error)});
  if (d.contains("size"))
    size = d["size"];
  if (size % (2u << 20) != 0)
    return manager_failure({"Trying to use a size that is not multiple of 2MiB"});
  if (size == 0 || !v.tree.reserve_region(n, size))
    return manager_failure({"Cannot find a memory range for persistent memory"});
  return {};
}

outcome model::make_vsock(vm& v, json& d) {
  const auto id = named(v, d, "_vsock");
  int error = 0;
  device_resources r;
  r.vsock = host_.listen_vsock(d["socket"], error);
  if (!r.vsock)
    return manager_failure({"Cannot create virtio-vsock backend", "Error binding to the host-side Unix socket",
                            os_error(error)});
  v.resources[id] = std::move(r);
  return {};
}

/// All devices of the configuration. First each is made, then each gets its place on the bus; a list whose making
/// fails is lost from the configuration, as in the VMM.
outcome model::make_devices(vm& v) {
  auto& c = *config_;
  v.tree.add_plain("__ioapic");
  if (consoles_->serial_mode != "Off")
    v.tree.add_plain("__serial");
  std::vector<device_tree::node> bus;
  if (consoles_->console_mode != "Off")
    bus.push_back(pci_node("__console", "console"));
  const auto list = [&](const char* name, auto make_one) -> outcome {
    if (!c.contains(name))
      return {};
    for (auto& d : c[name])
      if (auto problem = make_one(d)) {
        c.erase(name);
        return problem;
      }
    return {};
  };
  const auto placed = [&](outcome o, const json& d, const char* type, bool wide = true) {
    if (!o)
      bus.push_back(configured_node(d, type, wide));
    return o;
  };
  if (auto p = list("disks", [&](json& d) { return placed(make_disk(v, d, false), d, "block", false); }))
    return p;
  if (auto p = list("net", [&](json& d) { return placed(make_net(v, d), d, "net"); }))
    return p;
  bus.push_back(pci_node("__rng", "rng"));
  if (auto p = list("fs", [&](json& d) { return placed(make_fs(v, d), d, "fs"); }))
    return p;
  if (auto p = list("pmem", [&](json& d) -> outcome {
        device_tree::node n;
        if (auto problem = make_pmem(v, d, n))
          return problem;
        bus.push_back(std::move(n));
        return {};
      }))
    return p;
  if (c.contains("vsock"))
    if (auto p = placed(make_vsock(v, c["vsock"]), c["vsock"], "vsock")) {
      c.erase("vsock");
      return p;
    }
  for (const auto& [id, r] : v.memory.regions()) {
    if (r.size % (128u << 20) != 0)
      return manager_failure({"Cannot create virtio-mem device", "Virtio-mem size is not aligned with 134217728"});
    bus.push_back(pci_node(id, "mem"));
  }
  if (c.contains("balloon"))
    bus.push_back(pci_node("__balloon", "balloon"));
  if (c.value("watchdog", false))
    bus.push_back(pci_node("__watchdog", "watchdog"));
  if (c.value("iommu", false))
    bus.push_back(pci_node("__iommu", "iommu"));
  for (const auto* name : {"disks", "net", "fs", "pmem"})
    for (const auto& d : c.value(name, json::array()))
      if (off_the_buses(c, d)) {
        panics_ = true;
        return fail({});
      }
  for (const auto& n : bus)
    v.tree.reserve_slot(n);
  for (auto& n : bus)
    if (!v.tree.add_pci(std::move(n)))
      return no_slot;
  if (c.value("pvpanic", false) && !v.tree.add_pvpanic())
    return no_slot;
  return {};
}

outcome model::lock_disks(vm& v) {
  if (!config_->contains("disks"))
    return {};
  for (const auto& d : (*config_)["disks"]) {
    auto& r = v.resources[d["id"].get<std::string>()];
    if (r.image && !r.image->lock(!r.image_read_only))
      return fail({"Error locking disk images: Another instance likely holds a lock",
                   "Cannot lock images of all block devices", lock_text(d["path"], r.image_read_only),
                   "The file is already locked"});
  }
  return {};
}

model::answer model::add_device(const std::string& list, json device, bool single) {
  if (!config_)
    return fail({"VM is not created"}, failure::cause::not_created);
  if (single && config_->contains(list))
    return fail({"Too many virtio-vsock devices"});
  if (list == "net" && settings_.as < profile::head && !device.contains("mac"))
    device["mac"] = host_.random_mac();
  auto changed = *config_;
  if (single)
    changed[list] = device;
  else
    changed[list].push_back(device);
  std::set<std::string> ids;
  if (auto problem = validate(changed, settings_.as, ids))
    return std::move(*problem);
  const auto keep = [&] {
    (single ? changed[list] : changed[list].back()) = device;
    config_ = std::move(changed);
  };
  if (!vm_) {
    keep();
    return std::optional<std::string>{};
  }
  device_tree::node n;
  outcome problem;
  if (list == "disks") {
    problem = make_disk(*vm_, device, true);
    n = configured_node(device, "block", settings_.as > profile::v51_1);
  } else if (list == "net") {
    problem = make_net(*vm_, device);
    n = configured_node(device, "net");
  } else if (list == "fs") {
    problem = make_fs(*vm_, device);
    n = configured_node(device, "fs");
  } else if (list == "pmem") {
    problem = make_pmem(*vm_, device, n);
  } else if (list == "vsock") {
    problem = make_vsock(*vm_, device);
    n = configured_node(device, "vsock");
  } else {
    return manager_failure({"No support for device passthrough"});
  }
  if (problem)
    return std::move(*problem);
  const auto id = n.id;
  n.taken_up = false;
  if (off_the_buses(*config_, device)) {
    panics_ = true;
    return fail({});
  }
  if (!vm_->tree.add_pci(std::move(n)))
    return no_slot;
  keep();
  if (auto& r = vm_->resources[id]; r.vsock && vm_->inside->is_up())
    r.vsock->guest_is_up([this](std::uint32_t port) { return vm_->inside->connect(port); });
  vm_->inside->notice([this, id] {
    taken_up(id);
  });
  return json{{"id", id}, {"bdf", device_tree::bdf(*vm_->tree.find(id))}}.dump();
}

bool model::remove_from_config(const std::string& id) {
  bool removed = false;
  for (const auto* list : {"devices", "user_devices", "disks", "fs", "generic_vhost_user", "net", "pmem", "vdpa"}) {
    if (!config_->contains(list))
      continue;
    json kept = json::array();
    for (auto& d : (*config_)[list]) {
      if (d.value("id", "") == id)
        removed = true;
      else
        kept.push_back(std::move(d));
    }
    (*config_)[list] = std::move(kept);
  }
  if (config_->contains("vsock") && (*config_)["vsock"].value("id", "") == id) {
    config_->erase("vsock");
    removed = true;
  }
  return removed;
}

outcome model::remove_device(const std::string& id) {
  if (!config_)
    return fail({"VM is not created"}, failure::cause::not_created);
  if (!vm_) {
    if (remove_from_config(id))
      return {};
    return fail({"No device with id " + json(id).dump() + " to remove"}, failure::cause::unknown_device);
  }
  auto* n = vm_->tree.find(id);
  const auto unknown = manager_failure({no_such_device(id, settings_.as)}, failure::cause::unknown_device);
  if (!n)
    return unknown;
  if (!n->pci || n->type.empty())
    return manager_failure({"Could not find the node in the device tree"});
  constexpr std::array<std::string_view, 5> removable{"block", "net", "pmem", "fs", "vsock"};
  if (std::find(removable.begin(), removable.end(), n->type) == removable.end())
    return manager_failure({"Not allowed to remove this type of device from the VM: " + n->type});
  if (n->removing)
    return settings_.as == profile::v53_0 ? outcome{unknown} : outcome{};
  const auto nets = config_->value("net", json::array());
  if (!remove_from_config(settings_.as == profile::v51_1 ? n->id : id))
    return unknown;
  for (const auto& net : nets)
    if (net.value("id", "") == n->id)
      close_kept(net);
  n->removing = true;
  if (!settings_.faults.early_removal && !n->taken_up)
    busy_ += std::chrono::hours{24};
  vm_->inside->eject_device([this, id = n->id] {
    auto* leaving = vm_->tree.find(id);
    if (!leaving)
      return;
    const auto bdf = device_tree::bdf(*leaving);
    vm_->tree.remove(id);
    vm_->resources.erase(id);
    event("device-removed", {{"id", id}, {"bdf", bdf}});
  });
  return {};
}

} // namespace caisson::cloud_hypervisor::api_double
