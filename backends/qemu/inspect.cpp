/// Reading a VM back: from libvirt what needs no answer of the VMM, from the monitor the rest, within a bounded time.

#include <future>
#include <utility>

#include "backends/qemu/accelerator.hpp"
#include "backends/qemu/domain_xml.hpp"
#include "backends/qemu/driver.hpp"
#include "backends/qemu/log_tail.hpp"
#include "backends/qemu/text_checks.hpp"

namespace caisson::qemu {
namespace {

using namespace std::chrono_literals;

std::string monitor(virDomainPtr domain, const char* command) {
  return ask_qemu(domain, std::string{"{\"execute\":\""} + command + "\"}");
}

v1::VmState state_of(virDomainPtr domain) {
  int state = 0, reason = 0;
  if (virDomainGetState(domain, &state, &reason, 0) != 0)
    throw library_failure("cannot read the VM's state");
  switch (state) {
  case VIR_DOMAIN_RUNNING:
  case VIR_DOMAIN_BLOCKED: return v1::VM_STATE_RUNNING;
  case VIR_DOMAIN_PAUSED:
    return reason == VIR_DOMAIN_PAUSED_STARTING_UP ? v1::VM_STATE_CREATED : v1::VM_STATE_PAUSED;
  case VIR_DOMAIN_PMSUSPENDED: return v1::VM_STATE_PAUSED;
  default: return v1::VM_STATE_STOPPED;
  }
}

std::string pid_file_of(const std::string& uri, const std::string& embedded, const std::string& name) {
  return uri.empty() ? pid_file(embedded, name) : "/run/libvirt/qemu/" + name + ".pid";
}

} // namespace

domain_handle driver::find_domain(const vm_ptr& vm) {
  std::string uri;
  {
    std::lock_guard lock{vm->mutex};
    uri = vm->libvirt_uri;
  }
  auto connection = library_.connection(uri);
  domain_handle domain{in_library([&] {
    return virDomainLookupByName(connection.get(), domain_name(vm->id).c_str());
  })};
  if (!domain) {
    auto* e = virGetLastError();
    if (e && e->code != VIR_ERR_NO_DOMAIN)
      throw failure("backend_lost", library_failure("cannot look for the VM").what());
  }
  return domain;
}

process driver::vmm_of(const vm_ptr& vm) {
  process known;
  std::string uri;
  {
    std::lock_guard lock{vm->mutex};
    known = vm->vmm;
    uri = vm->libvirt_uri;
  }
  if (known.pid > 0) {
    auto stat = read_stat(known.pid);
    if (stat && stat->start_ticks == known.start_ticks)
      return stat->state == 'Z' ? process{} : known;
    return {};
  }
  auto found = find_vmm(pid_file_of(uri, library_.root(), domain_name(vm->id)), domain_name(vm->id));
  if (!found)
    return {};
  std::lock_guard lock{vm->mutex};
  vm->vmm = *found;
  return *found;
}

std::string driver::last_words(const vm_ptr& vm) {
  return printable(last_line(log_file(library_.root(), domain_name(vm->id))));
}

driver::monitor_answer driver::ask_monitor(const vm_ptr& vm, virDomainPtr domain, std::chrono::milliseconds budget,
                                           bool with_addresses) {
  monitor_answer none;
  auto vmm = vmm_of(vm);
  auto who = "QEMU (pid " + std::to_string(vmm.pid) + ")";
  if (auto stat = read_stat(vmm.pid); stat && (stat->state == 'T' || stat->state == 't')) {
    none.silent = who + " is stopped by a signal and answers nothing; SIGCONT lets it go on";
    return none;
  }
  std::uint64_t boot_bytes = 0; // as far as it is known
  {
    std::unique_lock lock{vm->mutex};
    if (!vm->changed.wait_for(lock, budget, [&] { return !vm->monitor_busy; })) {
      none.silent = who + " has not answered an earlier question of its monitor";
      return none;
    }
    vm->monitor_busy = true;
    if (vm->boot_bytes_of_pid == vmm.pid)
      boot_bytes = vm->boot_bytes;
  }
  auto promise = std::make_shared<std::promise<monitor_answer>>();
  auto answer = promise->get_future();
  virDomainRef(domain);
  asides_.run([vm, promise, with_addresses, pid = vmm.pid, boot_bytes,
               d = std::shared_ptr<virDomain>{domain, domain_release{}}] {
    monitor_answer a;
    library_clock::microseconds() = 0;
    try {
      a.memory = read_memory_devices(monitor(d.get(), "query-memory-devices"));
      a.boot_bytes = boot_bytes > 0 ? boot_bytes : read_boot_bytes(monitor(d.get(), "query-memory-size-summary"));
      a.vcpus = read_plugged_vcpus(monitor(d.get(), "query-hotpluggable-cpus"));
      if (with_addresses)
        a.addresses = read_pci_addresses(monitor(d.get(), "query-pci"));
    } catch (const std::exception& e) {
      a.silent = e.what();
    }
    a.library_us = library_clock::microseconds();
    {
      std::lock_guard lock{vm->mutex};
      vm->monitor_busy = false;
      vm->boot_bytes = a.boot_bytes;
      vm->boot_bytes_of_pid = pid;
      vm->changed.notify_all();
    }
    promise->set_value(std::move(a));
  });
  if (answer.wait_for(budget) == std::future_status::ready)
    return answer.get();
  none.silent = who + " did not answer its monitor within " + std::to_string(budget.count()) + " ms";
  return none;
}

// QEMU tells a new size of virtio-mem at most once a second, so that the end of a change of 50 ms may be heard a second
// late. Looked at a few times meanwhile, the listener hears of it at once.
void driver::follow_virtio_mem(const vm_ptr& vm) {
  std::uint64_t turn;
  {
    std::lock_guard lock{vm->mutex};
    turn = ++vm->virtio_mem_turn;
  }
  look_at_virtio_mem(vm, turn, 0);
}

void driver::look_at_virtio_mem(const vm_ptr& vm, std::uint64_t turn, unsigned look) {
  static constexpr std::chrono::milliseconds pauses[]{5ms, 10ms, 20ms, 20ms, 40ms, 40ms, 80ms, 80ms, 160ms, 160ms,
                                                      320ms, 320ms, 500ms, 500ms, 500ms, 500ms, 500ms, 500ms};
  if (look == std::size(pauses))
    return;
  auto timer = std::make_shared<boost::asio::steady_timer>(service_, pauses[look]);
  timer->async_wait([this, timer, vm, turn, look](boost::system::error_code error) {
    if (error)
      return;
    asides_.run([this, vm, turn, look] {
      bool free = false;
      {
        std::lock_guard lock{vm->mutex};
        if (vm->virtio_mem_turn != turn || vm->destroying || !vm->stop_reason.empty())
          return;
        free = !std::exchange(vm->monitor_busy, true);
      }
      if (!free)
        return look_at_virtio_mem(vm, turn, look + 1);
      memory_devices seen;
      try {
        if (auto domain = find_domain(vm))
          seen = read_memory_devices(monitor(domain.get(), "query-memory-devices"));
      } catch (const std::exception&) {
        // The verb that asks next will say why.
      }
      {
        std::lock_guard lock{vm->mutex};
        vm->monitor_busy = false;
        vm->changed.notify_all();
      }
      if (!seen.virtio_mem)
        return;
      tell_memory_size(vm, seen.virtio_mem_size_bytes);
      if (seen.virtio_mem_size_bytes != seen.virtio_mem_requested_bytes)
        look_at_virtio_mem(vm, turn, look + 1);
    });
  });
}

void driver::tell_memory_size(const vm_ptr& vm, std::uint64_t size_bytes) {
  {
    std::lock_guard lock{vm->mutex};
    if (vm->destroying || vm->told_size_bytes == size_bytes)
      return;
    vm->told_size_bytes = size_bytes;
  }
  tell(vm->id, v1::VmEvent::KIND_MEMORY_SIZE, "virtio-mem size is " + std::to_string(size_bytes) + " bytes",
       std::string{virtio_mem_alias}, size_bytes);
}

v1::VmObserved driver::read_back(const vm_ptr& vm, virDomainPtr domain, std::chrono::milliseconds budget) {
  v1::VmObserved o;
  o.set_state(state_of(domain));
  library_text xml{in_library([&] { return virDomainGetXMLDesc(domain, 0); })};
  if (!xml)
    throw library_failure("cannot read the VM's document");
  auto document = read_domain_xml(xml.get());
  auto vmm = vmm_of(vm);
  o.set_vmm_pid(vmm.pid);
  o.set_vmm_start_ticks(vmm.start_ticks);
  o.set_accelerator(document.accelerator);
  o.set_max_vcpus(document.max_vcpus);
  o.mutable_channels()->set_agent("unix:" + agent_socket(document.notes.run_directory));
  o.mutable_channels()->set_console("unix:" + console_socket(document.notes.run_directory));
  try {
    o.set_vmm_version(vmm_version(document.emulator, "this architecture"));
  } catch (const failure&) {
    // The binary may have been replaced or removed since; the VM runs on.
  }
  auto said = ask_monitor(vm, domain, budget, !document.devices.empty());
  o.set_vmm_call_us(said.library_us);
  o.set_stale_reason(said.silent);
  const bool fresh = said.silent.empty();
  std::uint64_t plugged = fresh ? said.memory.virtio_mem_size_bytes : document.virtio_mem_current_bytes;
  for (const auto& dimm : fresh ? said.memory.dimms : document.dimms) {
    plugged += dimm.size_bytes();
    *o.add_dimms() = dimm;
  }
  o.set_plugged_bytes(plugged);
  for (const auto& device : document.devices) {
    auto& d = *o.add_devices();
    d.set_id(device.id);
    d.set_kind(device.kind);
    if (auto at = said.addresses.find(device_alias(device.id)); at != said.addresses.end())
      d.set_address(at->second);
    std::lock_guard lock{vm->mutex};
    d.set_leaving(vm->leaving.contains(device.id));
  }
  o.set_boot_bytes(fresh ? said.boot_bytes : document.boot_bytes);
  o.set_virtio_mem_requested_bytes(fresh ? said.memory.virtio_mem_requested_bytes : document.virtio_mem_requested_bytes);
  o.set_plugged_vcpus(fresh && said.vcpus > 0 ? said.vcpus : document.vcpus);
  return o;
}

v1::VmObserved driver::inspect(const vm_ptr& vm, const call_ptr& call) {
  std::string gone;
  if (auto domain = find_domain(vm)) {
    try {
      return read_back(vm, domain.get(), std::min<std::chrono::milliseconds>(call->left() * 2 / 3, 3s));
    } catch (const failure& e) {
      // It may have ended between the look-up and the questions.
      if (virDomainIsActive(domain.get()) == 1)
        throw;
      gone = e.what();
    }
  }
  v1::VmObserved o;
  std::lock_guard lock{vm->mutex};
  if (vm->recorded) {
    o.set_state(v1::VM_STATE_STOPPED);
    o.set_stop_reason(!vm->stop_reason.empty() ? vm->stop_reason : "vmm died: nobody was there to see how");
  } else {
    o.set_state(v1::VM_STATE_ABSENT);
    o.set_stop_reason("there is no such VM (never made, or destroyed)");
  }
  return o;
}

} // namespace caisson::qemu
