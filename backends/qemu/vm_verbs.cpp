/// The verbs that change a VM.

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "backends/qemu/accelerator.hpp"
#include "backends/qemu/domain_xml.hpp"
#include "backends/qemu/driver.hpp"
#include "backends/qemu/firmware_use.hpp"
#include "backends/qemu/text_checks.hpp"

namespace caisson::qemu {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

constexpr auto destroy_grace = 400ms;
constexpr auto destroy_look_again = 100ms;

void check_readable(const char* what, const std::string& path) {
  if (!path.empty() && ::access(path.c_str(), R_OK) != 0)
    throw failure("host_missing", std::string{what} + " " + printable(path) + " cannot be read: " + ::strerror(errno));
}

} // namespace

std::chrono::milliseconds driver::read_back_budget(const pending_call& call) {
  return std::max<std::chrono::milliseconds>(std::min<std::chrono::milliseconds>(call.left() * 2 / 3, 5s), 50ms);
}

domain_handle driver::living_domain(const vm_ptr& vm) {
  auto domain = find_domain(vm);
  if (domain) {
    auto vmm = vmm_of(vm);
    auto stat = read_stat(vmm.pid);
    if (stat && (stat->state == 'T' || stat->state == 't'))
      throw failure("backend_refused", "QEMU (pid " + std::to_string(vmm.pid) +
                                           ") is stopped by a signal and does nothing; nothing was changed: let it go on "
                                           "(SIGCONT) or destroy the VM");
    return domain;
  }
  std::lock_guard lock{vm->mutex};
  throw failure("vmm_died", vm->stop_reason.empty() ? "there is no such VM (never made, or ended unseen)"
                                                    : "the VM has ended: " + vm->stop_reason);
}

void driver::remove_files(const vm_ptr& vm) {
  std::string run;
  {
    std::lock_guard lock{vm->mutex};
    run = vm->run_directory;
  }
  auto name = domain_name(vm->id);
  if (!run.empty()) {
    for (const auto& path : {agent_socket(run), console_socket(run), firmware_variables(run)})
      ::unlink(path.c_str());
    ::rmdir(run.c_str());
  }
  ::unlink(log_file(library_.root(), name).c_str());
  ::unlink(pid_file(library_.root(), name).c_str());
  records_.remove(vm->id);
  std::lock_guard lock{vm->mutex};
  vm->recorded = false;
}

v1::VmObserved driver::create(const vm_ptr& vm, const call_ptr& call, const v1::VmSpec& asked) {
  const auto spec = with_firmware(asked);
  auto document = domain_xml(spec, where_.state_directory, !spec.libvirt_uri().empty());
  {
    std::lock_guard lock{vm->mutex};
    if (!vm->recorded)
      vm->libvirt_uri = spec.libvirt_uri();
  }
  if (auto there = find_domain(vm)) {
    library_text xml{virDomainGetXMLDesc(there.get(), 0)};
    if (!xml || read_domain_xml(xml.get()).notes.spec_digest != spec_digest(spec))
      throw failure("already_exists", "a VM of this name runs already, made from another specification; destroy it first");
    int state = 0, reason = 0;
    virDomainGetState(there.get(), &state, &reason, 0);
    if (state == VIR_DOMAIN_PAUSED && reason == VIR_DOMAIN_PAUSED_STARTING_UP && virDomainResume(there.get()) != 0)
      throw library_failure("cannot start the guest");
    return read_back(vm, there.get(), read_back_budget(*call));
  }
  vmm_version(spec.vmm_path(), spec.architecture());
  check_readable("guest kernel", spec.kernel_path());
  check_readable("guest initrd", spec.initrd_path());
  check_readable("firmware", spec.firmware_path());
  check_devices(spec);
  struct stat s{};
  if (::stat(spec.run_directory().c_str(), &s) != 0 || !S_ISDIR(s.st_mode))
    throw failure("host_io", "run directory " + printable(spec.run_directory()) + " is not there; the engine makes it");

  auto connection = library_.connection(spec.libvirt_uri());
  records_.save({vm->id, spec.run_directory(), spec.libvirt_uri()});
  {
    std::lock_guard lock{vm->mutex};
    vm->recorded = true;
    vm->run_directory = spec.run_directory();
    vm->libvirt_uri = spec.libvirt_uri();
    vm->stop_reason.clear();
    vm->leaving.clear();
    vm->vmm = {};
  }
  // What an earlier VM may have left under these names.
  ::unlink(agent_socket(spec.run_directory()).c_str());
  ::unlink(console_socket(spec.run_directory()).c_str());

  domain_handle domain;
  auto undo = [&] {
    if (domain)
      virDomainDestroyFlags(domain.get(), VIR_DOMAIN_DESTROY_DEFAULT);
    {
      std::lock_guard lock{vm->mutex};
      if (vm->destroying)
        return;  // which sweeps up
      vm->run_directory.clear();  // the directory stays: its owner removes it
      vm->vmm = {};
    }
    for (const auto& path : {agent_socket(spec.run_directory()), console_socket(spec.run_directory()),
                             firmware_variables(spec.run_directory())})
      ::unlink(path.c_str());
    remove_files(vm);
    {
      std::lock_guard lock{vm->mutex};
      vm->stop_reason.clear();
    }
    forget(vm);
  };
  try {
    make_firmware_variables(spec);
    // Paused first, so that nothing of the guest is missed between its start and this process's own bookkeeping.
    domain.reset(in_library([&] { return virDomainCreateXML(connection.get(), document.c_str(), VIR_DOMAIN_START_PAUSED); }));
    if (!domain) {
      auto why = library_failure("QEMU did not start");
      // One that ends before libvirt has reached its monitor looks like a fault of the host.
      const bool ended = why.code() == "host_io" && std::string_view{why.what()}.find("monitor") != std::string_view::npos;
      throw failure(ended ? "backend_refused" : why.code(), why.what());
    }
    {
      std::lock_guard lock{vm->mutex};
      if (vm->destroying)
        throw failure("vmm_died", "the VM was destroyed while it was being made");
    }
    vmm_of(vm);
    if (in_library([&] { return virDomainResume(domain.get()); }) != 0)
      throw library_failure("the VM was made but does not start");
  } catch (const std::exception&) {
    undo();
    throw;
  }
  if (spec.libvirt_uri().empty())
    asides_.run([this] { library_.keep_capabilities(); });
  return read_back(vm, domain.get(), read_back_budget(*call));
}

v1::VmObserved driver::apply_memory_step(const vm_ptr& vm, const call_ptr& call, const v1::ApplyMemoryStep& step) {
  auto domain = living_domain(vm);
  library_text xml{virDomainGetXMLDesc(domain.get(), 0)};
  if (!xml)
    throw library_failure("cannot read the VM's document");
  auto has_dimm = [now = read_domain_xml(xml.get())](const std::string& id) {
    return std::any_of(now.dimms.begin(), now.dimms.end(), [&](const auto& d) { return d.id() == id; });
  };
  switch (step.step_case()) {
  case v1::ApplyMemoryStep::kPlugDimm: {
    auto device = dimm_xml(step.plug_dimm());
    if (!has_dimm(step.plug_dimm().id()))
      must(domain.get(), in_library([&] { return virDomainAttachDeviceFlags(domain.get(), device.c_str(), VIR_DOMAIN_AFFECT_LIVE); }),
           "DIMM " + step.plug_dimm().id() + " was not plugged");
    break;
  }
  case v1::ApplyMemoryStep::kUnplugDimmId: {
    check_device_id(step.unplug_dimm_id());
    // By alias: returns as soon as the guest has been asked; the end is an event.
    if (has_dimm(step.unplug_dimm_id()))
      must(domain.get(), in_library([&] {
             return virDomainDetachDeviceAlias(domain.get(), dimm_alias(step.unplug_dimm_id()).c_str(),
                                               VIR_DOMAIN_AFFECT_LIVE);
           }),
           "the guest could not be asked for DIMM " + step.unplug_dimm_id());
    break;
  }
  case v1::ApplyMemoryStep::kVirtioMemRequestedBytes: {
    auto device = virtio_mem_request_xml(xml.get(), step.virtio_mem_requested_bytes());
    must(domain.get(), in_library([&] { return virDomainUpdateDeviceFlags(domain.get(), device.c_str(), VIR_DOMAIN_AFFECT_LIVE); }),
         "virtio-mem was not set to " + std::to_string(step.virtio_mem_requested_bytes()) + " bytes");
    follow_virtio_mem(vm);
    break;
  }
  case v1::ApplyMemoryStep::STEP_NOT_SET: throw failure("invalid_argument", "no step is named");
  }
  return read_back(vm, domain.get(), read_back_budget(*call));
}

v1::VmObserved driver::pause(const vm_ptr& vm, const call_ptr& call, bool paused) {
  auto domain = living_domain(vm);
  int state = 0, reason = 0;
  if (virDomainGetState(domain.get(), &state, &reason, 0) != 0)
    throw library_failure("cannot read the VM's state");
  if ((state == VIR_DOMAIN_PAUSED) != paused) {
    int rc = in_library([&] { return paused ? virDomainSuspend(domain.get()) : virDomainResume(domain.get()); });
    if (rc != 0)
      throw library_failure(paused ? "the VM does not pause" : "the VM does not go on");
  }
  return read_back(vm, domain.get(), read_back_budget(*call));
}

v1::VmObserved driver::destroy(const vm_ptr& vm, const call_ptr& call) {
  std::vector<call_ptr> orphans;
  {
    std::lock_guard lock{vm->mutex};
    ++vm->destroying;
    for (auto& weak : vm->pending)
      if (auto other = weak.lock())
        orphans.push_back(std::move(other));
    vm->pending.clear();
  }
  struct leave {
    const vm_ptr& vm;
    ~leave() {
      std::lock_guard lock{vm->mutex};
      --vm->destroying;
      vm->changed.notify_all();
    }
  } leaving{vm};
  for (auto& other : orphans)
    other->finish(host::failure("vmm_died", other->verb + " of sandbox " + vm->id + ": the VM was destroyed meanwhile"));

  auto sweep = [&] {
    // The VMM goes first: whatever libvirt is waiting for from it then fails at once, and libvirt's own waiting for the
    // process (200 ms a look) is over before it begins.
    auto vmm = vmm_of(vm);
    if (vmm.pid > 0 && !end_process(vmm, destroy_grace, call->deadline))
      throw failure("outcome_unknown", "QEMU (pid " + std::to_string(vmm.pid) +
                                           ") does not die of SIGKILL; the kernel holds it (state D in ps?)");
    reaper_.reap();
    if (auto domain = find_domain(vm))
      if (in_library([&] { return virDomainDestroyFlags(domain.get(), VIR_DOMAIN_DESTROY_DEFAULT); }) != 0) {
        auto* e = virGetLastError();
        bool gone = e && (e->code == VIR_ERR_NO_DOMAIN || e->code == VIR_ERR_OPERATION_INVALID);
        if (!gone)
          throw library_failure("libvirt does not give the VM up");
      }
  };
  sweep();
  // A verb may still be inside libvirt, above all a create whose QEMU shows itself only now: end that one too.
  for (bool waiting = true; waiting;) {
    {
      std::unique_lock lock{vm->mutex};
      waiting = !vm->changed.wait_for(lock, destroy_look_again, [&] { return vm->running == 0; });
      vm->vmm = {};
    }
    if (waiting && call->left().count() == 0)
      throw failure("outcome_unknown", "a verb on this VM is still inside libvirt; destroy it again");
    if (waiting)
      if (auto vmm = vmm_of(vm); vmm.pid > 0)
        end_process(vmm, 0ms, call->deadline);
  }
  sweep();
  remove_files(vm);
  {
    std::lock_guard lock{vm->mutex};
    vm->vmm = {};
    vm->stop_reason.clear();
  }
  forget(vm);
  v1::VmObserved o;
  o.set_state(v1::VM_STATE_ABSENT);
  o.set_stop_reason("destroyed");
  o.set_vmm_call_us(library_clock::microseconds());
  return o;
}

} // namespace caisson::qemu
