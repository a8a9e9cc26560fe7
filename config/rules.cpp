#include "config/load.hpp"

/// Keys that contradict each other. Every message names both places.
namespace caisson::config {
namespace {

constexpr auto hv = table::hypervisor;

struct rules {
  const layered& config;
  std::vector<problem>& problems;

  const setting& at(std::string_view name) const { return config.at(hv, name); }

  std::string named(table in, std::string_view name) const {
    const auto& set = config.at(in, name);
    const auto* row = find_key(in, name);
    const auto written = set.written.empty() ? to_toml(set.content) : escaped(set.written);
    return config.full_name(*row) + " = " + (written.empty() ? "not set" : written) + " (" + to_string(set.where) + ')';
  }

  /// Two keys; the message stands at the one that was set, the later of two.
  void refuse(table in, std::string_view first, table other_in, std::string_view second, const std::string& what,
              std::string allowed = {}) {
    if (!config.at(in, first).is_set() && config.at(other_in, second).is_set()) {
      std::swap(in, other_in);
      std::swap(first, second);
    }
    const auto& set = config.at(in, first);
    problems.push_back(make_problem(set.where, {config.full_name(*find_key(in, first)),
                                                set.written,
                                                what + "; the other is " + named(other_in, second),
                                                std::move(allowed),
                                                {},
                                                v1::CONFIG_SEVERITY_ERROR}));
  }

  void refuse_one(table in, std::string_view name, const std::string& what, std::string allowed = {}) {
    const auto& set = config.at(in, name);
    problems.push_back(make_problem(
        set.where,
        {config.full_name(*find_key(in, name)), set.written, what, std::move(allowed), {}, v1::CONFIG_SEVERITY_ERROR}));
  }

  void processors() {
    const auto most = config.integer(hv, "default_maxvcpus");
    if (most > 0 && config.number(hv, "default_vcpus") > static_cast<double>(most))
      refuse(hv, "default_vcpus", hv, "default_maxvcpus", "default_vcpus is above default_maxvcpus");
  }

  void memory() {
    const auto most = config.integer(hv, "default_maxmemory");
    if (most > 0 && config.integer(hv, "default_memory") > most)
      refuse(hv, "default_memory", hv, "default_maxmemory", "default_memory is above default_maxmemory");
  }

  void automatic_memory() {
    constexpr auto own = table::runtime_caisson;
    const auto floor = config.integer(own, "memory_autosize_floor");
    const auto ceiling = config.integer(own, "memory_autosize_ceiling");
    const auto most = config.integer(hv, "default_maxmemory");
    if (ceiling > 0 && floor > ceiling)
      refuse(own, "memory_autosize_floor", own, "memory_autosize_ceiling",
             "memory_autosize_floor is above memory_autosize_ceiling");
    if (most > 0 && ceiling > most)
      refuse(own, "memory_autosize_ceiling", hv, "default_maxmemory",
             "memory_autosize_ceiling is above default_maxmemory");
    else if (most > 0 && floor > most)
      refuse(own, "memory_autosize_floor", hv, "default_maxmemory", "memory_autosize_floor is above default_maxmemory");
    if (ceiling > 0 && ceiling < config.integer(hv, "default_memory"))
      refuse(own, "memory_autosize_ceiling", hv, "default_memory",
             "memory_autosize_ceiling is below default_memory, and a sandbox never has less than at boot");
  }

  void root_ports() {
    if (at("default_root_ports").is_set() && at("pcie_root_port").is_set() &&
        config.integer(hv, "default_root_ports") != config.integer(hv, "pcie_root_port"))
      refuse(hv, "default_root_ports", hv, "pcie_root_port", "two names of one thing with different values");
  }

  void guest() {
    if (!config.text(hv, "image").empty() && !config.text(hv, "initrd").empty())
      refuse(hv, "initrd", hv, "image", "image and initrd are both set", "one of the two; \"\" clears the other");
    if (config.text(hv, "guest") != "file")
      return;
    if (config.text(hv, "kernel").empty())
      refuse_one(hv, "guest", "guest = \"file\" needs `kernel`, which is not set");
    if (config.text(hv, "initrd").empty())
      refuse_one(hv, "guest",
                 config.text(hv, "image").empty()
                     ? "guest = \"file\" needs `initrd`, which is not set"
                     : "guest = \"file\" needs `initrd`, which is not set; an image is not attached");
  }

  void vfio() {
    const auto asks = [&](std::string_view name) {
      return !config.text(hv, name).empty() && config.text(hv, name) != "no-port";
    };
    if (asks("hot_plug_vfio") && asks("cold_plug_vfio"))
      refuse(hv, "hot_plug_vfio", hv, "cold_plug_vfio", "hot plug and cold plug at once");
    if (config.integer(hv, "pcie_switch_port") > 0 &&
        (config.integer(hv, "pcie_root_port") > 0 || config.integer(hv, "default_root_ports") > 0))
      refuse(hv, "pcie_switch_port", hv,
             config.integer(hv, "pcie_root_port") > 0 ? "pcie_root_port" : "default_root_ports",
             "switch ports and root ports at once");
  }

  void firmware() {
    const auto& flashes = config.list(hv, "pflashes");
    if (flashes.size() != 0 && flashes.size() != 2)
      refuse_one(hv, "pflashes", "has " + std::to_string(flashes.size()) + (flashes.size() == 1 ? " image" : " images"),
                 "none, or two: code and variables");
    if (!flashes.empty() && !config.text(hv, "firmware").empty())
      refuse(hv, "pflashes", hv, "firmware", "firmware is given twice", "one of the two; \"\" or [] clears the other");
    if (!config.text(hv, "firmware_volume").empty() && config.text(hv, "firmware").empty())
      refuse_one(hv, "firmware_volume", "a variable store without `firmware`");
    const bool arm = config.text(hv, "machine_type") == "virt" || config.text(hv, "path").ends_with("aarch64");
    const auto& method = config.text(hv, "memory_method");
    const bool dimm = method == "dimm" ||
                      (method == "auto" && at("enable_virtio_mem").is_set() && !config.flag(hv, "enable_virtio_mem"));
    if (config.backend == "qemu" && arm && dimm && flashes.empty() && config.text(hv, "firmware").empty() &&
        !config.flag(table::runtime, "static_sandbox_resource_mgmt"))
      refuse(
          hv, method == "dimm" ? "memory_method" : "enable_virtio_mem", hv, "firmware",
          "on ARM64 memory hotplug by DIMM needs UEFI firmware (ACPI depends on it), and none is set: set firmware "
          "(Debian: package qemu-efi-aarch64, /usr/share/AAVMF/AAVMF_CODE.fd), or " +
              std::string{method == "dimm" ? "memory_method = \"virtio-mem\"" : "enable_virtio_mem = true"} +
              ", which needs none");
  }

  void machine() {
    const auto& type = config.text(hv, "machine_type");
    const auto& path = config.text(hv, "path");
    const auto of_path = path.ends_with("qemu-system-aarch64")  ? "virt"
                         : path.ends_with("qemu-system-x86_64") ? "q35"
                                                                : "";
    if (config.backend == "qemu" && *of_path && (type == "virt" || type == "q35") && type != of_path)
      refuse(hv, "machine_type", hv, "path", "this machine is another architecture's than the program");
    if (config.backend == "qemu" && type == "microvm")
      refuse_one(hv, "machine_type", "refused: microvm can hotplug neither memory nor processors", "q35, virt");
    if (config.backend == "qemu" && (type == "pseries" || type == "s390-ccw-virtio"))
      refuse_one(hv, "machine_type", "refused: no such architecture here; architectures: x86_64 (q35), aarch64 (virt)",
                 "q35, virt");
  }

  void timeouts() {
    const auto rt = table::runtime;
    if (config.at(rt, "create_container_timeout").is_set() &&
        config.at(table::agent, "create_container_timeout").is_set() &&
        config.integer(rt, "create_container_timeout") != config.integer(table::agent, "create_container_timeout"))
      refuse(rt, "create_container_timeout", table::agent, "create_container_timeout",
             "two names of one thing with different values");
  }
};

} // namespace

void check_rules(const layered& config, std::vector<problem>& problems) {
  rules all{config, problems};
  all.processors();
  all.memory();
  all.automatic_memory();
  all.root_ports();
  all.guest();
  all.vfio();
  all.firmware();
  all.machine();
  all.timeouts();
}

} // namespace caisson::config
