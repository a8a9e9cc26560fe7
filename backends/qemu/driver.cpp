#include "backends/qemu/driver.hpp"

#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <boost/asio/executor_work_guard.hpp>

#include <algorithm>

#include "backends/qemu/accelerator.hpp"
#include "backends/qemu/domain_xml.hpp"
#include "backends/qemu/firmware_use.hpp"
#include "backends/qemu/log_tail.hpp"
#include "backends/qemu/text_checks.hpp"

namespace caisson::qemu {
namespace {

namespace asio = boost::asio;

constexpr std::chrono::seconds log_look{30};
constexpr std::size_t max_log_bytes = 1u << 20;

v1::BackendAnswer guarded(const std::string& doing, const std::function<v1::BackendAnswer()>& todo) {
  try {
    return todo();
  } catch (const failure& e) {
    return host::failure(e.code(), doing + ": " + e.what());
  } catch (const std::exception& e) {
    return host::failure("internal", doing + ": " + e.what());
  }
}

std::string doing(const pending_call& call) {
  return call.sandbox_id.empty() ? call.verb : call.verb + " of sandbox " + printable(call.sandbox_id);
}

} // namespace

driver::driver(host::arguments where)
    : where_(std::move(where)), records_(where_.run_directory + "/qemu-vms"),
      library_(where_.run_directory, where_.cache_directory,
               {[this](const std::string& d, int event, int detail) { on_lifecycle(d, event, detail); },
                [this](const std::string& d, const std::string& alias, bool removed) { on_device(d, alias, removed); },
                [this](const std::string& d, const std::string& alias, std::uint64_t n) { on_memory_size(d, alias, n); }}) {
  for (auto& r : records_.all()) {
    auto entry = std::make_shared<vm>(r.sandbox_id);
    entry->recorded = true;
    entry->run_directory = r.run_directory;
    entry->libvirt_uri = r.libvirt_uri;
    vms_.emplace(r.sandbox_id, std::move(entry));
  }
}

driver::~driver() {
  service_.stop();
  if (service_thread_.joinable())
    service_thread_.join();
}

v1::BackendReady driver::start(std::shared_ptr<host::emitter> out) {
  out_ = std::move(out);
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGCHLD);
  child_signals_.assign(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  wait_for_children();
  bound_logs();
  service_thread_ = std::thread{[this] {
    auto work = asio::make_work_guard(service_);
    service_.run();
  }};
  // Reopening takes a while and finds the VMs that are there: begin before the first call asks for it.
  asides_.run([this] {
    try {
      library_.connection({});
    } catch (const std::exception& e) {
      log(e.what());
    }
  });
  v1::BackendReady ready;
  ready.set_backend("qemu");
  unsigned long version = 0;
  virGetVersion(&version, nullptr, nullptr);
  ready.set_library_version("libvirt " + std::to_string(version / 1'000'000) + "." +
                            std::to_string(version / 1'000 % 1'000) + "." + std::to_string(version % 1'000));
  return ready;
}

void driver::wait_for_children() {
  child_signals_.async_wait(asio::posix::stream_descriptor::wait_read, [this](boost::system::error_code error) {
    if (error)
      return;
    signalfd_siginfo info;
    while (::read(child_signals_.native_handle(), &info, sizeof info) > 0) {
    }
    reaper_.reap();
    wait_for_children();
  });
}

void driver::arm_deadline(const call_ptr& call) {
  auto timer = std::make_shared<asio::steady_timer>(service_, call->deadline);
  timer->async_wait([timer, weak = std::weak_ptr{call}](boost::system::error_code error) {
    auto late = weak.lock();
    if (error || !late)
      return;
    late->finish(host::failure("outcome_unknown", doing(*late) + ": not done within " +
                                                      std::to_string(late->deadline_ms) +
                                                      " ms; it may still take effect, inspect tells"));
  });
}

void driver::submit(v1::BackendCall call, host::answer_function answer) {
  auto pending = std::make_shared<pending_call>(std::string{host::verb_name(call)}, host::sandbox_of(call),
                                                host::deadline_ms_of(call), std::move(answer));
  arm_deadline(pending);
  if (call.has_describe())
    return run_aside(pending, [this, q = call.describe()] { return host::success(describe(q)); });
  if (call.has_list())
    return run_aside(pending, [this] { return host::success(list()); });
  const auto& id = pending->sandbox_id;
  if (!valid_sandbox_id(id)) {
    pending->finish(host::failure("invalid_argument",
                                  pending->verb + ": sandbox id '" + printable(id) + "': expected 1 to 32 of a-z 0-9 -"));
    return;
  }
  if (call.has_inspect())
    return run_aside(pending, [this, pending] {
      auto vm = known_vm(pending->sandbox_id);
      auto looked_at = vm ? vm : std::make_shared<qemu::vm>(pending->sandbox_id);
      auto observed = inspect(looked_at, pending);
      observed.set_vmm_call_us(looked_at->library_us);
      return host::success(std::move(observed));
    });
  if (call.has_destroy())
    return run_aside(pending, [this, pending, vm = vm_of(id)] { return host::success(destroy(vm, pending)); });
  auto vm = call.has_create() ? vm_of(id) : known_vm(id);
  if (!vm) {
    pending->finish(host::failure("vmm_died", doing(*pending) + ": there is no such VM (never made, or destroyed)"));
    return;
  }
  if (call.has_create())
    return run_verb(vm, pending, [this, spec = call.create().spec()](const vm_ptr& v, const call_ptr& c) {
      return create(v, c, spec);
    });
  if (call.has_apply_memory_step())
    return run_verb(vm, pending, [this, step = call.apply_memory_step()](const vm_ptr& v, const call_ptr& c) {
      return apply_memory_step(v, c, step);
    });
  if (call.has_set_vcpus())
    return run_verb(vm, pending, [this, n = call.set_vcpus().count()](const vm_ptr& v, const call_ptr& c) {
      return set_vcpus(v, c, n);
    });
  if (call.has_attach())
    return run_verb(vm, pending, [this, asked = call.attach()](const vm_ptr& v, const call_ptr& c) {
      return attach(v, c, asked);
    });
  if (call.has_detach())
    return run_verb(vm, pending, [this, device = call.detach().device_id()](const vm_ptr& v, const call_ptr& c) {
      return detach(v, c, device);
    });
  if (call.has_pause() || call.has_resume())
    return run_verb(vm, pending, [this, paused = call.has_pause()](const vm_ptr& v, const call_ptr& c) {
      return pause(v, c, paused);
    });
  pending->finish(host::failure("unsupported", "the QEMU backend does not know this verb"));
}

void driver::run_verb(const vm_ptr& vm, const call_ptr& call, verb todo) {
  {
    std::lock_guard lock{vm->mutex};
    std::erase_if(vm->pending, [](const auto& weak) { return weak.expired(); });
    vm->pending.push_back(call);
  }
  verbs_.run_in_order(vm->id, [this, vm, call, todo = std::move(todo)] {
    {
      std::lock_guard lock{vm->mutex};
      if (!call->open())
        return;
      if (vm->destroying) {
        call->finish(host::failure("vmm_died", doing(*call) + ": the VM is being destroyed"));
        return;
      }
      ++vm->running;
    }
    library_clock::microseconds() = 0;
    auto answer = guarded(doing(*call), [&] {
      v1::VmObserved observed;
      try {
        observed = todo(vm, call);
      } catch (const failure& e) {
        // libvirt only sees a monitor that has closed, which reads like a fault of the host's.
        if (call->verb == "create" || e.code() == "vmm_died" || !vmm_has_ended(vm))
          throw;
        throw failure("vmm_died", std::string{e.what()} + "; the VMM has ended meanwhile");
      }
      vm->library_us += observed.vmm_call_us() + library_clock::microseconds();
      observed.set_vmm_call_us(vm->library_us);
      return host::success(std::move(observed));
    });
    {
      std::lock_guard lock{vm->mutex};
      --vm->running;
      vm->changed.notify_all();
    }
    call->finish(std::move(answer));
  });
}

bool driver::vmm_has_ended(const vm_ptr& vm) {
  process known;
  {
    std::lock_guard lock{vm->mutex};
    known = vm->vmm;
  }
  if (known.pid == 0)
    return false;
  auto stat = read_stat(known.pid);
  return !stat || stat->start_ticks != known.start_ticks || stat->state == 'Z' || stat->exiting;
}

void driver::run_aside(const call_ptr& call, std::function<v1::BackendAnswer()> todo) {
  asides_.run([call, todo = std::move(todo)] {
    library_clock::microseconds() = 0;
    call->finish(guarded(doing(*call), todo));
  });
}

vm_ptr driver::vm_of(const std::string& sandbox_id) {
  std::lock_guard lock{vms_mutex_};
  auto& entry = vms_[sandbox_id];
  if (!entry)
    entry = std::make_shared<vm>(sandbox_id);
  return entry;
}

vm_ptr driver::known_vm(const std::string& sandbox_id) {
  std::lock_guard lock{vms_mutex_};
  auto found = vms_.find(sandbox_id);
  return found == vms_.end() ? nullptr : found->second;
}

void driver::forget(const vm_ptr& gone) {
  std::lock_guard lock{vms_mutex_};
  auto found = vms_.find(gone->id);
  if (found != vms_.end() && found->second == gone)
    vms_.erase(found);
}

v1::Capabilities driver::describe(const v1::DescribeBackend& q) {
  auto architecture = q.architecture().empty() ? std::string{"x86_64"} : q.architecture();
  bool x86 = architecture == "x86_64";
  if (!x86 && architecture != "aarch64")
    throw failure("unsupported", "architecture '" + printable(architecture) + "': QEMU here makes x86_64 and aarch64");
  auto vmm = q.vmm_path().empty() ? "/usr/bin/qemu-system-" + architecture : q.vmm_path();
  check_path("path of QEMU", vmm);

  v1::Capabilities c;
  c.set_backend("qemu");
  c.set_architecture(architecture);
  c.set_vmm_version(vmm_version(vmm, architecture));
  auto choice = choose_accelerator({q.accelerator(), architecture, vmm, q.kernel_path(), q.initrd_path()},
                                   where_.cache_directory);
  c.set_accelerator(choice.accelerator);
  c.set_accelerator_reason(choice.reason);

  // Makes libvirt ask this QEMU what it can; slow (seconds) the first time on a host, kept in the shared cache.
  auto connection = library_.connection(q.libvirt_uri());
  library_text known{in_library([&] {
    return virConnectGetDomainCapabilities(connection.get(), vmm.c_str(), architecture.c_str(), x86 ? "q35" : "virt",
                                           choice.accelerator == "kvm" ? "kvm" : "qemu", 0);
  })};
  if (!known) {
    auto why = library_failure("libvirt cannot use " + printable(vmm));
    throw failure("host_missing", std::string{why.what()} + "; expected a QEMU for " + architecture + ", package " +
                                      qemu_package(architecture));
  }
  if (q.libvirt_uri().empty())
    library_.keep_capabilities();

  // Checked here too, so that a wrong image is known before anything is made.
  auto images = firmware_images(architecture, q.machine_type(), q.firmware_path(), q.firmware_variables_path());
  c.set_dimm(x86 || !images.none());
  if (!c.dimm())
    c.set_dimm_why_not(firmware::dimm_without_firmware({architecture, q.machine_type()}, firmware::read_descriptors()));
  c.set_dimm_block_bytes(dimm_block_bytes);
  c.set_dimm_max_slots(max_dimm_slots);
  c.set_dimm_unplug(c.dimm());
  c.set_virtio_mem(true);
  c.set_virtio_mem_granule_bytes(virtio_mem_granule_bytes);
  c.set_virtio_mem_shrink(true);
  c.set_vcpu_plug(x86);
  if (!x86)
    c.set_vcpu_plug_why_not("QEMU's virt machine cannot plug vCPUs; the guest can only take those that it booted with off "
                            "and on");
  c.set_vcpu_unplug(x86 && choice.accelerator == "kvm");
  if (!c.vcpu_unplug())
    c.set_vcpu_unplug_why_not(
        x86 ? "QEMU under TCG never finishes unplugging a vCPU; one that the guest has taken offline stays plugged"
            : "QEMU's virt machine cannot unplug vCPUs; one that the guest has taken offline stays plugged");
  c.set_disks(true);
  c.set_nets(true);
  c.set_shares(true);
  c.set_free_page_reporting(true);
  c.set_max_vcpus(255);
  c.set_pause(true);
  return c;
}

v1::VmList driver::list() {
  std::map<std::string, bool> ids;
  {
    std::lock_guard lock{vms_mutex_};
    for (const auto& [id, entry] : vms_) {
      std::lock_guard inner{entry->mutex};
      if (entry->recorded)
        ids.emplace(id, true);
    }
  }
  auto connection = library_.connection({});
  virDomainPtr* domains = nullptr;
  int n = in_library([&] { return virConnectListAllDomains(connection.get(), &domains, 0); });
  if (n < 0)
    throw failure("backend_lost", library_failure("cannot list the VMs").what());
  for (int i = 0; i < n; ++i) {
    if (auto id = sandbox_of_domain(virDomainGetName(domains[i])); !id.empty())
      ids.emplace(id, true);
    virDomainFree(domains[i]);
  }
  std::free(domains);
  v1::VmList out;
  for (const auto& [id, ours] : ids)
    out.add_sandbox_ids(id);
  return out;
}

void driver::log(const std::string& line) {
  if (out_)
    out_->log_line(line);
}

void driver::tell(const std::string& sandbox_id, v1::VmEvent::Kind kind, std::string text, std::string device_id,
                  std::uint64_t size_bytes) {
  v1::VmEvent e;
  e.set_sandbox_id(sandbox_id);
  e.set_kind(kind);
  e.set_text(std::move(text));
  e.set_device_id(std::move(device_id));
  e.set_size_bytes(size_bytes);
  if (out_)
    out_->event(std::move(e));
}

void driver::on_lifecycle(const std::string& domain, int event, int detail) {
  if (event != VIR_DOMAIN_EVENT_STOPPED && event != VIR_DOMAIN_EVENT_CRASHED)
    return;
  auto vm = known_vm(sandbox_of_domain(domain));
  if (!vm)
    return;
  reaper_.reap();
  auto kind = v1::VmEvent::KIND_VMM_DIED;
  std::string text;
  {
    std::lock_guard lock{vm->mutex};
    // A destroy is no news, and a panic comes twice: as CRASHED and as STOPPED.
    if (vm->destroying || !vm->stop_reason.empty() || !vm->recorded)
      return;
    if (event == VIR_DOMAIN_EVENT_CRASHED || detail == VIR_DOMAIN_EVENT_STOPPED_CRASHED) {
      kind = v1::VmEvent::KIND_GUEST_PANICKED;
      text = "guest panicked";
    } else if (detail == VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN) {
      kind = v1::VmEvent::KIND_GUEST_STOPPED;
      text = "guest shut down";
    } else {
      auto how = reaper_.how_it_ended(vm->vmm.pid);
      text = "vmm died: QEMU (pid " + std::to_string(vm->vmm.pid) + ") " + (how.empty() ? "is gone, unasked" : how);
    }
    vm->stop_reason = text;
    vm->changed.notify_all();
  }
  if (kind == v1::VmEvent::KIND_VMM_DIED)
    if (auto words = last_words(vm); !words.empty())
      text += "; its last words: " + words;
  tell(vm->id, kind, text);
}

void driver::on_device(const std::string& domain, const std::string& alias, bool removed) {
  auto vm = known_vm(sandbox_of_domain(domain));
  auto dimm = dimm_of_alias(alias);
  auto id = dimm.empty() ? device_of_alias(alias) : dimm;
  if (!vm || id.empty())
    return;
  if (dimm.empty()) {
    std::lock_guard lock{vm->mutex};
    vm->leaving.erase(id);
  }
  auto what = (dimm.empty() ? "device " : "DIMM ") + id;
  tell(vm->id, removed ? v1::VmEvent::KIND_DEVICE_REMOVED : v1::VmEvent::KIND_DEVICE_REFUSED,
       removed ? what + " has left the VM" : "the guest would not give " + what + " back", id);
}

void driver::on_memory_size(const std::string& domain, const std::string& alias, std::uint64_t size_bytes) {
  auto vm = known_vm(sandbox_of_domain(domain));
  if (vm && alias == virtio_mem_alias)
    tell_memory_size(vm, size_bytes);
}

void driver::bound_logs() {
  log_timer_.expires_after(log_look);
  log_timer_.async_wait([this](boost::system::error_code error) {
    if (error)
      return;
    {
      std::lock_guard lock{vms_mutex_};
      for (const auto& [id, entry] : vms_)
        bound_file(log_file(library_.root(), domain_name(id)), max_log_bytes);
    }
    bound_logs();
  });
}

} // namespace caisson::qemu
