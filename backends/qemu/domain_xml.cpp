#include "backends/qemu/domain_xml.hpp"

#include <unistd.h>

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <pugixml.hpp>

#include <algorithm>
#include <cctype>
#include <sstream>

#include "backends/qemu/cpu_features.hpp"
#include "backends/qemu/device_xml.hpp"
#include "backends/qemu/failure.hpp"
#include "backends/qemu/text_checks.hpp"
#include "backends/qemu/xml_writing.hpp"

namespace caisson::qemu {
namespace {

constexpr std::string_view name_prefix = "caisson-";
constexpr std::string_view dimm_prefix = "ua-dimm-";
constexpr const char* notes_uri = "urn:caisson:vm:1";

using xml::add;
using xml::add_kib;
using xml::add_pci_address;
using xml::attribute;
using xml::print;

std::uint64_t fnv(std::string_view bytes, std::uint64_t seed) {
  std::uint64_t h = seed;
  for (unsigned char c : bytes) {
    h ^= c;
    h *= 0x100000001b3ull;
  }
  h ^= h >> 29;
  h *= 0xbf58476d1ce4e5b9ull;
  return h ^ (h >> 32);
}

constexpr std::uint64_t seed_a = 0xcbf29ce484222325ull;
constexpr std::uint64_t seed_b = 0x9ae16a3b2f90404full;

std::string hex64(std::uint64_t v) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string s(16, '0');
  for (int i = 15; i >= 0; --i, v >>= 4)
    s[static_cast<std::size_t>(i)] = digits[v & 15];
  return s;
}

bool x86(const v1::VmSpec& spec) {
  return spec.architecture() == "x86_64";
}

void check(const v1::VmSpec& spec) {
  check_sandbox_id(spec.sandbox_id());
  if (spec.architecture() != "x86_64" && spec.architecture() != "aarch64")
    throw failure("unsupported", "architecture '" + printable(spec.architecture()) +
                                     "': the QEMU backend makes x86_64 and aarch64 machines");
  if (spec.accelerator() != "kvm" && spec.accelerator() != "tcg")
    throw failure("invalid_argument", "accelerator '" + printable(spec.accelerator()) +
                                          "': the QEMU backend is told \"kvm\" or \"tcg\" (DescribeBackend decides)");
  check_path("path of QEMU (vmm_path)", spec.vmm_path());
  check_path("guest kernel (kernel_path)", spec.kernel_path());
  check_optional_path("guest initrd (initrd_path)", spec.initrd_path());
  check_optional_path("firmware (firmware_path)", spec.firmware_path());
  check_optional_path("firmware variables (firmware_variables_path)", spec.firmware_variables_path());
  check_optional_path("entropy_source", spec.entropy_source());
  check_path("run directory", spec.run_directory());
  check_text("kernel command line", spec.kernel_command_line());
  check_text("machine_type", spec.machine_type());
  check_socket_path(agent_socket(spec.run_directory()));
  check_socket_path(console_socket(spec.run_directory()));
  if (spec.boot_vcpus() == 0 || spec.max_vcpus() < spec.boot_vcpus())
    throw failure("out_of_range", "vCPUs: " + std::to_string(spec.boot_vcpus()) + " at boot, " +
                                      std::to_string(spec.max_vcpus()) + " at most; expected 1 <= boot <= most");
  if (!x86(spec) && spec.max_vcpus() != spec.boot_vcpus())
    throw failure("unsupported", "vCPUs: " + std::to_string(spec.boot_vcpus()) + " at boot, " +
                                     std::to_string(spec.max_vcpus()) +
                                     " at most; QEMU's virt machine cannot plug any, so that both have to be the same");
  if (spec.boot_bytes() < 32 * mib || spec.boot_bytes() % mib != 0)
    throw failure("out_of_range", "boot memory " + std::to_string(spec.boot_bytes()) +
                                      " bytes: expected whole MiB, at least 32");
  if (spec.max_bytes() < spec.boot_bytes())
    throw failure("out_of_range", "max_bytes " + std::to_string(spec.max_bytes()) + " is below boot_bytes " +
                                      std::to_string(spec.boot_bytes()));
  if (spec.memory_method() != v1::MEMORY_METHOD_DIMM && spec.memory_method() != v1::MEMORY_METHOD_VIRTIO_MEM)
    throw failure("invalid_argument", "memory_method: expected DIMM or VIRTIO_MEM, decided by the caller");
  if (spec.memory_method() == v1::MEMORY_METHOD_DIMM && spec.max_bytes() > spec.boot_bytes() &&
      (spec.memory_slots() == 0 || spec.memory_slots() > max_dimm_slots))
    throw failure("out_of_range", "memory_slots " + std::to_string(spec.memory_slots()) + ": expected 1 to " +
                                      std::to_string(max_dimm_slots) + " for memory that grows by DIMMs");
  if (spec.bridges() > max_bridges)
    throw failure("out_of_range", std::to_string(spec.bridges()) + " bridges: the QEMU backend has room for " +
                                      std::to_string(max_bridges));
  if (spec.free_root_ports() > max_free_root_ports)
    throw failure("out_of_range", std::to_string(spec.free_root_ports()) +
                                      " free root ports: the QEMU backend has room for " +
                                      std::to_string(max_free_root_ports));
  devices_of(spec);
}

void add_notes(pugi::xml_node domain, const v1::VmSpec& spec, std::string_view state_directory) {
  auto vm = add(add(domain, "metadata"), "caisson:vm");
  attribute(vm, "xmlns:caisson", notes_uri);
  attribute(vm, "sandbox", spec.sandbox_id());
  attribute(vm, "state", std::string{state_directory});
  attribute(vm, "run", spec.run_directory());
  attribute(vm, "digest", spec_digest(spec));
}

/// Room for what is plugged beside the boot memory; 0 where the VM never grows.
std::uint64_t room_bytes(const v1::VmSpec& spec) {
  auto block = spec.memory_method() == v1::MEMORY_METHOD_DIMM ? dimm_block_bytes : virtio_mem_granule_bytes;
  auto room = spec.max_bytes() - spec.boot_bytes();
  return room - room % block;
}

void add_memory(pugi::xml_node domain, const v1::VmSpec& spec) {
  auto room = room_bytes(spec);
  if (room > 0) {
    auto slots = spec.memory_method() == v1::MEMORY_METHOD_DIMM ? spec.memory_slots() : 1u;
    attribute(add_kib(domain, "maxMemory", spec.boot_bytes() + room), "slots", std::to_string(slots));
  }
  add_kib(domain, "memory", spec.boot_bytes());
  auto backing = add(domain, "memoryBacking");
  if (spec.hugepages())
    add(backing, "hugepages");
  attribute(add(backing, "source"), "type", "memfd");
  attribute(add(backing, "access"), "mode", "shared");
  if (spec.preallocate())
    attribute(add(backing, "allocation"), "mode", "immediate");
}

/// All but the first can leave again. Only KVM lets them, so that others start without the detour of plugging them.
void add_boot_vcpus(pugi::xml_node domain, const v1::VmSpec& spec) {
  if (!x86(spec) || spec.accelerator() != "kvm" || spec.boot_vcpus() == 1)
    return;
  auto all = add(domain, "vcpus");
  for (std::uint32_t n = 0; n < spec.max_vcpus(); ++n) {
    auto one = attribute(add(all, "vcpu"), "id", std::to_string(n));
    attribute(one, "enabled", n < spec.boot_vcpus() ? "yes" : "no");
    attribute(one, "hotpluggable", n == 0 ? "no" : "yes");
    if (n < spec.boot_vcpus())
      attribute(one, "order", std::to_string(n + 1));
  }
}

void add_boot(pugi::xml_node domain, const v1::VmSpec& spec) {
  auto os = add(domain, "os");
  auto type = add(os, "type", "hvm");
  attribute(type, "arch", spec.architecture());
  attribute(type, "machine", !spec.machine_type().empty() ? spec.machine_type() : x86(spec) ? "q35" : "virt");
  if (!spec.firmware_path().empty()) {
    bool flash = !x86(spec) || !spec.firmware_variables_path().empty();
    auto loader = add(os, "loader", spec.firmware_path());
    attribute(attribute(loader, "readonly", "yes"), "type", flash ? "pflash" : "rom");
    // The driver has put a copy of the template there: libvirt would need a privilege to make one.
    if (flash)
      add(os, "nvram", firmware_variables(spec.run_directory()));
  }
  add(os, "kernel", spec.kernel_path());
  if (!spec.initrd_path().empty())
    add(os, "initrd", spec.initrd_path());
  if (!spec.kernel_command_line().empty())
    add(os, "cmdline", spec.kernel_command_line());
}

void add_processors(pugi::xml_node domain, const v1::VmSpec& spec) {
  auto wanted = parse_cpu_features(spec.cpu_features());
  auto features = add(domain, "features");
  // On ARM64 ACPI comes from the firmware.
  if (x86(spec) || !spec.firmware_path().empty())
    add(features, "acpi");
  if (x86(spec))
    add(features, "apic");
  else
    attribute(add(features, "gic"), "version", spec.accelerator() == "kvm" ? "host" : "3");
  if (wanted.pmu)
    attribute(add(features, "pmu"), "state", *wanted.pmu ? "on" : "off");

  auto cpu = add(domain, "cpu");
  if (spec.accelerator() == "kvm") {
    attribute(attribute(cpu, "mode", "host-passthrough"), "check", "none");
  } else if (!x86(spec)) {
    // Not the maximum: emulated pointer authentication makes a guest boot three times as long.
    attribute(attribute(attribute(cpu, "mode", "custom"), "match", "exact"), "check", "none");
    attribute(add(cpu, "model", "cortex-a72"), "fallback", "forbid");
  } else if (!wanted.flags.empty()) {
    // Features need a model; without any, QEMU's own default is taken, which libvirt asks far fewer questions about.
    attribute(attribute(attribute(cpu, "mode", "custom"), "match", "exact"), "check", "none");
    attribute(add(cpu, "model", "qemu64"), "fallback", "allow");
  }
  for (const auto& [name, on] : wanted.flags) {
    auto feature = attribute(add(cpu, "feature"), "policy", on ? "require" : "disable");
    attribute(feature, "name", name);
  }
  // One NUMA cell: libvirt plugs memory into cells only.
  auto cell = attribute(add(add(cpu, "numa"), "cell"), "id", "0");
  attribute(cell, "cpus", "0-" + std::to_string(spec.max_vcpus() - 1));
  attribute(attribute(cell, "memory", std::to_string(spec.boot_bytes() / 1024)), "unit", "KiB");
}

pugi::xml_node add_controller(pugi::xml_node devices, const char* type, unsigned index, const char* model) {
  auto c = attribute(add(devices, "controller"), "type", type);
  attribute(c, "index", std::to_string(index));
  return attribute(c, "model", model);
}

/// Answers the index of the first root port that a device of the spec stands behind.
unsigned add_pci_tree(pugi::xml_node devices, const v1::VmSpec& spec) {
  unsigned index = 0;
  add_controller(devices, "pci", index++, "pcie-root");
  for (unsigned i = 0; i < spec.bridges(); ++i) {
    // A bridge to conventional PCI stands behind a root port of its own.
    auto port = index++;
    add_pci_address(add_controller(devices, "pci", port, "pcie-root-port"), 0x08 + i);
    add_pci_address(add_controller(devices, "pci", index++, "pcie-to-pci-bridge"), 0, 0, false, port);
  }
  for (unsigned i = 0; i < spec.free_root_ports(); ++i)
    add_pci_address(add_controller(devices, "pci", index++, "pcie-root-port"), 0x10 + i / 8, i % 8, i % 8 == 0);
  auto first = index;
  auto own = static_cast<unsigned>(spec.disks_size() + spec.nets_size() + spec.shares_size());
  for (unsigned i = 0; i < own; ++i)
    add_pci_address(add_controller(devices, "pci", index++, "pcie-root-port"), 0x05 + i / 8, i % 8, i % 8 == 0);
  return first;
}

void add_socket_source(pugi::xml_node device, const std::string& path) {
  attribute(attribute(add(device, "source"), "mode", "bind"), "path", path);
}

void add_devices(pugi::xml_node domain, const v1::VmSpec& spec) {
  auto devices = add(domain, "devices");
  add(devices, "emulator", spec.vmm_path());
  auto first_root_port = add_pci_tree(devices, spec);
  add_controller(devices, "usb", 0, "none");
  add_pci_address(add_controller(devices, "virtio-serial", 0, "virtio-non-transitional"), 0x01);

  auto serial = attribute(add(devices, "serial"), "type", "unix");
  add_socket_source(serial, console_socket(spec.run_directory()));
  auto console = attribute(add(serial, "target"), "port", "0");
  if (!x86(spec)) {
    attribute(console, "type", "system-serial");
    attribute(add(console, "model"), "name", "pl011");
  }

  auto channel = attribute(add(devices, "channel"), "type", "unix");
  add_socket_source(channel, agent_socket(spec.run_directory()));
  attribute(attribute(add(channel, "target"), "type", "virtio"), "name", "caisson.agent.0");

  if (spec.free_page_reporting()) {
    auto balloon = attribute(add(devices, "memballoon"), "model", "virtio-non-transitional");
    attribute(balloon, "freePageReporting", "on");
    add_pci_address(balloon, 0x04);
  } else {
    attribute(add(devices, "memballoon"), "model", "none");
  }
  if (!spec.entropy_source().empty()) {
    auto rng = attribute(add(devices, "rng"), "model", "virtio-non-transitional");
    attribute(add(rng, "backend", spec.entropy_source()), "model", "random");
    add_pci_address(rng, 0x02);
  }
  if (x86(spec))
    attribute(add(devices, "panic"), "model", "isa");

  if (spec.memory_method() == v1::MEMORY_METHOD_VIRTIO_MEM && room_bytes(spec) > 0) {
    auto memory = attribute(add(devices, "memory"), "model", "virtio-mem");
    auto target = add(memory, "target");
    add_kib(target, "size", room_bytes(spec));
    add(target, "node", "0");
    add_kib(target, "block", virtio_mem_granule_bytes);
    add_kib(target, "requested", 0);
    attribute(add(memory, "alias"), "name", std::string{virtio_mem_alias});
    add_pci_address(memory, 0x03);
  }
  add_device_documents(devices, spec, first_root_port);
}

std::uint64_t kib_of(const pugi::xml_node& node) {
  return node.text().as_ullong() * 1024;
}

} // namespace

std::string domain_name(std::string_view sandbox_id) {
  return std::string{name_prefix} + std::string{sandbox_id};
}

std::string sandbox_of_domain(std::string_view name) {
  if (!name.starts_with(name_prefix))
    return {};
  name.remove_prefix(name_prefix.size());
  return valid_sandbox_id(name) ? std::string{name} : std::string{};
}

std::string domain_uuid(std::string_view state_directory, std::string_view sandbox_id) {
  std::string key{state_directory};
  key += '\0';
  key += sandbox_id;
  auto h = hex64(fnv(key, seed_a)) + hex64(fnv(key, seed_b));
  h[12] = '8';  // RFC 9562, version 8: made from what we like
  h[16] = 'a';
  return h.substr(0, 8) + "-" + h.substr(8, 4) + "-" + h.substr(12, 4) + "-" + h.substr(16, 4) + "-" + h.substr(20);
}

std::string agent_socket(std::string_view run_directory) {
  return std::string{run_directory} + "/agent.sock";
}

std::string console_socket(std::string_view run_directory) {
  return std::string{run_directory} + "/console.sock";
}

std::string firmware_variables(std::string_view run_directory) {
  return std::string{run_directory} + "/firmware-variables.fd";
}

std::string spec_digest(const v1::VmSpec& spec) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream{&bytes};
    google::protobuf::io::CodedOutputStream coded{&stream};
    coded.SetSerializationDeterministic(true);
    spec.SerializePartialToCodedStream(&coded);
  }
  return hex64(fnv(bytes, seed_a)) + hex64(fnv(bytes, seed_b));
}

std::string domain_xml(const v1::VmSpec& spec, std::string_view state_directory, bool foreign_daemon) {
  check(spec);
  pugi::xml_document document;
  auto domain = attribute(add(document, "domain"), "type", spec.accelerator() == "kvm" ? "kvm" : "qemu");
  add(domain, "name", domain_name(spec.sandbox_id()));
  add(domain, "uuid", domain_uuid(state_directory, spec.sandbox_id()));
  add_notes(domain, spec, state_directory);
  add_memory(domain, spec);
  attribute(attribute(add(domain, "vcpu", std::to_string(spec.max_vcpus())), "placement", "static"), "current",
            std::to_string(spec.boot_vcpus()));
  add_boot_vcpus(domain, spec);
  add_boot(domain, spec);
  add_processors(domain, spec);
  auto clock = attribute(add(domain, "clock"), "offset", "utc");
  if (x86(spec))
    attribute(attribute(add(clock, "timer"), "name", "hpet"), "present", "no");
  // A sandbox that reboots is a sandbox that ended.
  for (const char* when : {"on_poweroff", "on_reboot", "on_crash"})
    add(domain, when, "destroy");
  add_devices(domain, spec);
  if (foreign_daemon) {
    auto label = attribute(add(domain, "seclabel"), "type", "static");
    attribute(attribute(label, "model", "dac"), "relabel", "no");
    add(label, "label", "+" + std::to_string(::geteuid()) + ":+" + std::to_string(::getegid()));
  }
  return print(domain);
}

std::string dimm_alias(std::string_view id) {
  return std::string{dimm_prefix} + std::string{id};
}

std::string dimm_of_alias(std::string_view alias) {
  return alias.starts_with(dimm_prefix) ? std::string{alias.substr(dimm_prefix.size())} : std::string{};
}

void check_device_id(std::string_view id) {
  auto fits = [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_'; };
  if (id.empty() || id.size() > 64 || !std::all_of(id.begin(), id.end(), fits))
    throw failure("invalid_argument", "device id '" + printable(id) + "': expected 1 to 64 of A-Z a-z 0-9 _ -");
}

std::string dimm_xml(const v1::Dimm& dimm) {
  check_device_id(dimm.id());
  if (dimm.size_bytes() == 0 || dimm.size_bytes() % dimm_block_bytes != 0)
    throw failure("out_of_range", "DIMM of " + std::to_string(dimm.size_bytes()) +
                                      " bytes: expected a multiple of 128 MiB");
  pugi::xml_document document;
  auto memory = attribute(add(document, "memory"), "model", "dimm");
  auto target = add(memory, "target");
  add_kib(target, "size", dimm.size_bytes());
  add(target, "node", "0");
  attribute(add(memory, "alias"), "name", dimm_alias(dimm.id()));
  return print(memory);
}

std::string virtio_mem_request_xml(const std::string& live_domain_xml, std::uint64_t requested_bytes) {
  if (requested_bytes % virtio_mem_granule_bytes != 0)
    throw failure("out_of_range", "virtio-mem size " + std::to_string(requested_bytes) +
                                      " bytes: expected a multiple of 2 MiB");
  pugi::xml_document document;
  if (!document.load_string(live_domain_xml.c_str()))
    throw failure("internal", "libvirt's domain document does not parse");
  for (auto memory : document.child("domain").child("devices").children("memory")) {
    if (memory.child("alias").attribute("name").as_string() != virtio_mem_alias)
      continue;
    auto target = memory.child("target");
    if (requested_bytes > kib_of(target.child("size")))
      throw failure("out_of_range", "virtio-mem size " + std::to_string(requested_bytes) +
                                        " bytes is over the " + std::to_string(kib_of(target.child("size"))) +
                                        " bytes that the device was made with (max_bytes at boot)");
    auto requested = target.child("requested");
    requested.attribute("unit").set_value("KiB");
    requested.text().set(std::to_string(requested_bytes / 1024).c_str());
    return print(memory);
  }
  throw failure("unsupported", "this VM has no virtio-mem device: it was made for DIMMs, or with no room to grow");
}

domain_reading read_domain_xml(const std::string& xml) {
  pugi::xml_document document;
  auto parsed = document.load_string(xml.c_str());
  auto domain = document.child("domain");
  if (!parsed || !domain)
    throw failure("internal", std::string{"libvirt's domain document does not parse: "} + parsed.description());
  domain_reading r;
  auto vm = domain.child("metadata").child("caisson:vm");
  r.notes = {vm.attribute("sandbox").as_string(), vm.attribute("state").as_string(), vm.attribute("run").as_string(),
             vm.attribute("digest").as_string()};
  r.accelerator = std::string_view{domain.attribute("type").as_string()} == "kvm" ? "kvm" : "tcg";
  for (auto cell : domain.child("cpu").child("numa").children("cell"))
    r.boot_bytes += cell.attribute("memory").as_ullong() * 1024;
  r.max_vcpus = domain.child("vcpu").text().as_uint();
  r.vcpus = domain.child("vcpu").attribute("current").as_uint(r.max_vcpus);
  auto devices = domain.child("devices");
  r.emulator = devices.child("emulator").text().as_string();
  for (auto memory : devices.children("memory")) {
    std::string alias = memory.child("alias").attribute("name").as_string();
    auto target = memory.child("target");
    if (alias == virtio_mem_alias) {
      r.virtio_mem = true;
      r.virtio_mem_size_bytes = kib_of(target.child("size"));
      r.virtio_mem_requested_bytes = kib_of(target.child("requested"));
      r.virtio_mem_current_bytes = kib_of(target.child("current"));
    } else if (auto id = dimm_of_alias(alias); !id.empty()) {
      v1::Dimm dimm;
      dimm.set_id(id);
      dimm.set_size_bytes(kib_of(target.child("size")));
      dimm.set_address(memory.child("address").attribute("base").as_ullong());
      r.dimms.push_back(std::move(dimm));
    }
  }
  r.devices = read_devices(devices);
  return r;
}

} // namespace caisson::qemu
