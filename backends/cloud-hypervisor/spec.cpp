#include "backends/cloud-hypervisor/spec.hpp"

#include <algorithm>
#include <set>

#include "backends/cloud-hypervisor/http_reply.hpp"
#include "backends/cloud-hypervisor/ledger.hpp"

namespace caisson::cloud_hypervisor {
namespace {

constexpr std::size_t most_text_bytes = 200;

std::string quoted(const std::string& text) {
  return "\"" + escaped_text(text, most_text_bytes) + "\"";
}

std::uint64_t round_up(std::uint64_t bytes, std::uint64_t to) {
  return (bytes + to - 1) / to * to;
}

std::string wrong_path(const char* what, const std::string& path) {
  if (path.empty() || path.front() != '/')
    return std::string{what} + " " + quoted(path) + ": expected an absolute path";
  if (std::any_of(path.begin(), path.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }))
    return std::string{what} + " " + quoted(path) + ": a path with control characters is not taken";
  return {};
}

std::string wrong_optional_path(const char* what, const std::string& path) {
  return path.empty() ? std::string{} : wrong_path(what, path);
}

std::string wrong_socket(const char* what, const std::string& path) {
  if (auto why = wrong_path(what, path); !why.empty())
    return why;
  if (path.size() <= longest_socket_path_bytes)
    return {};
  return std::string{what} + " " + quoted(path) + " is " + std::to_string(path.size()) +
         " bytes long, the system takes " + std::to_string(longest_socket_path_bytes) +
         " at most; choose a shorter directory for sockets (--run-dir)";
}

std::string wrong_devices(const v1::VmSpec& spec) {
  std::set<std::string> seen;
  auto id = [&](const char* kind, const std::string& name) -> std::string {
    if (!valid_id(name))
      return std::string{kind} + " " + quoted(name) + ": expected an id of 1 to 32 of a-z 0-9 -";
    return seen.insert(name).second ? std::string{}
                                    : std::string{kind} + " " + quoted(name) + ": another device has this id";
  };
  for (const auto& d : spec.disks()) {
    if (auto why = id("disk", d.id()); !why.empty())
      return why;
    if (auto why = wrong_path("disk image", d.path()); !why.empty())
      return why;
  }
  for (const auto& n : spec.nets()) {
    if (auto why = id("net", n.id()); !why.empty())
      return why;
    if (n.tap_name().empty())
      return "net " + quoted(n.id()) + ": no tap is named; make one on the host and name it";
  }
  for (const auto& s : spec.shares()) {
    if (auto why = id("share", s.id()); !why.empty())
      return why;
    if (auto why = wrong_socket("share's socket", s.socket_path()); !why.empty())
      return why;
  }
  return {};
}

std::string wrong_paths(const v1::VmSpec& spec) {
  for (const auto& why :
       {wrong_path("VMM", spec.vmm_path()), wrong_path("run directory", spec.run_directory()),
        wrong_socket("API socket", api_socket(spec.run_directory())),
        wrong_socket("vsock socket", vsock_socket(spec.run_directory())),
        wrong_socket("console socket", console_socket(spec.run_directory())),
        wrong_optional_path("guest kernel", spec.kernel_path()),
        wrong_optional_path("guest initrd", spec.initrd_path()), wrong_optional_path("firmware", spec.firmware_path()),
        wrong_optional_path("entropy source", spec.entropy_source())})
    if (!why.empty())
      return why;
  return {};
}

problem refuse_payload(const v1::VmSpec& spec) {
  if (!spec.firmware_path().empty() && spec.disks().empty())
    return {"unsupported",
            "firmware " + quoted(spec.firmware_path()) +
                ": with firmware Cloud Hypervisor boots from a disk and takes neither kernel nor initrd, "
                "and this VM has no disk; leave `firmware` unset for direct kernel boot, or give the VM "
                "a disk to boot from"};
  if (spec.firmware_path().empty() && spec.kernel_path().empty())
    return {"invalid_argument", "neither kernel nor firmware is named: nothing could be booted"};
  if (spec.architecture() == "aarch64" && spec.firmware_path().empty() &&
      spec.memory_method() == v1::MEMORY_METHOD_DIMM && spec.max_bytes() > spec.boot_bytes())
    return {"unsupported", "memory by DIMM on ARM64 without firmware: a directly booted kernel gets no ACPI there, on "
                           "which DIMMs depend; use memory_method = \"virtio-mem\", or boot through UEFI (firmware = "
                           "the path of CLOUDHV_EFI.fd) from a disk"};
  return {};
}

} // namespace

std::string api_socket(const std::string& run_directory) {
  return run_directory + "/api.sock";
}

std::string vsock_socket(const std::string& run_directory) {
  return run_directory + "/vsock.sock";
}

std::string console_socket(const std::string& run_directory) {
  return run_directory + "/console.sock";
}

v1::VmChannels channels_of(const v1::VmSpec& spec) {
  v1::VmChannels out;
  out.set_agent("hybrid-vsock:" + vsock_socket(spec.run_directory()) + ":" + std::to_string(agent_port));
  out.set_console("unix:" + console_socket(spec.run_directory()));
  return out;
}

std::uint64_t most_plugged_bytes(const v1::VmSpec& spec) {
  return spec.max_bytes() > spec.boot_bytes() ? spec.max_bytes() - spec.boot_bytes() : 0;
}

std::uint64_t hotplug_region_bytes(const v1::VmSpec& spec) {
  const auto wanted = round_up(most_plugged_bytes(spec), dimm_block_bytes);
  if (wanted == 0 || spec.memory_method() == v1::MEMORY_METHOD_VIRTIO_MEM)
    return wanted;
  return wanted + dimm_block_bytes;
}

disk_config disk_of(const v1::VmDisk& disk) {
  return {.id = disk.id(), .path = disk.path(), .read_only = disk.read_only()};
}

net_config net_of(const v1::VmNet& net) {
  net_config out;
  out.id = net.id();
  out.tap = net.tap_name();
  out.mac = net.mac();
  return out;
}

bool valid_id(const std::string& id) {
  return !id.empty() && id.size() <= 32 && std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
  });
}

std::variant<vm_config, problem> config_of(const v1::VmSpec& spec) {
  for (auto* check : {&wrong_paths, &wrong_devices})
    if (auto why = check(spec); !why.empty())
      return problem{"invalid_argument", std::move(why)};
  if (auto why = refuse_payload(spec); !why.code.empty())
    return why;
  if (spec.boot_vcpus() == 0 || spec.max_vcpus() < spec.boot_vcpus() || spec.max_vcpus() > most_vcpus)
    return problem{"out_of_range", std::to_string(spec.boot_vcpus()) + " vCPUs at boot and at most " +
                                       std::to_string(spec.max_vcpus()) + ": expected 1 to " +
                                       std::to_string(most_vcpus) + ", and no fewer at most than at boot"};
  if (spec.boot_bytes() == 0 || spec.max_bytes() < spec.boot_bytes())
    return problem{"out_of_range", "max_bytes " + std::to_string(spec.max_bytes()) + " is below boot_bytes " +
                                       std::to_string(spec.boot_bytes()) + ", or there is no memory at boot at all"};
  if (!spec.cpu_features().empty())
    return problem{"unsupported", "cpu_features = " + quoted(spec.cpu_features()) +
                                      ": Cloud Hypervisor gives a guest the host's processor as it is; leave it empty"};
  vm_config out;
  out.boot_vcpus = spec.boot_vcpus();
  out.max_vcpus = spec.max_vcpus();
  out.memory_bytes = spec.boot_bytes();
  out.hotplug_bytes = hotplug_region_bytes(spec);
  out.method = spec.memory_method() == v1::MEMORY_METHOD_VIRTIO_MEM ? hotplug_method::virtio_mem : hotplug_method::acpi;
  out.shared = !spec.shares().empty();
  out.hugepages = spec.hugepages();
  out.prefault = spec.preallocate();
  if (!spec.firmware_path().empty()) {
    out.firmware = spec.firmware_path();
  } else {
    out.kernel = spec.kernel_path();
    out.command_line = spec.kernel_command_line();
    out.initramfs = spec.initrd_path();
  }
  for (const auto& d : spec.disks())
    out.disks.push_back(disk_of(d));
  for (const auto& n : spec.nets())
    out.nets.push_back(net_of(n));
  for (const auto& s : spec.shares())
    out.shares.push_back({.id = s.id(), .tag = s.id(), .socket = s.socket_path()});
  out.entropy_source = spec.entropy_source();
  if (spec.free_page_reporting())
    out.balloon = balloon_config{.free_page_reporting = true};
  out.serial = {console_mode::socket, console_socket(spec.run_directory())};
  out.console = {console_mode::off, {}};
  out.vsock = vsock_config{.cid = 3, .socket = vsock_socket(spec.run_directory())};
  out.pvpanic = true;
  return out;
}

} // namespace caisson::cloud_hypervisor
