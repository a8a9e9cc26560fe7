// What the verbs of the contract do in a simulated world, and what happens to its machines by themselves.

#include <algorithm>
#include <utility>

#include "backends/simulated/world.hpp"
#include "backends/simulated/world_vm.hpp"

namespace caisson::backends::simulated {
namespace {

constexpr std::size_t console_bytes_max = 4096;

v1::BackendAnswer failure(ec code, std::string text) {
  v1::BackendAnswer a;
  *a.mutable_error() = error_message(code, std::move(text));
  return a;
}

std::uint64_t part_of(std::uint64_t bytes, std::uint64_t step, dice& d) {
  return bytes / step == 0 ? 0 : d.between(0, bytes / step - 1) * step;
}

} // namespace

world::vm* world::find(const std::string& id) const {
  const auto it = vms_.find(id);
  return it == vms_.end() ? nullptr : it->second.get();
}

v1::BackendAnswer world::perform(const v1::BackendCall& call) {
  v1::BackendAnswer a;
  switch (call.verb_case()) {
  case v1::BackendCall::kDescribe:
    return describe(call.describe());
  case v1::BackendCall::kCreate:
    return create(call.create());
  case v1::BackendCall::kApplyMemoryStep:
    return apply(call.apply_memory_step());
  case v1::BackendCall::kSetVcpus:
    return set_vcpus(call.set_vcpus());
  case v1::BackendCall::kAttach:
    return attach(call.attach());
  case v1::BackendCall::kDetach:
    return detach(call.detach());
  case v1::BackendCall::kPause:
    return pause(call.pause().sandbox_id(), true);
  case v1::BackendCall::kResume:
    return pause(call.resume().sandbox_id(), false);
  case v1::BackendCall::kDestroy:
    return destroy(call.destroy().sandbox_id());
  case v1::BackendCall::kInspect:
    *a.mutable_observed() = observe(call.inspect().sandbox_id());
    return a;
  case v1::BackendCall::kList:
    a.mutable_list();
    for (const auto& [id, v] : vms_)
      a.mutable_list()->add_sandbox_ids(id);
    return a;
  case v1::BackendCall::VERB_NOT_SET:
    break;
  }
  return failure(ec::internal, "simulated backend: the call names no verb");
}

v1::BackendAnswer world::describe(const v1::DescribeBackend& m) const {
  const auto architecture = m.architecture().empty() ? std::string{"x86_64"} : m.architecture();
  if (architecture != "x86_64" && architecture != "aarch64")
    return failure(ec::unsupported,
                   "simulated backend: architecture \"" + architecture + "\" is not known; x86_64 and aarch64 are");
  v1::BackendAnswer a;
  auto& c = *a.mutable_capabilities();
  c.set_backend("simulated");
  c.set_architecture(architecture);
  c.set_dimm(plan_.dimm);
  c.set_virtio_mem(plan_.virtio_mem);
  c.set_dimm_block_bytes(plan_.dimm_block_bytes);
  c.set_dimm_max_slots(plan_.dimm_slots);
  c.set_dimm_unplug(plan_.dimm && plan_.dimm_unplug);
  c.set_virtio_mem_granule_bytes(plan_.virtio_mem_granule_bytes);
  c.set_virtio_mem_shrink(plan_.virtio_mem && plan_.virtio_mem_shrink);
  c.set_vcpu_plug(true);
  c.set_vcpu_unplug(plan_.vcpu_unplug);
  if (!plan_.vcpu_unplug)
    c.set_vcpu_unplug_why_not("the fault plan says vcpu_unplug=0");
  if (!plan_.dimm)
    c.set_dimm_why_not("the fault plan says dimm=0");
  if (!plan_.virtio_mem)
    c.set_virtio_mem_why_not("the fault plan says virtio_mem=0");
  c.set_disks(true);
  c.set_nets(true);
  c.set_shares(true);
  c.set_free_page_reporting(true);
  c.set_max_vcpus(1024);
  c.set_pause(plan_.can_pause);
  c.set_accelerator("simulated");
  c.set_modelled_memory(true);
  c.set_accelerator_reason("a simulated VM runs no instructions");
  c.set_vmm_version("simulated 1");
  return a;
}

v1::VmObserved world::observe(const std::string& id) const {
  v1::VmObserved o;
  const auto* v = find(id);
  if (!v) {
    o.set_state(v1::VM_STATE_ABSENT);
    o.set_stop_reason("no simulated VM of this sandbox");
    return o;
  }
  o.set_state(v->state);
  o.set_stop_reason(v->stop_reason);
  o.set_accelerator("simulated");
  o.set_vmm_version("simulated 1");
  const auto& m = *v->machine;
  o.set_boot_bytes(m.shape().boot_bytes);
  o.set_plugged_bytes(m.plugged_bytes());
  for (const auto& d : m.dimms()) {
    auto& out = *o.add_dimms();
    out.set_id(d.id);
    out.set_size_bytes(d.size_bytes);
    out.set_address(d.address);
  }
  for (const auto& d : m.devices()) {
    auto& out = *o.add_devices();
    out.set_id(d.id);
    out.set_kind(d.kind);
    out.set_leaving(d.leaving);
  }
  o.set_virtio_mem_requested_bytes(m.virtio_mem_requested_bytes());
  o.set_plugged_vcpus(m.plugged_vcpus());
  o.set_max_vcpus(m.shape().max_vcpus);
  if (v->state != v1::VM_STATE_STOPPED) {
    o.mutable_channels()->set_agent("simulated:" + id);
    o.mutable_channels()->set_console("simulated:" + id + "/console");
  }
  return o;
}

world::vm* world::running(const std::string& id, v1::BackendAnswer& why_not) {
  auto* v = find(id);
  if (v && v->state != v1::VM_STATE_STOPPED)
    return v;
  why_not = failure(ec::vmm_died, v ? "sandbox " + id + ": its simulated VM has stopped (" + v->stop_reason + ")"
                                    : "sandbox " + id + ": there is no simulated VM");
  return nullptr;
}

v1::BackendAnswer world::create(const v1::CreateVm& m) {
  const auto& spec = m.spec();
  v1::BackendAnswer a;
  const auto hash = std::hash<std::string>{}(spec.SerializeAsString());
  if (const auto* there = find(spec.sandbox_id())) {
    if (there->spec_hash != hash)
      return failure(ec::backend_refused,
                     "sandbox " + spec.sandbox_id() + ": a simulated VM of another kind is there already");
    *a.mutable_observed() = observe(spec.sandbox_id());
    return a;
  }
  const auto refuse = [&](ec code, std::string text) {
    return failure(code, "simulated VM of sandbox " + spec.sandbox_id() + ": " + std::move(text));
  };
  if (spec.sandbox_id().empty() || spec.sandbox_id().size() > 32)
    return refuse(ec::backend_refused, "the sandbox id must have 1 to 32 bytes");
  if (spec.boot_bytes() == 0 || spec.max_bytes() < spec.boot_bytes())
    return refuse(ec::backend_refused, "boot memory of " + std::to_string(spec.boot_bytes()) +
                                           " bytes must be above 0 and at most the maximum of " +
                                           std::to_string(spec.max_bytes()) + " bytes");
  if (spec.boot_vcpus() == 0 || spec.max_vcpus() < spec.boot_vcpus())
    return refuse(ec::backend_refused, std::to_string(spec.boot_vcpus()) +
                                           " boot vCPUs must be above 0 and at most the maximum of " +
                                           std::to_string(spec.max_vcpus()));
  const bool virtio = spec.memory_method() == v1::MEMORY_METHOD_VIRTIO_MEM;
  if (spec.max_bytes() > spec.boot_bytes() && (virtio ? !plan_.virtio_mem : !plan_.dimm))
    return refuse(ec::unsupported,
                  virtio ? "virtio-mem is not there (fault plan)" : "DIMMs are not there (fault plan)");
  if (spec.memory_slots() > plan_.dimm_slots)
    return refuse(ec::unsupported, std::to_string(spec.memory_slots()) + " memory slots are more than the " +
                                       std::to_string(plan_.dimm_slots) + " that there can be");

  std::string problem;
  const auto devices = devices_of(spec, problem);
  if (!problem.empty())
    return refuse(ec::invalid_argument, problem);

  machine_shape shape;
  shape.boot_bytes = spec.boot_bytes(), shape.max_bytes = spec.max_bytes();
  shape.boot_vcpus = spec.boot_vcpus(), shape.max_vcpus = spec.max_vcpus();
  shape.dimm_slots = virtio ? 0 : spec.memory_slots();
  shape.virtio_mem = virtio;
  shape.block_bytes = plan_.dimm_block_bytes, shape.granule_bytes = plan_.virtio_mem_granule_bytes;

  guest_habits habits{plan_.notice_ms,
                      plan_.online_ms,
                      plan_.leave_ms,
                      plan_.power_off_ms,
                      plan_.online_at_most_bytes,
                      plan_.online_at_most_cpus,
                      plan_.virtio_mem_floor_bytes,
                      plan_.dimm_refused,
                      plan_.dimm_ignored};
  const auto growth = shape.max_bytes - shape.boot_bytes;
  if (dice_.chance(plan_.partial))
    habits.online_at_most_bytes = part_of(growth, shape.block_bytes, dice_);
  if (dice_.chance(plan_.stuck))
    habits.virtio_mem_floor_bytes = part_of(growth, shape.granule_bytes, dice_);
  if (!plan_.virtio_mem_shrink)
    habits.virtio_mem_floor_bytes = growth;
  if (!plan_.dimm_unplug)
    habits.dimm_refused = 1, habits.dimm_ignored = 0;

  auto made = std::make_unique<vm>();
  auto& v = *made;
  v.id = spec.sandbox_id();
  v.spec_hash = hash;
  v.architecture = spec.architecture();
  if (dice_.chance(plan_.boot_never))
    v.boots = boot_fate::never;
  else if (dice_.chance(plan_.boot_panic))
    v.boots = boot_fate::panic;
  else if (dice_.chance(plan_.agent_silent))
    v.boots = boot_fate::silent;
  v.machine = std::make_shared<model_machine>(shape, habits, time_, dice_.next());
  v.machine->on_news = [this, &v](const machine_news& news) { on_news(v, news); };
  v.machine->on_guest_change = [&v] {
    if (v.guest)
      v.guest->machine_changed();
  };
  for (const auto& d : devices)
    v.machine->attach_device(d);
  vms_.emplace(v.id, std::move(made));
  start_boot(v);
  *a.mutable_observed() = observe(v.id);
  return a;
}

void world::start_boot(vm& v) {
  print(v, "Linux version 6.1.0-simulated");
  if (v.boots == boot_fate::never) {
    print(v, "random: crng init done");
    return;
  }
  v.machine->after(plan_.boot_ms.draw(dice_), [this, &v] {
    if (v.boots == boot_fate::panic) {
      print(v, "VFS: Cannot open root device");
      v.machine->panic();
    } else {
      guest_up(v);
    }
  });
}

void world::guest_up(vm& v) {
  v.machine->guest_is_up();
  if (v.boots == boot_fate::silent) {
    print(v, "caisson-agent: simulated, silent by the fault plan");
    return;
  }
  print(v, "caisson-agent: simulated");
  v.guest = std::make_unique<model_guest>(*v.machine, v.architecture);
  v.guest->on_output = [this, &v] {
    const auto it = connections_.find(v.agent_connection);
    if (it != connections_.end() && it->second.events.on_readable)
      it->second.events.on_readable();
  };
  writable(v);
}

v1::BackendAnswer world::apply(const v1::ApplyMemoryStep& m) {
  v1::BackendAnswer a;
  auto* v = running(m.sandbox_id(), a);
  if (!v)
    return a;
  auto& machine = *v->machine;
  std::string why;
  switch (m.step_case()) {
  case v1::ApplyMemoryStep::kPlugDimm:
  case v1::ApplyMemoryStep::kUnplugDimmId:
    if (machine.shape().virtio_mem)
      return failure(ec::unsupported, "sandbox " + v->id + ": its VM was made for virtio-mem and has no DIMM slots");
    if (m.has_plug_dimm()) {
      why = machine.plug_dimm(m.plug_dimm().id(), m.plug_dimm().size_bytes());
    } else {
      const auto& ds = machine.dimms();
      const bool there = std::any_of(ds.begin(), ds.end(), [&](const auto& d) { return d.id == m.unplug_dimm_id(); });
      if (there && !plan_.dimm_unplug)
        return failure(ec::unsupported, "sandbox " + v->id + ": this VMM cannot take DIMMs out");
      why = machine.unplug_dimm(m.unplug_dimm_id());
    }
    break;
  case v1::ApplyMemoryStep::kVirtioMemRequestedBytes:
    if (!machine.shape().virtio_mem)
      return failure(ec::unsupported, "sandbox " + v->id + ": its VM was made for DIMMs and has no virtio-mem device");
    if (!plan_.virtio_mem_shrink && m.virtio_mem_requested_bytes() < machine.virtio_mem_bytes())
      return failure(ec::unsupported, "sandbox " + v->id + ": this VMM cannot shrink virtio-mem");
    why = machine.request_virtio_mem(m.virtio_mem_requested_bytes());
    break;
  case v1::ApplyMemoryStep::STEP_NOT_SET:
    why = "the memory step is empty";
    break;
  }
  if (!why.empty())
    return failure(ec::backend_refused, "sandbox " + v->id + ": " + why);
  *a.mutable_observed() = observe(v->id);
  return a;
}

v1::BackendAnswer world::set_vcpus(const v1::SetVmVcpus& m) {
  v1::BackendAnswer a;
  auto* v = running(m.sandbox_id(), a);
  if (!v)
    return a;
  if (m.count() < v->machine->plugged_vcpus() && !plan_.vcpu_unplug)
    return failure(ec::unsupported, "sandbox " + v->id + ": this VMM cannot unplug vCPUs");
  if (auto why = v->machine->set_vcpus(m.count()); !why.empty())
    return failure(ec::backend_refused, "sandbox " + v->id + ": " + why);
  *a.mutable_observed() = observe(v->id);
  return a;
}

v1::BackendAnswer world::pause(const std::string& id, bool on) {
  v1::BackendAnswer a;
  auto* v = running(id, a);
  if (!v)
    return a;
  if (!plan_.can_pause)
    return failure(ec::unsupported, "sandbox " + id + ": this VMM cannot pause");
  if (on) {
    v->state = v1::VM_STATE_PAUSED;
    v->machine->pause();
  } else if (v->state == v1::VM_STATE_PAUSED) {
    v->state = v1::VM_STATE_RUNNING;
    v->machine->resume();
    writable(*v);
  }
  *a.mutable_observed() = observe(id);
  return a;
}

v1::BackendAnswer world::destroy(const std::string& id) {
  fail_verbs_of(id, "sandbox " + id + ": its VM was destroyed before this was done");
  if (auto* v = find(id)) {
    stop(*v, "destroyed");
    vms_.erase(id);
  }
  v1::BackendAnswer a;
  *a.mutable_observed() = observe(id);
  a.mutable_observed()->set_stop_reason("destroyed");
  return a;
}

// ---- what happens by itself ----

void world::on_news(vm& v, const machine_news& news) {
  v1::VmEvent e;
  e.set_sandbox_id(v.id);
  switch (news.what) {
  case machine_news::kind::device_removed:
    e.set_kind(v1::VmEvent::KIND_DEVICE_REMOVED);
    e.set_device_id(news.device_id);
    break;
  case machine_news::kind::device_refused:
    e.set_kind(v1::VmEvent::KIND_DEVICE_REFUSED);
    e.set_device_id(news.device_id);
    break;
  case machine_news::kind::memory_size:
    e.set_kind(v1::VmEvent::KIND_MEMORY_SIZE);
    e.set_size_bytes(news.size_bytes);
    break;
  case machine_news::kind::guest_stopped:
    stop(v, "guest shut down");
    e.set_kind(v1::VmEvent::KIND_GUEST_STOPPED);
    break;
  case machine_news::kind::guest_panicked:
    print(v, "Kernel panic - not syncing: simulated");
    v.guest.reset();
    e.set_kind(v1::VmEvent::KIND_GUEST_PANICKED);
    e.set_text("Kernel panic - not syncing: simulated");
    break;
  }
  event(std::move(e));
}

void world::stop(vm& v, std::string reason) {
  v.state = v1::VM_STATE_STOPPED;
  v.stop_reason = std::move(reason);
  v.machine->stop();
  close_connection(v.agent_connection, "the VM of sandbox " + v.id + " is gone");
  close_connection(v.console_connection, "the VM of sandbox " + v.id + " is gone");
  v.guest.reset();
}

void world::die(vm& v, const std::string& how) {
  stop(v, "vmm died: " + how);
  fail_verbs_of(v.id, "sandbox " + v.id + ": its simulated VMM died (" + how + ")");
  v1::VmEvent e;
  e.set_sandbox_id(v.id);
  e.set_kind(v1::VmEvent::KIND_VMM_DIED);
  e.set_text(how);
  event(std::move(e));
}

void world::print(vm& v, std::string_view line) {
  if (v.console.size() + line.size() + 1 > console_bytes_max)
    return;
  v.console.append(line).push_back('\n');
  const auto it = connections_.find(v.console_connection);
  if (it != connections_.end() && it->second.events.on_readable)
    it->second.events.on_readable();
}

void world::event(v1::VmEvent e) {
  for (auto& [id, u] : users_)
    u.user.on_event(e);
}

} // namespace caisson::backends::simulated
