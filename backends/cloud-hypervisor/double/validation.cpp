#include "backends/cloud-hypervisor/double/validation.hpp"

#include <algorithm>
#include <map>
#include <string_view>

#include "backends/cloud-hypervisor/double/memory.hpp"

namespace caisson::cloud_hypervisor::api_double {
namespace {

constexpr std::uint64_t most_vcpus = 8192, largest_queue = 32768, smallest_block_queue = 2, largest_serial = 20;
constexpr std::uint64_t most_segments = 96, least_mtu = 1280;

/// Thrown from one rule to the end of them all.
struct broken {
  failure why;
};

[[noreturn]] void refuse(std::vector<std::string> tail, failure::cause why = failure::cause::validation) {
  tail.insert(tail.begin(), "Failed to validate config");
  throw broken{fail(std::move(tail), why)};
}

std::uint64_t number(const json& of, const char* name) {
  const auto it = of.find(name);
  return it == of.end() ? 0 : it->get<std::uint64_t>();
}

bool yes(const json& of, const char* name) {
  return of.value(name, false);
}

class rules {
public:
  rules(const json& c, profile p, std::set<std::string>& ids)
      : c_{c}, profile_{p}, old_{p == profile::v51_1}, ids_{ids} {}

  void all() {
    payload();
    consoles();
    cpus();
    disks();
    nets();
    each("fs", [&](const json& d) {
      queues(d, "num_queues", number(d, "num_queues"));
      queue_size(d);
      pci(d);
    });
    each("generic_vhost_user", [&](const json& d) { pci(d); });
    each("pmem", [&](const json& d) { pci(d); });
    if (!old_)
      pci(c_["rng"]);
    identifier(c_["rng"]);
    if (c_.contains("rtc"))
      identifier(c_["rtc"]);
    if (!old_)
      pci(c_["console"]);
    identifier(c_["console"]);
    topology();
    memory();
    each("user_devices", [&](const json& d) { pci(d); });
    each("vdpa", [&](const json& d) { pci(d); });
    if (c_.contains("vsock")) {
      const auto cid = number(c_["vsock"], "cid");
      if (cid <= 2 || cid == 0xffff'ffff)
        refuse({std::to_string(cid) + " is a special VSOCK CID"});
    }
    balloon();
    devices();
    if (c_.contains("vsock")) {
      pci(c_["vsock"]);
      identifier(c_["vsock"]);
    }
    numa();
    if (c_["memory"].contains("zones"))
      for (const auto& z : c_["memory"]["zones"])
        identifier(z);
    if (c_.contains("platform"))
      if (const auto n = number(c_["platform"], "num_pci_segments"); n == 0 || n > most_segments)
        refuse({"Number of PCI segments (" + std::to_string(n) + ") not in range of 1 to " + std::to_string(most_segments)});
  }

private:
  void payload() {
    const auto not_bootable = "Payload configuration is not bootable";
    const auto& p = c_.contains("payload") ? c_["payload"] : json::object();
    const bool kernel = p.contains("kernel"), firmware = p.contains("firmware");
    if (!kernel && !firmware)
      refuse({not_bootable, "No bootitem provided: neither firmware nor kernel"});
    if (kernel && firmware)
      refuse({not_bootable, "Specifying a kernel is not supported when a firmware is provided"});
  }

  void consoles() {
    for (const auto* which : {"console", "serial"})
      if (c_[which]["mode"] == "File" && !c_[which].contains("file"))
        refuse({"Path missing when using file console mode"});
  }

  void cpus() {
    const auto boot = number(c_["cpus"], "boot_vcpus"), max = number(c_["cpus"], "max_vcpus");
    if (max < boot)
      refuse({"Max CPUs (" + std::to_string(max) + ") lower than boot CPUs (" + std::to_string(boot) + ")"});
    if (max > most_vcpus)
      refuse({"Too many CPUs: specified " + std::to_string(max) + " but " + std::to_string(most_vcpus) + " is the limit"});
    if (c_.contains("rate_limit_groups"))
      for (const auto& g : c_["rate_limit_groups"])
        identifier(g);
  }

  [[nodiscard]] bool shared_memory() const {
    const auto& m = c_["memory"];
    if (yes(m, "shared") || yes(m, "hugepages"))
      return true;
    return number(m, "size") == 0 && m.contains("zones") &&
           std::all_of(m["zones"].begin(), m["zones"].end(),
                       [](const json& z) { return yes(z, "shared") || yes(z, "hugepages"); });
  }

  void vhost_user(const json& d) {
    if (!yes(d, "vhost_user"))
      return;
    if (!shared_memory())
      refuse({"Using vhost-user requires using shared memory or huge pages"});
    if (!d.contains("vhost_socket"))
      refuse({"No socket provided when using vhost-user"});
    if (d.contains("rate_limiter_config") || d.contains("rate_limit_group"))
      refuse({"Rate limiting is not supported with vhost-user"});
  }

  void disks() {
    if (!c_.contains("disks"))
      return;
    for (const auto& d : c_["disks"]) {
      if (d.contains("vhost_socket") && d.contains("path"))
        refuse({"Disk path and vhost socket both provided"});
      vhost_user(d);
      if (d.contains("rate_limit_group") && !known_group(d["rate_limit_group"]))
        refuse({"Invalid rate-limiter group"});
      pci(d);
      queues(d, "num_queues", number(d, "num_queues"));
      queue_size(d);
      if (const auto size = number(d, "queue_size"); size <= smallest_block_queue)
        refuse({old_
                    ? "Queue size is smaller than 2: " + std::to_string(size)
                    : "Block queue size must be greater than " + std::to_string(smallest_block_queue) + ": " +
                          std::to_string(size)});
      if (d.contains("rate_limiter_config") && d.contains("rate_limit_group"))
        refuse({"Invalid rate-limiter group"});
      if (const auto length = d.value("serial", std::string{}).size(); length > largest_serial)
        refuse({"Block device serial length (" + std::to_string(length) + ") exceeds maximum allowed length (" +
                std::to_string(largest_serial) + ")"});
      identifier(d);
    }
  }

  [[nodiscard]] bool known_group(const json& id) const {
    if (!c_.contains("rate_limit_groups"))
      return false;
    const auto& groups = c_["rate_limit_groups"];
    return std::any_of(groups.begin(), groups.end(), [&](const json& g) { return g["id"] == id; });
  }

  void nets() {
    if (!c_.contains("net"))
      return;
    for (const auto& d : c_["net"]) {
      vhost_user(d);
      pci(d);
      const auto count = number(d, "num_queues");
      if (count < 2)
        refuse({"Number of queues (" + std::to_string(count) + ") to virtio_net should be higher than 2"});
      if (d.contains("fds")) {
        if (const auto fit = d["fds"].size() * 2; fit != count)
          refuse({"Number of queues (" + std::to_string(count) + ") to virtio_net does not match the number of FDs (" +
                  std::to_string(fit) + ")"});
        for (const auto& fd : d["fds"])
          if (fd.get<int>() <= 2)
            refuse({"Reserved fd number (<= 2): " + fd.dump()});
      }
      queues(d, "num_queues", count / 2);
      queue_size(d);
      if (d.contains("mtu") && number(d, "mtu") < least_mtu)
        refuse({"Provided MTU " + d["mtu"].dump() + " is lower than 1280 (expected by VIRTIO specification)"});
      if (!yes(d, "offload_csum") && (yes(d, "offload_tso") || yes(d, "offload_ufo")))
        refuse({"\"offload_tso\" and \"offload_ufo\" depend on \"offload_csum\""});
      if (d.contains("mask") && !d.contains("ip"))
        refuse({"Mask provided without an IP"});
      if (d.contains("ip") && !d.contains("mask"))
        refuse({"IP provided without a mask"});
      identifier(d);
    }
  }

  template <typename Check>
  void each(const char* list, Check check) {
    if (!c_.contains(list))
      return;
    const bool vhost = std::string_view{list} == "fs" || std::string_view{list} == "generic_vhost_user";
    if (!c_[list].empty() && !shared_memory()) {
      if (vhost)
        refuse({"Using vhost-user requires using shared memory or huge pages"});
      if (std::string_view{list} == "user_devices")
        refuse({"Using user devices requires using shared memory or huge pages"});
    }
    for (const auto& d : c_[list]) {
      check(d);
      identifier(d);
    }
  }

  void topology() {
    if (!c_["cpus"].contains("topology"))
      return;
    std::uint64_t product = 1;
    for (const auto* part : {"threads_per_core", "cores_per_die", "dies_per_package", "packages"})
      product *= number(c_["cpus"]["topology"], part);
    if (product == 0)
      refuse({"No part of the CPU topology can be zero"});
    if (!old_ && number(c_["cpus"]["topology"], "threads_per_core") > 2)
      refuse({"CPU topology supports at most 2 threads per core"});
    if (product != number(c_["cpus"], "max_vcpus"))
      refuse({"Product of CPU topology parts does not match maximum vCPU"});
  }

  void memory() {
    const auto& m = c_["memory"];
    if (m.contains("hugepage_size")) {
      if (!yes(m, "hugepages"))
        refuse({"Huge page size specified but huge pages not enabled"});
      if (const auto size = number(m, "hugepage_size"); size == 0 || (size & (size - 1)) != 0)
        refuse({"Huge page size is not power of 2: " + std::to_string(size)});
    }
    const auto both = [](const json& of) { return yes(of, "shared") && yes(of, "mergeable"); };
    if (both(m) || (m.contains("zones") && std::any_of(m["zones"].begin(), m["zones"].end(), both)))
      refuse({"Invalid to set both 'mergeable' and 'shared' for memory"});
  }

  void balloon() {
    if (!c_.contains("balloon"))
      return;
    if (!old_)
      pci(c_["balloon"]);
    identifier(c_["balloon"]);
    const auto size = number(c_["balloon"], "size"), ram = total_size(c_["memory"]);
    if (size >= ram)
      refuse({std::string{old_ ? "Ballon" : "Balloon"} + " size (" + std::to_string(size) + ") greater than RAM (" + std::to_string(ram) + ")"});
  }

  void devices() {
    if (!c_.contains("devices"))
      return;
    std::set<std::string> paths;
    for (const auto& d : c_["devices"]) {
      if (d.contains("path") && !paths.insert(d["path"]).second)
        refuse({"Duplicated device path: " + d["path"].get<std::string>()}, failure::cause::not_unique);
      if (!d.contains("path") && !d.contains("fd"))
        refuse({"VFIO device config must specify `path=` or `fd=`"});
      pci(d);
      identifier(d);
    }
  }

  void numa() {
    if (!c_.contains("numa"))
      return;
    const auto segments = c_.contains("platform") ? number(c_["platform"], "num_pci_segments") : 1;
    std::map<std::string, std::string> zones, used;
    for (const auto& n : c_["numa"]) {
      const auto node = n["guest_numa_id"].dump();
      if (!n.contains("device_id") && !n.contains("cpus") && !n.contains("memory_zones"))
        refuse({old_ ? "NUMA Configuration is invalid"
                     : "Invalid NUMA configuration: numa config must specify either device_id or cpus/memory_zones"});
      for (const auto& z : n.value("memory_zones", json::array()))
        if (const auto [it, fresh] = zones.emplace(z, node); !fresh)
          refuse({"Memory zone: " + z.get<std::string>() + " belongs to multiple NUMA nodes: " + it->second + " and " + node});
      for (const auto& s : n.value("pci_segments", json::array())) {
        if (s.get<std::uint64_t>() >= segments)
          refuse({"Invalid PCI segment id: " + s.dump()});
        if (s == 0 && node != "0")
          refuse({"Default PCI segment assigned to non-zero NUMA node " + node});
        if (const auto [it, fresh] = used.emplace(s.dump(), node); !fresh)
          refuse({"PCI segment: " + s.dump() + " belongs to multiple NUMA nodes " + it->second + " and " + node});
      }
    }
  }

  void pci(const json& d) {
    if (old_ && !c_.contains("platform"))
      return; // not looked at
    const auto segments = c_.contains("platform") ? number(c_["platform"], "num_pci_segments") : 1;
    if (const auto segment = number(d, "pci_segment"); segment >= segments)
      refuse({"Invalid PCI segment id: " + std::to_string(segment)});
    if (d.contains("pci_device_id")) {
      const auto id = number(d, "pci_device_id");
      if (id >= 32)
        refuse({"Given PCI device ID (" + std::to_string(id) + ") is out of the supported range of 0..32"});
      if (id == 0)
        refuse({"Given PCI device ID (0) is reserved"});
    }
  }

  void queues(const json& d, const char* name, std::uint64_t counted) {
    if (const auto vcpus = number(c_["cpus"], "boot_vcpus"); counted > vcpus)
      refuse({"Queue count (" + d[name].dump() + ") must not exceed boot vCPUs (" + std::to_string(vcpus) + ")"});
  }

  void queue_size(const json& d) {
    if (old_)
      return;
    const auto size = number(d, "queue_size");
    if (size == 0 || size > largest_queue || (size & (size - 1)) != 0)
      refuse({"Queue size must be a power of 2 no greater than " + std::to_string(largest_queue) + ": " +
              std::to_string(size)});
  }

  void identifier(const json& d) {
    if (!d.contains("id"))
      return;
    const auto id = d["id"].get<std::string>();
    if (id.starts_with("__"))
      refuse({"Identifier " + id + (profile_ == profile::head ? " is not valid" : " is not invalid")});
    if (!ids_.insert(id).second)
      refuse({"Identifier " + id + " is not unique"}, failure::cause::not_unique);
  }

  const json& c_;
  profile profile_;
  bool old_; ///< v51.1, which looks at less
  std::set<std::string>& ids_;
};

} // namespace

outcome validate(const json& config, profile p, std::set<std::string>& ids) {
  try {
    rules{config, p, ids}.all();
    return {};
  } catch (broken& b) {
    return std::move(b.why);
  }
}

} // namespace caisson::cloud_hypervisor::api_double
