#include "tests/conformance/lines.hpp"

#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <ostream>
#include <sstream>

#include "backends/host/provider.hpp"
#include "tests/conformance/libvirt_daemon.hpp"

namespace caisson::tests {
namespace {

namespace fs = std::filesystem;
using where = kind::where;

const std::string programs = CAISSON_PROGRAM_DIRECTORY;
const std::string examples = CAISSON_EXAMPLES_DIRECTORY;
const std::string guests = CAISSON_GUESTS_DIRECTORY;

// ---- lines that are in no product: one entry a backend ----

template <const char* name> std::unique_ptr<backends::provider> make_example(const backends::environment& e) {
  auto there = e;
  there.program_directory = examples;
  return std::make_unique<host::provider>(there, host::settings_for(name, there));
}

constexpr char template_name[] = "template", python_name[] = "python";

constexpr std::array<backends::entry, 2> example_lines{{
    {template_name, "the backend to copy, with a toy of a VMM", {}, &make_example<template_name>},
    {python_name, "a backend written in Python, over processes that sleep", {}, &make_example<python_name>},
}};

// ---- what is there on this machine ----

std::string on_path(const std::string& program) {
  const char* path = std::getenv("PATH");
  std::istringstream folders{path ? path : ""};
  for (std::string folder; std::getline(folders, folder, ':');)
    if (auto file = folder + "/" + program; !folder.empty() && ::access(file.c_str(), X_OK) == 0)
      return file;
  return {};
}

std::string environment_value(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

void need(place& p, const std::string& file, const std::string& how) {
  if (p.missing.empty() && !fs::exists(file))
    p.missing = file + " is not there: " + how;
}

void need_guest(place& p, const std::string& architecture) {
  p.guest_directory = guests + "/" + architecture;
  for (const auto* file : {"/vmlinux", "/initramfs.cpio", "/manifest.json"})
    need(p, p.guest_directory + (architecture == "aarch64" && std::string{file} == "/vmlinux" ? "/Image" : file),
         "build the target guest_image" + std::string{architecture == "x86_64" ? "" : "_" + architecture});
}

place place_of_qemu(const kind& k) {
  place p;
  p.vmm_path = "/usr/bin/qemu-system-" + k.architecture;
  p.agent = p.reacts = p.process = true;
  need(p, programs + "/caisson-backend-qemu", "this build has no libvirt");
  need(p, p.vmm_path, "install qemu-system-x86 or qemu-system-arm");
  need_guest(p, k.architecture);
  if (k.runs == where::libvirt_daemon && p.missing.empty())
    p.libvirt_uri = libvirt_daemon_uri(p.missing);
  return p;
}

place place_of_cloud_hypervisor(const kind& k) {
  place p;
  p.process = true;
  if (k.runs == where::double_vmm) {
    p.vmm_path = programs + "/caisson-ch-double";
    p.agent = p.reacts = true;
    need(p, p.vmm_path, "build the target caisson-ch-double");
  } else {
    p.vmm_path = environment_value("CH_BIN");
    if (p.vmm_path.empty())
      p.vmm_path = on_path("cloud-hypervisor");
    if (p.vmm_path.empty())
      p.missing = "CH_BIN names no Cloud Hypervisor, and there is no cloud-hypervisor on the PATH";
    else
      need(p, p.vmm_path, "CH_BIN has to name a Cloud Hypervisor");
    if (p.missing.empty() && ::access("/dev/kvm", R_OK | W_OK) != 0)
      p.missing = "/dev/kvm cannot be opened, and Cloud Hypervisor runs under KVM only";
    // Where the host's KVM runs no guest (nested virtualization that is missing), the VMM's side alone is tried.
    p.agent = p.reacts = environment_value("CAISSON_LIVE_TIER") == "guest";
  }
  need_guest(p, k.architecture);
  return p;
}

} // namespace

std::ostream& operator<<(std::ostream& out, const kind& k) {
  return out << k.name;
}

const backends::entry* find_line(const std::string& name) {
  if (const auto* line = backends::find(name))
    return line;
  for (const auto& line : example_lines)
    if (line.name == name)
      return &line;
  return nullptr;
}

std::vector<kind> all_kinds() {
  constexpr auto dimm = v1::MEMORY_METHOD_DIMM, virtio_mem = v1::MEMORY_METHOD_VIRTIO_MEM;
  return {
      {"simulated__dimm", "simulated", dimm},
      {"simulated__virtio_mem", "simulated", virtio_mem},
      {"simulated__one_way", "simulated", dimm, "dimm_slots=8,dimm_unplug=0,vcpu_unplug=0,pause=0"},
      {"simulated__one_way_virtio_mem", "simulated", virtio_mem, "virtio_mem_shrink=0,slow=0.3,slow_ms=5..40"},
      {"template__all", "template", virtio_mem},
      {"python__lifecycle", "python", virtio_mem},
      {"qemu__dimm", "qemu", dimm},
      {"qemu__virtio_mem", "qemu", virtio_mem},
      {"qemu_daemon__virtio_mem", "qemu", virtio_mem, "", "x86_64", where::libvirt_daemon},
      {"qemu_aarch64__virtio_mem", "qemu", virtio_mem, "", "aarch64"},
      {"ch_double__dimm", "cloud-hypervisor", dimm, "", "x86_64", where::double_vmm},
      {"ch_double__virtio_mem", "cloud-hypervisor", virtio_mem, "", "x86_64", where::double_vmm},
      {"ch_live__dimm", "cloud-hypervisor", dimm, "", "x86_64", where::found_vmm},
      {"ch_live__virtio_mem", "cloud-hypervisor", virtio_mem, "", "x86_64", where::found_vmm},
  };
}

std::vector<kind> lossy_kinds() {
  constexpr auto dimm = v1::MEMORY_METHOD_DIMM, virtio_mem = v1::MEMORY_METHOD_VIRTIO_MEM;
  const auto ch = [](const char* name, v1::MemoryMethod method, const char* faults) {
    return kind{std::string{"ch_double__"} + name, "cloud-hypervisor", method, faults, "x86_64", where::double_vmm};
  };
  return {
      {"simulated__drops_answers", "simulated", virtio_mem, "lost=1"},
      {"simulated__drops_answers_dimm", "simulated", dimm, "lost=1"},
      {"simulated__slow", "simulated", virtio_mem, "slow=1,slow_ms=50..200"},
      ch("drops_resize", virtio_mem, "drop_reply=vm.resize"),
      ch("drops_resize_dimm", dimm, "drop_reply=vm.resize"),
      ch("drops_devices", virtio_mem, "drop_reply=vm.add-disk"),
      ch("drops_removal", virtio_mem, "drop_reply=vm.remove-device"),
      ch("drops_pause", virtio_mem, "drop_reply=vm.pause"),
      ch("drops_one_info", virtio_mem, "drop_reply=vm.info:3"),
      ch("slow_replies", virtio_mem, "slow=vm.resize"),
      ch("late_replies", virtio_mem, "delay=vm.resize,delay_ms=400"),
      ch("garbage_at_resize", virtio_mem, "garbage=vm.resize:1"),
      ch("half_a_reply_at_resize", virtio_mem, "partial=vm.resize:1"),
  };
}

place place_of(const kind& k) {
  place p;
  if (!find_line(k.line)) {
    p.missing = "there is no line \"" + k.line + "\" in the registry of this build";
    return p;
  }
  if (k.line == "simulated")
    p.agent = p.reacts = true;
  else if (k.line == "qemu")
    return place_of_qemu(k);
  else if (k.line == "cloud-hypervisor")
    return place_of_cloud_hypervisor(k);
  else {
    p.reacts = p.process = true;
    need(p, examples + "/caisson-backend-" + k.line, "build the target backend_examples");
  }
  return p;
}

} // namespace caisson::tests
