#include "config/adapt.hpp"

#include <algorithm>
#include <cmath>

#include "config/nearest.hpp"
#include "config/sizing.hpp"

namespace caisson::config {
namespace {

constexpr auto hv = table::hypervisor;
constexpr std::uint64_t memory_block_bytes = 128 * mib;
constexpr std::uint32_t least_boot_ms = 60'000;
constexpr std::uint32_t cloud_hypervisor_slots = 8;

std::string parent(const std::string& path) {
  const auto slash = path.rfind('/');
  return slash == path.npos ? "" : slash == 0 ? "/" : path.substr(0, slash);
}

std::string base(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

std::string text_of(std::uint64_t bytes) {
  return std::to_string(bytes / mib) + " MiB";
}

struct adapter {
  const layered& config;
  const host_facts& host;
  adapted& out;

  void note(table in, std::string_view name, std::string used, std::string why) {
    const auto& set = config.at(in, name);
    auto& each = out.adaptations.emplace_back();
    each.set_key(config.full_name(*find_key(in, name)));
    each.set_asked(set.written.empty() ? to_toml(set.content) : escaped(set.written, 4096));
    each.set_used(std::move(used));
    each.set_why(std::move(why));
    each.set_where(to_string(set.where));
  }

  problem fault(table in, std::string_view name, std::string what, std::string near = {}) {
    const auto& set = config.at(in, name);
    const auto& written = set.written.empty() ? to_toml(set.content) : set.written;
    return make_problem(set.where, {config.full_name(*find_key(in, name)),
                                    written,
                                    std::move(what),
                                    {},
                                    std::move(near),
                                    v1::CONFIG_SEVERITY_ERROR});
  }

  void lack(table in, std::string_view name, std::string what, std::string near = {}) {
    out.missing.push_back(fault(in, name, std::move(what), std::move(near)));
  }

  void architecture() {
    const auto& machine = config.text(hv, "machine_type");
    const auto name = base(config.text(hv, "path"));
    if (name == "qemu-system-aarch64" || (name.empty() && machine == "virt"))
      out.architecture = "aarch64";
    else if (name == "qemu-system-x86_64" || (name.empty() && machine == "q35"))
      out.architecture = "x86_64";
    else
      out.architecture = machine == "virt" ? "aarch64" : machine == "q35" ? "x86_64" : host.architecture;
  }

  void backend() {
    const backend_line* found = nullptr;
    std::string all;
    for (const auto& each : host.backends) {
      all += (all.empty() ? "" : ", ") + each.name;
      for (std::size_t i = 0; i < each.architectures.size(); ++i)
        all += (i ? ", " : " (") + each.architectures[i] + (i + 1 == each.architectures.size() ? ")" : "");
      if (each.name == config.backend)
        found = &each;
    }
    const auto& set = config.at(hv, "path");
    const place where = set.is_set() ? set.where : config.at(table::runtime, "hypervisor_name").where;
    const auto say = [&](std::string what) {
      out.missing.push_back(make_problem(
          where, {"hypervisor." + config.hypervisor, {}, std::move(what), {}, {}, v1::CONFIG_SEVERITY_ERROR}));
    };
    if (!found)
      say("hypervisor \"" + config.hypervisor + "\" needs the backend " + config.backend +
          ", which this build does not have; backends: " + all);
    else if (!found->architectures.empty() && std::find(found->architectures.begin(), found->architectures.end(),
                                                        out.architecture) == found->architectures.end())
      say("guests of architecture " + out.architecture + " are not supported by backend " + config.backend +
          " in this build; backends: " + all);
  }

  /// Keys that this backend has no use for, though another has. What a backend without rules here has use for, it knows
  /// itself.
  void foreign_keys() {
    const auto ours = config.backend == "qemu"               ? on::qemu
                      : config.backend == "cloud-hypervisor" ? on::cloud_hypervisor
                                                             : on::both;
    for (const auto& row : all_keys())
      if (row.in == hv && row.what == treatment::honoured && (row.backends & ours) == 0 && row.backends != on::none &&
          config.at(hv, row.name).is_set())
        note(hv, row.name, "", "has no meaning with " + config.backend);
  }

  /// A program of the host: the one named, else the host's own.
  std::string program(std::string_view name, const std::vector<std::string>& own_names, const std::string& package,
                      bool needed) {
    const auto& asked = config.text(hv, name);
    if (!asked.empty() && host.exists(asked))
      return asked;
    auto own = find_program(host, own_names);
    if (!own.empty()) {
      if (!asked.empty())
        note(hv, name, '"' + own + '"', "is not there: the host's own program");
      return own;
    }
    if (asked.empty() && !needed)
      return {};
    auto near = asked.empty() ? std::string{} : nearest_path(host, asked);
    if (base(near) != base(asked))
      near.clear(); // another program altogether
    const auto none = (asked.empty() ? "not set, and this host has no " : "is not there, and this host has no ") +
                      own_names.front() + " (looked in PATH and in the usual directories; " + package + ")";
    if (needed)
      lack(hv, name, none, near);
    else
      note(hv, name, "", none + "; nothing needs it now" + (near.empty() ? "" : "; nearest: " + near));
    return {};
  }

  void programs() {
    if (config.backend == "qemu")
      out.vmm_path = program(
          "path", {"qemu-system-" + out.architecture},
          out.architecture == "aarch64" ? "Debian: package qemu-system-arm" : "Debian: package qemu-system-x86", true);
    else if (config.backend == "cloud-hypervisor")
      out.vmm_path = program("path", {"cloud-hypervisor", "cloud-hypervisor-static"},
                             "no Debian package has it: name the program here", true);
    else
      out.vmm_path = file("path"); // which program it is where none is named, the backend knows
    out.virtio_fs_daemon = program("virtio_fs_daemon", {"virtiofsd"}, "Debian: package qemu-system-common", false);
  }

  /// A file of the host: the one named; `movable` ones may lie in a directory that is only spelt otherwise.
  std::string file(std::string_view name, bool movable = false) {
    const auto& path = config.text(hv, name);
    if (path.empty() || host.exists(path))
      return path;
    auto near = nearest_path(host, path);
    const auto file_name = base(path);
    if (movable && base(near) == file_name) {
      note(hv, name, '"' + near + '"', "is not there: the same file in the nearest directory");
      return near;
    }
    if (movable && !file_name.empty())
      for (std::string_view directory :
           {"/usr/share/AAVMF/", "/usr/share/OVMF/", "/usr/share/qemu-efi-aarch64/", "/usr/share/qemu/"})
        if (auto own = std::string{directory} + file_name; host.exists(own)) {
          note(hv, name, '"' + own + '"', "is not there: the host's own file of that name");
          return own;
        }
    std::string package;
    if (movable && file_name.starts_with("AAVMF_"))
      package = " (Debian: package qemu-efi-aarch64 brings /usr/share/AAVMF/AAVMF_CODE.fd and AAVMF_VARS.fd)";
    else if (movable && file_name.starts_with("OVMF"))
      package = " (Debian: package ovmf brings /usr/share/OVMF/OVMF_CODE.fd and OVMF_VARS.fd)";
    lack(hv, name, "there is no such file" + package, near);
    return {};
  }

  void files() {
    const bool own = config.text(hv, "guest") != "file";
    for (std::string_view name : {"kernel", "image", "initrd"}) {
      if (config.text(hv, name).empty())
        continue;
      if (own)
        note(hv, name, "Caisson's own guest",
             name == "image" ? "guest = \"own\" boots Caisson's kernel and initramfs, whose agent the engine speaks to"
                             : "guest = \"own\" boots Caisson's kernel and initramfs, whose agent the engine speaks "
                               "to; guest = \"file\" uses this file");
      else
        file(name);
    }
    out.firmware = config.text(hv, "firmware") == "auto" ? "auto" : file("firmware", true);
    out.firmware_volume = file("firmware_volume", true);
    file("entropy_source");
    const auto& flashes = config.list(hv, "pflashes");
    for (const auto& path : flashes)
      if (!host.exists(path))
        lack(hv, "pflashes", "there is no file " + escaped(path), nearest_path(host, path));
    if (flashes.size() == 2 && out.firmware.empty()) {
      out.firmware = flashes[0];
      out.firmware_volume = flashes[1];
    }
  }

  void memory() {
    const auto host_bytes = host.memory_bytes / memory_block_bytes * memory_block_bytes;
    const auto asked_max = static_cast<std::uint64_t>(config.integer(hv, "default_maxmemory")) * mib;
    out.boot_memory_bytes = static_cast<std::uint64_t>(config.integer(hv, "default_memory")) * mib;
    out.max_memory_bytes = asked_max;
    if (asked_max == 0 || asked_max > host_bytes) {
      out.max_memory_bytes = host_bytes;
      note(hv, "default_maxmemory", std::to_string(host_bytes / mib),
           (asked_max == 0 ? "0 is as much as the host has: " : "the host has less: ") + text_of(host.memory_bytes) +
               ", in whole blocks of 128 MiB");
    }
    if (out.boot_memory_bytes > host_bytes)
      out.too_large.push_back(
          fault(hv, "default_memory", "is more than this host has (" + text_of(host.memory_bytes) + ")"));
    out.memory_slots = static_cast<std::uint32_t>(config.integer(hv, "memory_slots"));
    if (out.memory_slots == 0) {
      out.memory_slots = 10;
      note(hv, "memory_slots", "10", "0 is the default");
    }
    if (config.backend == "cloud-hypervisor" && out.memory_slots != cloud_hypervisor_slots) {
      out.memory_slots = cloud_hypervisor_slots;
      note(hv, "memory_slots", "8", "Cloud Hypervisor has 8, always");
    }
    if (config.at(hv, "enable_virtio_mem").is_set() && config.text(hv, "memory_method") != "auto" &&
        config.flag(hv, "enable_virtio_mem") != (config.text(hv, "memory_method") == "virtio-mem"))
      note(hv, "enable_virtio_mem", config.flag(hv, "enable_virtio_mem") ? "false" : "true",
           "memory_method = \"" + config.text(hv, "memory_method") + "\" wins (" +
               to_string(config.at(hv, "memory_method").where) + ")");
  }

  void automatic_memory() {
    constexpr auto own = table::runtime_caisson;
    const auto bytes = [&](std::string_view name) {
      return static_cast<std::uint64_t>(config.integer(own, name)) * mib;
    };
    const auto floor = bytes("memory_autosize_floor");
    if (floor > 0 && floor < out.boot_memory_bytes)
      note(own, "memory_autosize_floor", std::to_string(out.boot_memory_bytes / mib),
           "a sandbox never has less than at boot");
    for (std::string_view name : {"memory_autosize_floor", "memory_autosize_ceiling"})
      if (bytes(name) > out.max_memory_bytes)
        note(own, name, std::to_string(out.max_memory_bytes / mib), "the most that the sandbox can have");
  }

  void processors() {
    const auto asked = config.number(hv, "default_vcpus");
    const auto asked_max = config.integer(hv, "default_maxvcpus");
    out.max_vcpus = static_cast<std::uint32_t>(asked_max);
    if (asked_max == 0 || asked_max > static_cast<std::int64_t>(host.cpus)) {
      out.max_vcpus = host.cpus;
      note(hv, "default_maxvcpus", std::to_string(host.cpus),
           asked_max == 0 ? "0 is as many as the host has" : "the host has no more");
    }
    if (asked == 0) {
      out.vcpus_milli = 1000;
      note(hv, "default_vcpus", "1", "0 is the default");
    } else if (asked < 0 || asked > host.cpus) {
      out.vcpus_milli = out.max_vcpus * 1000;
      note(hv, "default_vcpus", std::to_string(out.max_vcpus),
           asked < 0 ? "below 0 is as many as there may be" : "the host has no more");
    } else {
      out.vcpus_milli = static_cast<std::uint32_t>(std::ceil(asked * 1000 - 1e-9));
    }
  }

  void pci() {
    out.bridges = static_cast<std::uint32_t>(config.integer(hv, "default_bridges"));
    if (out.bridges == 0 && config.backend == "qemu") {
      out.bridges = 1;
      note(hv, "default_bridges", "1", "0 is the default");
    }
  }

  void timeouts() {
    const auto& exact = config.at(table::agent, "boot_timeout_ms");
    if (exact.is_set()) {
      out.agent_connect_timeout_ms = static_cast<std::uint32_t>(config.integer(table::agent, "boot_timeout_ms"));
      return;
    }
    out.agent_connect_timeout_ms = least_boot_ms;
    for (auto [name, scale] :
         {std::pair<std::string_view, std::int64_t>{"dial_timeout", 1000}, {"reconnect_timeout_ms", 1}}) {
      if (!config.at(table::agent, name).is_set())
        continue;
      const auto asked_ms = config.integer(table::agent, name) * scale;
      if (asked_ms >= least_boot_ms)
        out.agent_connect_timeout_ms = std::max(out.agent_connect_timeout_ms, static_cast<std::uint32_t>(asked_ms));
      else
        note(table::agent, name, std::to_string(least_boot_ms / scale),
             "it bounds the whole boot here, which is slow without hardware virtualization; boot_timeout_ms sets it "
             "exactly");
    }
  }
};

} // namespace

adapted adapt(const layered& config, const host_facts& host) {
  adapted out;
  if (config.backend.empty())
    return out; // refused by name: what this host would make of the figures is beside the point
  adapter all{config, host, out};
  all.architecture();
  all.backend();
  all.programs();
  all.files();
  all.memory();
  all.automatic_memory();
  all.processors();
  all.pci();
  all.foreign_keys();
  all.timeouts();
  return out;
}

std::string nearest_path(const host_facts& host, const std::string& path) {
  if (path.empty() || path.front() != '/' || path.size() > 4096)
    return {};
  const auto up = parent(path);
  // the longest existing parent, then one component at a time, each the closest name there
  std::string at = up;
  std::vector<std::string> rest = {base(path)};
  while (at != "/" && !at.empty() && !host.exists(at)) {
    rest.push_back(base(at));
    at = parent(at);
  }
  if (at.empty())
    at = "/";
  for (; !rest.empty(); rest.pop_back()) {
    const auto direct = (at == "/" ? "" : at) + '/' + rest.back();
    if (host.exists(direct)) {
      at = direct;
      continue;
    }
    const auto names = host.list(at);
    const std::vector<std::string_view> views(names.begin(), names.end());
    const auto near = nearest(rest.back(), views);
    if (near.empty())
      return {};
    at = (at == "/" ? "" : at) + '/' + near;
  }
  return at;
}

std::string find_program(const host_facts& host, const std::vector<std::string>& names) {
  for (const auto& name : names)
    for (const auto& directory : host.program_paths) {
      auto path = directory + '/' + name;
      if (host.exists(path))
        return path;
    }
  return {};
}

} // namespace caisson::config
