// The bodies of the API's requests, member by member, in the order in which the API writes them back.

#include <algorithm>
#include <utility>

#include "backends/cloud-hypervisor/double/schema.hpp"

namespace caisson::cloud_hypervisor::api_double {
namespace {

using kind = shape::kind;
using presence = field::presence;
using fields = std::vector<field>;

shape of(kind k) {
  return {k, nullptr, {}, nullptr};
}

const shape boolean = of(kind::boolean), u8 = of(kind::u8), u16 = of(kind::u16), u32 = of(kind::u32), u64 = of(kind::u64),
            usize = of(kind::usize),
            i32 = of(kind::i32), text = of(kind::text), path = of(kind::path);

shape choice(std::vector<std::string> names) {
  return {kind::choice, nullptr, std::move(names), nullptr};
}

shape list(shape element) {
  return {kind::list, nullptr, {}, std::make_shared<const shape>(std::move(element))};
}

shape rec(std::shared_ptr<const record> r) {
  return {kind::record, std::move(r), {}, nullptr};
}

field need(std::string name, shape type) {
  return {std::move(name), std::move(type), presence::required, nullptr, false, false, {}};
}

field may(std::string name, shape type, std::string also = {}) {
  return {std::move(name), std::move(type), presence::optional, nullptr, false, false, std::move(also)};
}

field preset(std::string name, shape type, json value) {
  return {std::move(name), std::move(type), presence::preset, std::move(value), false, false, {}};
}

void add(fields& to, fields more) {
  for (auto& f : more)
    to.push_back(std::move(f));
}

class builder {
public:
  explicit builder(profile p) : old_{p == profile::v51_1}, head_{p == profile::head} {}

  schema build() {
    schema s;
    make_devices(s);
    s.vm = vm(s);
    s.resize = make("VmResizeData", {may("desired_vcpus", u32), may("desired_ram", u64), may("desired_balloon", u64)});
    s.resize_disk = make("VmResizeDiskData", {need("id", text), need("desired_size", u64)});
    s.resize_zone = make("VmResizeZoneData", {need("id", text), need("desired_ram", u64)});
    s.remove_device = make("VmRemoveDeviceData", {need("id", text)});
    s.snapshot = make("VmSnapshotConfig", {need("destination_url", text)});
    const auto net_fds =
        rec(make("RestoredNetConfig", {need("id", text), preset("num_fds", usize, 0), may("fds", list(i32))}));
    s.restore = make("RestoreConfig",
                     {need("source_url", path), preset("prefault", boolean, false),
                      preset("memory_restore_mode", choice({"Copy", "OnDemand"}), "Copy"), may("net_fds", list(net_fds)),
                      preset("resume", boolean, false)});
    s.receive_migration = make("VmReceiveMigrationData", {need("receiver_url", text)});
    s.send_migration = make("VmSendMigrationData", {need("destination_url", text), preset("local", boolean, false)});
    return s;
  }

private:
  /// Until v51 whatever is not given was written back as null.
  std::shared_ptr<const record> make(std::string rust_name, fields members) const {
    return std::make_shared<const record>(record{std::move(rust_name), std::move(members), false, old_});
  }

  /// Until v51: behind which members those of a PCI device stood; "": at the end.
  struct places {
    std::string iommu, id, segment;
  };

  /// What every PCI device has: ahead of the rest since v52, scattered among it before.
  fields pci(fields own, bool may_iommu = true, const places& old = {}) const {
    auto iommu = preset("iommu", boolean, false);
    if (old_) {
      const auto put = [&own](const std::string& behind, field f) {
        const auto at = std::find_if(own.begin(), own.end(), [&](const field& x) { return x.name == behind; });
        own.insert(at == own.end() ? at : std::next(at), std::move(f));
      };
      if (may_iommu)
        put(old.iommu, iommu);
      put(old.id, may("id", text));
      put(old.segment, preset("pci_segment", u16, 0));
      return own;
    }
    iommu.hidden_false = true;
    fields out{may("id", text), iommu, preset("pci_segment", u16, 0), may("pci_device_id", u8)};
    for (auto& f : out)
      f.flattened = true;
    add(out, std::move(own));
    return out;
  }

  static shape rate_limiter() {
    record bucket{"TokenBucketConfig", {need("size", u64), may("one_time_burst", u64), need("refill_time", u64)}};
    bucket.shows_null = true;
    const auto one = rec(std::make_shared<const record>(std::move(bucket)));
    return rec(std::make_shared<const record>(record{"RateLimiterConfig", {may("bandwidth", one), may("ops", one)}, true, true}));
  }

  void make_devices(schema& s) const {
    const auto affinity = list(rec(make("VirtQueueAffinity", {need("queue_index", u16), need("host_cpus", list(usize))})));
    fields disk{may("path", path),
                preset("readonly", boolean, false),
                preset("direct", boolean, false),
                preset("num_queues", usize, 1),
                preset("queue_size", u16, 128),
                preset("vhost_user", boolean, false),
                may("vhost_socket", text),
                may("rate_limit_group", text),
                may("rate_limiter_config", rate_limiter()),
                preset("disable_io_uring", boolean, false),
                preset("disable_aio", boolean, false),
                may("serial", text),
                may("queue_affinity", affinity),
                preset("backing_files", boolean, false),
                preset("sparse", boolean, true),
                preset("image_type", choice(head_ ? std::vector<std::string>{"FlatVmdk", "FixedVhd", "Qcow2", "Raw", "Vhdx", "Unknown"}
                                                  : std::vector<std::string>{"FixedVhd", "Qcow2", "Raw", "Vhdx", "Unknown"}),
                       "Unknown")};
    if (!old_)
      disk.push_back(preset("lock_granularity", choice({"ByteRange", "Full"}), "ByteRange"));
    s.disk = make("DiskConfig", pci(std::move(disk), true, {"direct", "rate_limiter_config", "disable_aio"}));

    fields net{may("tap", text),
               may("ip", text),
               may("mask", text),
               may("mac", text),
               may("host_mac", text),
               may("mtu", u16),
               preset("num_queues", usize, 2),
               preset("queue_size", u16, 256),
               preset("vhost_user", boolean, false),
               may("vhost_socket", text),
               preset("vhost_mode", choice({"Client", "Server"}), "Client"),
               may("fds", list(i32)),
               may("rate_limiter_config", rate_limiter()),
               preset("offload_tso", boolean, true),
               preset("offload_ufo", boolean, true),
               preset("offload_csum", boolean, true)};
    s.net = make("NetConfig", pci(std::move(net), true, {"mtu", "vhost_mode", "rate_limiter_config"}));
    s.fs = make("FsConfig", pci({need("tag", text), need("socket", path), preset("num_queues", usize, 1),
                                 preset("queue_size", u16, 1024)},
                                false));
    s.pmem = make("PmemConfig", pci({need("file", path), may("size", u64), preset("discard_writes", boolean, false)},
                                     true, {"size", "", ""}));
    s.vsock = make("VsockConfig", pci({need("cid", u32), need("socket", path)}));
    s.vdpa = make("VdpaConfig", pci({need("path", path), preset("num_queues", usize, 1)}));
    s.generic_vhost_user = make("GenericVhostUserConfig", pci({need("socket", path), need("queue_sizes", list(u16)),
                                                               need("device_type", u32)}));
    s.device = make("DeviceConfig", pci({old_ ? need("path", path) : may("path", path), may("fd", i32),
                                         may("x_nv_gpudirect_clique", u8)}));
    s.user_device = make("UserDeviceConfig", pci({need("socket", path)}, !old_));
  }

  std::shared_ptr<const record> cpus() const {
    const auto topology = rec(make("CpuTopology", {need("threads_per_core", u16), need("cores_per_die", u16),
                                                   need("dies_per_package", u16), need("packages", u16)}));
    const auto affinity = list(rec(make("CpuAffinity", {need("vcpu", u32), need("host_cpus", list(usize))})));
    const auto features = rec(make("CpuFeatures", {preset("amx", boolean, false)}));
    fields f{need("boot_vcpus", u32),
             need("max_vcpus", u32),
             may("topology", topology),
             preset("kvm_hyperv", boolean, false),
             preset("max_phys_bits", u8, 46),
             may("affinity", affinity),
             preset("features", features, json{{"amx", false}}),
             preset("nested", boolean, true)};
    if (!old_)
      add(f, {preset("core_scheduling", choice({"Vm", "Vcpu", "Off"}), "Vm"), preset("profile", choice({"Host"}), "Host")});
    return make("CpusConfig", std::move(f));
  }

  std::shared_ptr<const record> memory() const {
    fields zone{need("id", text),
                need("size", u64),
                may("file", path),
                preset("shared", boolean, false),
                preset("hugepages", boolean, false),
                may("hugepage_size", u64),
                may("host_numa_node", u32),
                may("hotplug_size", u64),
                may("hotplugged_size", u64),
                preset("prefault", boolean, false)};
    fields f{need("size", u64),
             preset("mergeable", boolean, false),
             preset("hotplug_method", choice({"Acpi", "VirtioMem"}), "Acpi"),
             may("hotplug_size", u64),
             may("hotplugged_size", u64),
             preset("shared", boolean, false),
             preset("hugepages", boolean, false),
             may("hugepage_size", u64),
             preset("prefault", boolean, false)};
    if (!old_) {
      add(zone, {preset("reserve", boolean, false), preset("mergeable", boolean, false)});
      f.push_back(preset("reserve", boolean, false));
    }
    f.push_back(may("zones", list(rec(make("MemoryZoneConfig", std::move(zone))))));
    f.push_back(preset("thp", boolean, true));
    return make("MemoryConfig", std::move(f));
  }

  std::shared_ptr<const record> console(bool serial) const {
    fields f{may("file", path), need("mode", choice({"Off", "Pty", "Tty", "File", "Socket", "Null"}))};
    if (old_)
      f.push_back(preset("iommu", boolean, false));
    f.push_back(may("socket", path));
    if (old_)
      return make("ConsoleConfig", std::move(f));
    if (!serial)
      f = [&] {
        fields all = std::move(f);
        auto common = pci({});
        add(all, std::move(common));
        return all;
      }();
    for (auto& x : f)
      x.flattened = true;
    return make(serial ? "SerialConfig" : "ConsoleConfig", std::move(f));
  }

  std::shared_ptr<const record> platform() const {
    fields f{preset("num_pci_segments", u16, 1), may("iommu_segments", list(u16)),
             preset("iommu_address_width_bits", u8, 64)};
    if (old_) {
      add(f, {may("serial_number", text), may("uuid", text), may("oem_strings", list(text))});
    } else {
      add(f, {may("system_serial_number", text, "serial_number"), may("system_uuid", text, "uuid"),
              may("oem_strings", list(text)), may("system_manufacturer", text), may("system_product_name", text),
              may("system_version", text), may("system_family", text), may("system_sku_number", text),
              may("chassis_asset_tag", text), preset("iommufd", boolean, false), may("iommufd_fd", i32),
              preset("vfio_p2p_dma", boolean, true)});
    }
    return make("PlatformConfig", std::move(f));
  }

  std::shared_ptr<const record> vm(const schema& s) const {
    const auto payload = make("PayloadConfig", {may("firmware", path), may("kernel", path), may("cmdline", text),
                                                may("initramfs", path)});
    const auto group = make("RateLimiterGroupConfig", {preset("id", text, ""), preset("rate_limiter_config",
                                                                                       rate_limiter(), json::object())});
    const auto debug = make("DebugConsoleConfig",
                            {may("file", path), need("mode", choice({"Off", "Pty", "Tty", "File", "Socket", "Null"})),
                             may("iobase", u16)});
    const auto distance = make("NumaDistance", {preset("destination", u32, 0), preset("distance", u8, 0)});
    const auto numa = make("NumaConfig", {need("guest_numa_id", u32), may("cpus", list(u32)),
                                          may("distances", list(rec(distance))), may("memory_zones", list(text)),
                                          may("pci_segments", list(u16)), may("device_id", text)});
    const auto segment = make("PciSegmentConfig", {preset("pci_segment", u16, 0), preset("mmio32_aperture_weight", u32, 1),
                                                   preset("mmio64_aperture_weight", u32, 1)});
    const auto rng = make("RngConfig", old_ ? fields{need("src", path), preset("iommu", boolean, false)}
                                            : pci({need("src", path)}));
    fields balloon{need("size", u64), preset("deflate_on_oom", boolean, false),
                   preset("free_page_reporting", boolean, false)};
    json no_console{{"mode", "Tty"}}, no_serial{{"mode", "Null"}}, no_rng{{"src", "/dev/urandom"}};
    json no_memory{{"size", 512u << 20}, {"mergeable", false}, {"hotplug_method", "Acpi"}, {"shared", false},
                   {"hugepages", false}, {"prefault", false}};
    json no_cpus{{"boot_vcpus", 1u}, {"max_vcpus", 1u}, {"kvm_hyperv", false}, {"max_phys_bits", 46},
                 {"features", json{{"amx", false}}}, {"nested", true}};
    if (old_) {
      no_console["iommu"] = no_serial["iommu"] = no_rng["iommu"] = false;
    } else {
      no_console["pci_segment"] = 0;
      no_rng = json{{"pci_segment", 0}, {"src", "/dev/urandom"}};
      no_memory["reserve"] = false;
      no_cpus["core_scheduling"] = "Vm";
      no_cpus["profile"] = "Host";
    }
    no_memory["thp"] = true;

    fields f{preset("cpus", rec(cpus()), no_cpus),
             preset("memory", rec(memory()), no_memory),
             may("payload", rec(payload)),
             may("rate_limit_groups", list(rec(group))),
             may("disks", list(rec(s.disk))),
             may("net", list(rec(s.net))),
             preset("rng", rec(rng), no_rng),
             may("balloon", rec(make("BalloonConfig", old_ ? std::move(balloon) : pci(std::move(balloon)))))};
    if (!old_)
      f.push_back(may("generic_vhost_user", list(rec(s.generic_vhost_user))));
    add(f, {may("fs", list(rec(s.fs))), may("pmem", list(rec(s.pmem))), preset("serial", rec(console(true)), no_serial),
            preset("console", rec(console(false)), no_console),
            preset("debug_console", rec(debug), json{{"mode", "Off"}, {"iobase", 233}}),
            may("devices", list(rec(s.device))), may("user_devices", list(rec(s.user_device))),
            may("vdpa", list(rec(s.vdpa))), may("vsock", rec(s.vsock)), preset("pvpanic", boolean, false),
            preset("iommu", boolean, false), may("numa", list(rec(numa))), preset("watchdog", boolean, false)});
    if (!old_)
      f.push_back(may("rtc", rec(make("RtcConfig", pci({})))));
    add(f, {may("pci_segments", list(rec(segment))), may("platform", rec(platform())),
            may("tpm", rec(make("TpmConfig", {need("socket", path)}))), preset("landlock_enable", boolean, false),
            may("landlock_rules", list(rec(make("LandlockConfig", {need("path", path), need("access", text)}))))});
    return make("VmConfig", std::move(f));
  }

  bool old_, head_;
};

} // namespace

schema make_schema(profile p) {
  return builder{p}.build();
}

} // namespace caisson::cloud_hypervisor::api_double
