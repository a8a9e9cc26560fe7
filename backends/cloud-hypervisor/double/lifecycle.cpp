// From one state of a VM to the next.

#include <algorithm>
#include <set>
#include <utility>

#include "backends/cloud-hypervisor/double/model.hpp"
#include "backends/cloud-hypervisor/double/validation.hpp"

namespace caisson::cloud_hypervisor::api_double {
namespace {

failure no_vm() {
  return fail({"VM is not running"});
}

failure wrong_transition(const char* verb, const char* doing, const char* state) {
  return fail({std::string{"Cannot "} + verb + " VM", std::string{"Failed to "} + doing + " migratable component",
               std::string{"Invalid transition: InvalidStateTransition("} + state + ", " + state + ")"});
}

/// Until v51 nobody looked at a queue's size before the device was made of it, and the VMM died of an odd one.
bool has_odd_queue(const json& config) {
  for (const auto* list : {"disks", "net", "fs"})
    for (const auto& d : config.value(list, json::array()))
      if (const std::uint64_t size = d["queue_size"]; size == 0 || (size & (size - 1)) != 0)
        return true;
  return false;
}

/// The VMM computes with the topology's parts before it looks at them, and dies where one is 0.
bool divides_by_zero(const json& cpus) {
  if (!cpus.contains("topology"))
    return false;
  const auto& t = cpus["topology"];
  return std::any_of(t.begin(), t.end(), [](const json& part) { return part == 0; });
}

bool behind_iommu(const json& config) {
  for (const auto& [name, part] : config.items()) {
    const auto& list = part.is_array() ? part : json::array({part});
    for (const auto& d : list)
      if (d.is_object() && d.value("iommu", false))
        return true;
  }
  return config.contains("platform") && config["platform"].contains("iommu_segments");
}

} // namespace

outcome model::create(json config) {
  if (config_)
    return fail({"VM is already created"});
  // Descriptors cannot come with vm.create: the API forgets the ones that the body names.
  if (config.contains("net"))
    for (auto& d : config["net"]) {
      d.erase("fds");
      if (settings_.as < profile::head && !d.contains("mac"))
        d["mac"] = host_.random_mac();
    }
  config_ = std::move(config);
  return open_consoles();
}

outcome model::open_consoles() {
  const auto failed = [](std::vector<std::string> tail) {
    tail.insert(tail.begin(), "Error creating console devices");
    return fail(std::move(tail));
  };
  consoles made;
  for (const bool serial : {false, true}) {
    auto& c = (*config_)[serial ? "serial" : "console"];
    const auto mode = c["mode"].get<std::string>();
    const auto* where = mode == "Socket" ? "socket" : "file";
    if (mode == "Socket" && !serial)
      return failed({"No socket option support for console device"});
    if ((mode == "File" || mode == "Socket") && !c.contains(where)) {
      panics_ = true; // the VMM unwraps what is not there
      return failed({});
    }
    std::shared_ptr<console_sink> sink;
    if (mode == "File" || mode == "Socket" || mode == "Pty" || mode == "Tty") {
      int error = 0;
      sink = host_.open_console(mode, c.value(where, std::string{}), error);
      if (!sink)
        return failed({"Error creating console device", os_error(error)});
      if (mode == "Pty")
        c["file"] = sink->path();
    }
    (serial ? made.serial_mode : made.console_mode) = mode;
    (serial ? made.serial : made.console) = std::move(sink);
  }
  consoles_ = std::move(made);
  return {};
}

outcome model::boot() {
  if (vm_) {
    if (settings_.as > profile::v51_1)
      return fail({"VM is already created"});
    // Until v51 a VM that is there was simply booted once more: a paused one went on.
    event("booting");
    if (vm_->state == vm_state::running)
      return fail({"invalid VM state transition: Running to Running"});
    if (vm_->state == vm_state::paused) {
      if (auto problem = resume())
        return problem;
      event("booted");
      return {};
    }
  }
  event("booting");
  if (!config_)
    return fail({"VM config is missing"}, failure::cause::not_created);
  if (!consoles_)
    if (auto problem = open_consoles())
      return problem;
  busy_ += std::chrono::milliseconds{settings_.faults.boot_delay_ms};
  if (!vm_)
    if (auto problem = start_vm())
      return problem;
  // From here on the VM is there, whether it boots or not.
  if (auto problem = load_kernel())
    return problem;
  power_on();
  event("booted");
  return {};
}

/// Makes the VM without starting it: what fails here leaves none behind.
outcome model::start_vm() {
  if (divides_by_zero((*config_)["cpus"])) {
    panics_ = true;
    return fail({});
  }
  std::set<std::string> ids;
  if (auto problem = validate(*config_, settings_.as, ids))
    return problem;
  if (settings_.as == profile::v51_1 && has_odd_queue(*config_)) {
    panics_ = true;
    return fail({});
  }
  auto memory = memory_ledger::make((*config_)["memory"], settings_.as, settings_.faults);
  if (auto* problem = std::get_if<failure>(&memory))
    return std::move(*problem);
  const auto segments = config_->contains("platform") ? (*config_)["platform"]["num_pci_segments"].get<std::uint16_t>() : 1;
  auto v = std::make_unique<vm>(std::move(ids), segments, settings_.as, std::get<memory_ledger>(std::move(memory)));
  const auto& cpus = (*config_)["cpus"];
  const bool x86 = settings_.faults.architecture == "x86_64";
  v->vcpus = {cpus["boot_vcpus"], cpus["max_vcpus"], x86};

  guest_hardware hardware;
  hardware.boot_bytes = v->memory.boot_bytes();
  hardware.acpi = v->memory.acpi();
  hardware.hotplug_bytes = v->memory.hotplug_bytes();
  if (!hardware.acpi) {
    hardware.hotplug_bytes = 0;
    for (const auto& [id, r] : v->memory.regions())
      hardware.hotplug_bytes += r.size;
  }
  const auto& payload = (*config_)["payload"];
  hardware.sees_dimms = x86 || payload.contains("firmware");
  hardware.boot_vcpus = cpus["boot_vcpus"];
  hardware.max_vcpus = cpus["max_vcpus"];
  hardware.command_line = payload.value("cmdline", std::string{});

  if (payload.contains("initramfs") && !payload.contains("firmware")) {
    int error = 0;
    (void)host_.file_size(payload["initramfs"], false, error);
    if (error)
      return fail({"Cannot open initramfs file", os_error(error)});
  }
  if (behind_iommu(*config_))
    (*config_)["iommu"] = true;

  guest::telling tell;
  // Everything that ends the guest comes a moment later: not from inside it.
  const auto soon = [this](void (model::*what)()) {
    time_.after({}, [this, what, weak = std::weak_ptr{alive_}] {
      if (!weak.expired())
        (this->*what)();
    });
  };
  tell.up = [this] {
    for (const auto& [id, n] : vm_->tree.nodes())
      if (n.pci && id != "__pvpanic")
        taken_up(id);
    for (auto& [id, r] : vm_->resources)
      if (r.vsock)
        r.vsock->guest_is_up([this](std::uint32_t port) { return vm_->inside->connect(port); });
  };
  tell.powered_off = [this, soon] {
    for (const auto& [id, n] : vm_->tree.nodes())
      if (n.pci && id != "__pvpanic")
        announce("reset", id);
    soon(&model::guest_exit);
  };
  tell.reset = [this] {
    time_.after({}, [this, weak = std::weak_ptr{alive_}] {
      if (!weak.expired() && vm_)
        (void)reboot();
    });
  };
  tell.panicked = [this] {
    if ((*config_).value("pvpanic", false))
      host_.event("guest", "panic", {{"event", "panic"}});
  };
  tell.console = [this, line = hardware.command_line](const std::string& text) {
    if (!consoles_)
      return;
    if (consoles_->serial && (line.find("console=ttyS0") != line.npos || line.find("console=ttyAMA0") != line.npos))
      consoles_->serial->write(text);
    if (consoles_->console && line.find("console=hvc0") != line.npos)
      consoles_->console->write(text);
  };
  v->inside = std::make_unique<guest>(hardware, settings_.faults, time_, std::move(tell));

  if (auto problem = make_devices(*v))
    return problem;
  vm_ = std::move(v);
  return {};
}

outcome model::load_kernel() {
  if (auto problem = lock_disks(*vm_))
    return problem;
  const auto& payload = (*config_)["payload"];
  const bool firmware = payload.contains("firmware");
  int error = 0;
  const auto kind = host_.look_at_kernel(payload[firmware ? "firmware" : "kernel"], error);
  if (error)
    return fail({firmware ? "Error manipulating firmware file" : "Cannot open kernel file", os_error(error)});
  if (kind == kernel_kind::junk && !firmware)
    return fail({"Cannot load the kernel into memory",
                 "Kernel Loader: failed to load bzImage kernel image: Kernel Loader: Invalid bzImage",
                 "Kernel Loader: Invalid bzImage"});
  if (++boots_ <= settings_.faults.boot_fails)
    return fail({"Error from CPU manager", "Error running vCPU"});
  return {};
}

void model::power_on() {
  vm_->state = vm_state::running;
  follow_virtio_mem();
  if (config_->contains("balloon"))
    vm_->inside->set_balloon((*config_)["balloon"]["size"]);
  vm_->inside->power_on();
}

outcome model::pause() {
  if (!vm_)
    return no_vm();
  event("pausing");
  if (vm_->state == vm_state::paused)
    return wrong_transition("pause", "pause", "Paused");
  vm_->state = vm_state::paused;
  vm_->inside->pause();
  for (auto& [id, r] : vm_->resources)
    if (r.vsock)
      r.vsock->freeze(true);
  event("paused");
  return {};
}

outcome model::resume() {
  if (!vm_)
    return no_vm();
  event("resuming");
  if (vm_->state == vm_state::running)
    return wrong_transition("resume", "resume", "Running");
  vm_->state = vm_state::running;
  vm_->inside->resume();
  for (auto& [id, r] : vm_->resources)
    if (r.vsock)
      r.vsock->freeze(false);
  event("resumed");
  return {};
}

outcome model::shutdown() {
  if (!vm_)
    return no_vm();
  vm_.reset();
  consoles_.reset();
  event("shutdown");
  return {};
}

outcome model::reboot() {
  event("rebooting");
  if (!vm_)
    return fail({"VM is not created"}, failure::cause::not_created);
  vm_.reset();
  consoles_.reset();
  if (auto problem = open_consoles())
    return problem;
  if (auto problem = start_vm())
    return problem;
  if (auto problem = load_kernel()) {
    vm_.reset();
    return problem;
  }
  power_on();
  event("rebooted");
  return {};
}

outcome model::remove_all() {
  if (!config_)
    return {};
  if (vm_)
    (void)shutdown();
  for (const auto& net : config_->value("net", json::array()))
    close_kept(net);
  config_.reset();
  event("deleted");
  return {};
}

void model::shut_down() {
  (void)remove_all();
  host_.event("vmm", "shutdown", {});
}

void model::guest_exit() {
  if (!vm_)
    return;
  if (settings_.no_shutdown) {
    (void)shutdown();
    return;
  }
  shut_down();
  if (on_exit)
    on_exit();
}

} // namespace caisson::cloud_hypervisor::api_double
