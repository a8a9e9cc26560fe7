#include "examples/backend_template/driver.hpp"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

namespace backend_template {
namespace {

namespace fs = std::filesystem;
using caisson::host::success;
using namespace std::chrono_literals;

constexpr std::uint64_t granule_bytes = 2u << 20;
constexpr const char* no_nets = "the toy of a VMM has disks only";

deadline now() {
  return std::chrono::steady_clock::now();
}

bool valid_id(const std::string& id) {
  auto fits = [](unsigned char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; };
  return !id.empty() && id.size() <= 32 && std::all_of(id.begin(), id.end(), fits);
}

/// What the VMM's protocol cannot carry never reaches it.
bool one_word(const std::string& text) {
  return !text.empty() && std::none_of(text.begin(), text.end(), [](unsigned char c) { return c <= ' ' || c == 0x7f; });
}

void check_disk(const v1::VmDisk& disk) {
  if (!valid_id(disk.id()))
    throw failure("invalid_argument", "disk id: expected 1 to 32 of a-z 0-9 -");
  if (!one_word(disk.path()))
    throw failure("invalid_argument", "disk " + disk.id() + ": expected a path without blanks");
  if (::access(disk.path().c_str(), disk.read_only() ? R_OK : R_OK | W_OK) != 0)
    throw failure("host_missing", "disk " + disk.id() + ": " + disk.path() + " cannot be opened: " + std::strerror(errno));
}

void check(const v1::VmSpec& spec) {
  if (spec.boot_bytes() == 0 || spec.max_bytes() < spec.boot_bytes())
    throw failure("out_of_range", "memory: expected 0 < boot_bytes <= max_bytes");
  if (spec.boot_vcpus() == 0 || spec.max_vcpus() < spec.boot_vcpus())
    throw failure("out_of_range", "vCPUs: expected 1 <= boot_vcpus <= max_vcpus");
  if (spec.memory_method() != v1::MEMORY_METHOD_VIRTIO_MEM && spec.max_bytes() > spec.boot_bytes())
    throw failure("unsupported", "the toy of a VMM has no DIMMs: memory_method = \"virtio-mem\"");
  if (spec.nets_size() + spec.shares_size() > 0)
    throw failure("unsupported", no_nets);
  for (const auto& disk : spec.disks())
    check_disk(disk);
  if (!fs::is_directory(spec.run_directory()))
    throw failure("host_io", "run directory " + spec.run_directory() + " is not there; the engine makes it");
}

std::string digest_of(const v1::VmSpec& spec) {
  return std::to_string(std::hash<std::string>{}(spec.SerializeAsString()));
}

std::string toy_beside_us() {
  return fs::read_symlink("/proc/self/exe").parent_path() / "caisson-toy-vmm";
}

} // namespace

// ---- calls ----

v1::BackendReady driver::start(std::shared_ptr<caisson::host::emitter> out) {
  out_ = std::move(out);
  fs::create_directories(directory_);
  for (const auto& file : fs::directory_iterator{directory_})
    adopt(file.path().filename());
  v1::BackendReady ready;
  ready.set_backend("template");
  ready.set_library_version("none");
  return ready;
}

void driver::submit(v1::BackendCall call, caisson::host::answer_function answer) {
  auto until = now() + std::chrono::milliseconds{caisson::host::deadline_ms_of(call)};
  std::thread{[this, call = std::move(call), answer = std::move(answer), until] {
    auto doing = std::string{caisson::host::verb_name(call)} + " of sandbox " + caisson::host::sandbox_of(call) + ": ";
    try {
      answer(work(call, until));
    } catch (const failure& e) {
      answer(caisson::host::failure(e.code, doing + e.what()));
    } catch (const std::exception& e) {
      answer(caisson::host::failure("internal", doing + e.what()));
    }
  }}.detach();
}

v1::BackendAnswer driver::work(const v1::BackendCall& call, deadline until) {
  if (call.has_describe())
    return success(describe(call.describe()));
  if (call.has_list())
    return success(list());
  auto id = caisson::host::sandbox_of(call);
  if (!valid_id(id))
    throw failure("invalid_argument", "sandbox id: expected 1 to 32 of a-z 0-9 -");
  if (call.has_inspect())
    return success(inspect(id, until));
  if (call.has_destroy())
    return success(destroy(id, until));
  if (call.has_create())
    return success(create(call.create().spec(), until));
  auto vm = find(id);
  if (!vm)
    throw failure("vmm_died", "there is no such VM (never made, or destroyed)");
  std::unique_lock turn{vm->order, until};
  if (!turn)
    throw failure("outcome_unknown", "an earlier verb of this VM was still under way at the deadline; it was not begun");
  try {
    return success(change(vm, call, until));
  } catch (const failure& e) {
    // A VMM that ends in the middle closes its socket a moment before it is gone.
    std::unique_lock lock{vm->mutex};
    if (e.code == "backend_lost")
      vm->ended_now.wait_until(lock, std::min(until, now() + 1s), [&] { return vm->ended; });
    if (vm->ended && e.code != "vmm_died")
      throw failure("vmm_died", std::string{e.what()} + "; the VMM has ended meanwhile");
    throw;
  }
}

v1::Capabilities driver::describe(const v1::DescribeBackend& question) const {
  v1::Capabilities c;
  c.set_backend("template");
  c.set_architecture(question.architecture().empty() ? "x86_64" : question.architecture());
  c.set_dimm_why_not("the toy of a VMM has no DIMM slots");
  c.set_virtio_mem(true);
  c.set_virtio_mem_granule_bytes(granule_bytes);
  c.set_virtio_mem_shrink(true);
  c.set_vcpu_plug(true);
  c.set_vcpu_unplug(true);
  c.set_max_vcpus(64);
  c.set_pause(true);
  c.set_disks(true);
  c.set_devices_why_not(no_nets);
  c.set_accelerator("none");
  c.set_modelled_memory(true);
  c.set_accelerator_reason("a toy executes no guest");
  c.set_vmm_version("toy 1");
  return c;
}

v1::VmList driver::list() {
  v1::VmList out;
  std::lock_guard lock{vms_mutex_};
  for (const auto& [id, vm] : vms_)
    out.add_sandbox_ids(id);
  return out;
}

v1::VmObserved driver::create(const v1::VmSpec& spec, deadline until) {
  check(spec);
  vm_ptr vm;
  {
    std::lock_guard lock{vms_mutex_};
    auto& entry = vms_[spec.sandbox_id()];
    if (!entry)
      entry = std::make_shared<backend_template::vm>(spec.sandbox_id());
    vm = entry;
  }
  std::unique_lock turn{vm->order, until};
  if (!turn)
    throw failure("outcome_unknown", "an earlier verb of this VM was still under way at the deadline");
  {
    std::lock_guard lock{vm->mutex};
    if (vm->destroying)
      throw failure("vmm_died", "the VM is being destroyed");
    if (!vm->spec_digest.empty() && (vm->ended || vm->spec_digest != digest_of(spec)))
      throw failure("already_exists", vm->ended ? "a VM of this name has ended: destroy it first"
                                                : "a VM of this name runs, made from another specification");
    if (vm->vmm.pid > 0)
      turn.unlock();
    else
      vm->run_directory = spec.run_directory();
  }
  if (!turn.owns_lock())
    return read_back(vm, until);
  process started;
  int watched = -1;
  try {
    auto socket = vm->socket_path();
    ::unlink(socket.c_str());
    // The record comes first: whoever finds it and a VMM that listens there has found a VM.
    std::ofstream{record_of(vm->id)} << spec.run_directory() << '\n' << digest_of(spec) << '\n';
    started = backend_template::start({spec.vmm_path().empty() ? toy_beside_us() : spec.vmm_path(), socket,
                                       std::to_string(spec.boot_bytes()), std::to_string(spec.max_bytes()),
                                       std::to_string(spec.boot_vcpus()), std::to_string(spec.max_vcpus())});
    while (::access(socket.c_str(), F_OK) != 0) {
      if (!lives(started))
        throw failure("backend_refused", "the VMM has ended before it listened");
      if (now() > until)
        throw failure("outcome_unknown", "the VMM does not listen yet");
      ::poll(nullptr, 0, 2);
    }
    for (const auto& disk : spec.disks())
      ask(socket, "attach disk " + disk.id() + " " + disk.path(), until);
    watched = begin_watch(socket, until);
    std::lock_guard lock{vm->mutex};
    if (vm->destroying) {
      ::close(watched);
      throw failure("vmm_died", "the VM was destroyed while it was being made");
    }
    vm->vmm = started;
    vm->spec_digest = digest_of(spec);
  } catch (const failure&) {
    // Nothing is left behind: no process, no file, no record.
    if (started.pid > 0) {
      end(started, now() + 5s);
      wait_for_end(started);
    }
    ::unlink(vm->socket_path().c_str());
    ::unlink(record_of(vm->id).c_str());
    std::lock_guard lock{vms_mutex_};
    if (auto at = vms_.find(vm->id); at != vms_.end() && at->second == vm)
      vms_.erase(at);
    throw;
  }
  listen_to(vm, watched);
  return read_back(vm, until);
}

v1::VmObserved driver::inspect(const std::string& id, deadline until) {
  if (auto vm = find(id))
    return read_back(vm, now() + (until - now()) * 2 / 3);
  v1::VmObserved o;
  o.set_state(v1::VM_STATE_ABSENT);
  o.set_stop_reason("there is no such VM (never made, or destroyed)");
  return o;
}

v1::VmObserved driver::destroy(const std::string& id, deadline until) {
  v1::VmObserved o;
  o.set_state(v1::VM_STATE_ABSENT);
  o.set_stop_reason("destroyed");
  auto vm = find(id);
  if (!vm)
    return o;
  process victim;
  {
    std::lock_guard lock{vm->mutex};
    vm->destroying = true;
    victim = vm->vmm;
  }
  if (victim.pid > 0 && !end(victim, until))
    throw failure("outcome_unknown", "the VMM (pid " + std::to_string(victim.pid) + ") does not die of SIGKILL");
  // Verbs that are under way fail now; a create among them sweeps up behind itself.
  std::unique_lock turn{vm->order, until};
  if (!turn)
    throw failure("outcome_unknown", "a verb of this VM is still under way; destroy it again");
  {
    std::unique_lock lock{vm->mutex};
    if (vm->vmm.pid > 0 && !vm->ended_now.wait_until(lock, until, [&] { return vm->ended; }))
      throw failure("outcome_unknown", "nobody has seen the VMM end yet; destroy it again");
    ::unlink(vm->socket_path().c_str());
    ::rmdir(vm->run_directory.c_str());
  }
  ::unlink(record_of(id).c_str());
  std::lock_guard lock{vms_mutex_};
  if (auto at = vms_.find(id); at != vms_.end() && at->second == vm)
    vms_.erase(at);
  return o;
}

v1::VmObserved driver::change(const vm_ptr& vm, const v1::BackendCall& call, deadline until) {
  {
    std::lock_guard lock{vm->mutex};
    if (vm->destroying || vm->ended || vm->vmm.pid == 0)
      throw failure("vmm_died", "the VM has ended: " + (vm->stop_reason.empty() ? "destroyed" : vm->stop_reason));
  }
  const auto socket = vm->socket_path();
  if (call.has_apply_memory_step())
    memory_step(vm, call.apply_memory_step(), until);
  else if (call.has_set_vcpus())
    ask(socket, "vcpus " + std::to_string(call.set_vcpus().count()), until);
  else if (call.has_attach())
    attach(vm, call.attach(), until);
  else if (call.has_detach() && valid_id(call.detach().device_id()))
    ask(socket, "detach " + call.detach().device_id(), until);
  else if (call.has_pause() || call.has_resume())
    ask(socket, call.has_pause() ? "pause" : "resume", until);
  auto seen = read_back(vm, until);
  if (!seen.stale_reason().empty())
    throw failure("outcome_unknown", "it was asked for and could not be read back: " + seen.stale_reason());
  return seen;
}

void driver::memory_step(const vm_ptr& vm, const v1::ApplyMemoryStep& step, deadline until) {
  if (step.step_case() != v1::ApplyMemoryStep::kVirtioMemRequestedBytes)
    throw failure("unsupported", "the toy of a VMM has no DIMM slots");
  ask(vm->socket_path(), "memory " + std::to_string(step.virtio_mem_requested_bytes()), until);
}

void driver::attach(const vm_ptr& vm, const v1::AttachDevice& call, deadline until) {
  if (call.has_net())
    throw failure("unsupported", no_nets);
  if (!call.has_disk())
    throw failure("invalid_argument", "no device is named");
  check_disk(call.disk());
  for (const auto& there : ask_status(vm->socket_path(), until).devices)
    if (there.id == call.disk().id()) {
      if (there.source != call.disk().path())
        throw failure("already_exists", "a " + there.kind + " with the id " + there.id + " is there already");
      return;
    }
  ask(vm->socket_path(), "attach disk " + call.disk().id() + " " + call.disk().path(), until);
}

// ---- what is read back, and what is told unasked ----

v1::VmObserved driver::read_back(const vm_ptr& vm, deadline until) {
  v1::VmObserved o;
  std::unique_lock lock{vm->mutex};
  if (vm->ended || vm->vmm.pid == 0) {
    o.set_state(vm->ended ? v1::VM_STATE_STOPPED : v1::VM_STATE_ABSENT);
    o.set_stop_reason(vm->ended ? vm->stop_reason : "it is being made");
    return o;
  }
  const auto vmm = vm->vmm;
  lock.unlock();
  char state = 0;
  look_at(vmm.pid, &state);
  try {
    if (state == 'T')
      throw failure("outcome_unknown", "the VMM (pid " + std::to_string(vmm.pid) + ") is stopped by a signal");
    auto said = ask_status(vm->socket_path(), until);
    lock.lock();
    vm->last = said;
  } catch (const failure& e) {
    lock.lock();
    if (e.code == "backend_lost" && vm->ended_now.wait_until(lock, std::min(until, now() + 1s), [&] { return vm->ended; })) {
      lock.unlock();
      return read_back(vm, until);
    }
    o.set_stale_reason(e.what());
  }
  const auto& s = vm->last;
  o.set_state(s.paused ? v1::VM_STATE_PAUSED : v1::VM_STATE_RUNNING);
  o.set_boot_bytes(s.boot_bytes);
  o.set_plugged_bytes(s.plugged_bytes);
  o.set_virtio_mem_requested_bytes(s.plugged_bytes);
  o.set_plugged_vcpus(s.vcpus);
  o.set_max_vcpus(s.max_vcpus);
  for (const auto& d : s.devices) {
    o.add_devices()->set_id(d.id);
    o.mutable_devices()->rbegin()->set_kind(d.kind);
  }
  o.set_vmm_pid(vmm.pid);
  o.set_vmm_start_ticks(vmm.start_ticks);
  o.set_accelerator("none");
  o.set_vmm_version("toy 1");
  return o;
}

vm_ptr driver::find(const std::string& id) {
  std::lock_guard lock{vms_mutex_};
  auto at = vms_.find(id);
  return at == vms_.end() ? nullptr : at->second;
}

void driver::adopt(const std::string& id) {
  auto found = std::make_shared<vm>(id);
  std::ifstream record{record_of(id)};
  std::getline(record, found->run_directory);
  std::getline(record, found->spec_digest);
  if (auto listening = listener_of(found->socket_path()))
    found->vmm = *listening;
  else
    found->ended = true, found->stop_reason = "vmm died: nobody was there to see how";
  vms_.emplace(id, found);
  if (found->ended)
    return;
  int watched = -1;
  try {
    watched = begin_watch(found->socket_path(), now() + 1s);
  } catch (const failure& e) {
    out_->log_line(id + ": " + e.what() + "; only its end will be seen");
  }
  listen_to(found, watched);
}

void driver::listen_to(const vm_ptr& vm, int watched) {
  std::thread{[this, vm, watched] {
    if (watched >= 0)
      watch(watched, [&](const std::string& news) {
        auto blank = news.find(' ');
        auto what = news.substr(0, blank), rest = blank == news.npos ? "" : news.substr(blank + 1);
        if (what == "memory")
          tell(vm->id, v1::VmEvent::KIND_MEMORY_SIZE, "memory is " + rest + " bytes", "", std::stoull(rest));
        else if (what == "removed")
          tell(vm->id, v1::VmEvent::KIND_DEVICE_REMOVED, rest + " has left the VM", rest);
      });
    auto how = "vmm died: it " + wait_for_end(vm->vmm);
    bool unasked = false;
    {
      std::lock_guard lock{vm->mutex};
      unasked = !vm->destroying;
      vm->ended = true;
      vm->stop_reason = how;
      vm->ended_now.notify_all();
    }
    if (unasked)
      tell(vm->id, v1::VmEvent::KIND_VMM_DIED, how);
  }}.detach();
}

void driver::tell(const std::string& id, v1::VmEvent::Kind kind, std::string text, std::string device,
                  std::uint64_t bytes) {
  v1::VmEvent e;
  e.set_sandbox_id(id);
  e.set_kind(kind);
  e.set_text(std::move(text));
  e.set_device_id(std::move(device));
  e.set_size_bytes(bytes);
  out_->event(std::move(e));
}

} // namespace backend_template
