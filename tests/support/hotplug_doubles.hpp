#pragma once

/// Doubles of a backend and of a guest's agent for tests of the hotplug actors: one small model VM that both look at,
/// with faults that a test sets. Everything happens in the virtual time of deterministic_system.

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "messages/ports.hpp"
#include "tests/support/deterministic_system.hpp"

namespace caisson::tests {

inline constexpr std::uint64_t mib = std::uint64_t{1} << 20;
inline constexpr std::uint64_t gib = std::uint64_t{1} << 30;

/// What happens to the next verb (or, for `lose_look`, to the next InspectVm).
enum class fault {
  none,
  refuse,       ///< backend_refused, not done
  lose_reply,   ///< done, never answered
  lose_request, ///< neither done nor answered
  unknown_done, ///< done, answered outcome_unknown
  unknown_not,  ///< not done, answered outcome_unknown
  die           ///< the VMM dies of it
};

struct model_vm {
  explicit model_vm(deterministic_system& s) : sys(s) {}
  deterministic_system& sys;

  // the VMM
  v1::MemoryMethod method = v1::MEMORY_METHOD_VIRTIO_MEM;
  std::uint64_t boot = 512 * mib;
  std::uint64_t max = 8 * gib;
  std::uint32_t slots = 10;
  std::vector<v1::Dimm> dimms;
  std::uint64_t virtio_requested = 0, virtio_plugged = 0;
  std::uint32_t vcpus = 1, max_vcpus = 4;
  v1::VmState vm_state = v1::VM_STATE_RUNNING;
  bool vcpu_unplug = true;
  int vcpus_leave_after_looks = 0; ///< the guest lets go only when it has been looked so often
  bool tells_addresses = false; ///< of DIMMs
  std::uint64_t next_address = 4 * gib;

  // the guest
  std::uint64_t boot_total = 450 * mib; ///< MemTotal at boot
  std::uint64_t used = 60 * mib;
  std::uint64_t online = 0;               ///< of what is plugged
  std::uint64_t online_most = UINT64_MAX; ///< it brings no more than this online
  std::uint64_t virtio_least = 0;         ///< it gives back down to this
  std::uint64_t virtio_most = UINT64_MAX;
  std::map<std::string, int> refuses; ///< so many times it refuses to give this DIMM back
  bool ignores_removal = false;       ///< neither gives back nor refuses
  std::uint32_t cpus_online = 1;
  std::uint32_t cpus_most = UINT32_MAX;
  std::uint32_t possible = 8;
  std::chrono::milliseconds takes{100}; ///< to follow
  v1::GuestFeatures features;
  std::uint64_t workload = 0;         ///< what the workload holds for good
  std::uint64_t workload_cache = 0;   ///< and what can be reclaimed of it
  std::uint64_t workload_high = 0, workload_max = 0;
  std::uint32_t quota_milli = 0;
  bool ignores_quota = false;
  bool old_agent = false;                  ///< it does not know OfflineMemory
  std::map<std::string, int> keeps_online; ///< so many times a block of this DIMM does not go offline
  std::set<std::string> offline;           ///< DIMMs that the agent has taken offline

  // the scene
  std::deque<fault> faults; ///< one a verb, then none
  int silent_looks = 0;     ///< so many InspectVm are not answered
  bool agent_silent = false;
  bool lose_events = false;
  std::chrono::milliseconds event_delay{0};
  std::vector<std::string> verbs; ///< as they came
  std::vector<std::string> agent_asked;
  std::function<void(v1::VmEvent)> emit;
  std::function<void()> poke_agent;
  std::function<void()> before_verb; ///< a test's own hook

  void looked_at() {
    if (vcpus_leaving_to > 0 && --vcpus_leave_after_looks == 0)
      vcpus = std::exchange(vcpus_leaving_to, 0);
  }
  std::uint32_t vcpus_leaving_to = 0;

  std::uint64_t plugged() const {
    auto sum = virtio_plugged;
    for (const auto& d : dimms)
      sum += d.size_bytes();
    return sum;
  }

  v1::VmObserved observed() const {
    v1::VmObserved o;
    o.set_state(vm_state);
    o.set_boot_bytes(boot);
    o.set_plugged_bytes(plugged());
    for (const auto& d : dimms)
      *o.add_dimms() = d;
    o.set_virtio_mem_requested_bytes(virtio_requested);
    o.set_plugged_vcpus(vcpus);
    o.set_max_vcpus(max_vcpus);
    return o;
  }

  v1::AgentFacts facts() const {
    v1::AgentFacts f;
    auto& m = *f.mutable_memory();
    m.set_mem_total_bytes(boot_total + online);
    const auto taken = used + workload + online / 64; // the memory map of what is online
    m.set_mem_available_bytes(boot_total + online - std::min(taken, boot_total + online));
    m.set_boot_mem_total_bytes(boot_total);
    m.set_block_size_bytes(128 * mib);
    if (features.workload_cgroup()) {
      m.set_workload_bytes(workload + workload_cache);
      m.set_workload_high_bytes(workload_high);
      m.set_workload_max_bytes(workload_max);
      f.set_cpu_quota_milli(quota_milli);
    }
    m.set_offline_blocks(static_cast<std::uint32_t>((plugged() - std::min(online, plugged())) / (128 * mib)));
    f.mutable_cpus()->set_online(cpus_online);
    f.mutable_cpus()->set_present(vcpus);
    f.mutable_cpus()->set_possible(possible);
    return f;
  }

  v1::HotplugReady ready() {
    v1::HotplugReady r;
    auto& s = *r.mutable_spec();
    s.set_sandbox_id("s1");
    s.set_boot_bytes(boot);
    s.set_max_bytes(max);
    s.set_memory_slots(slots);
    s.set_memory_method(method);
    s.set_boot_vcpus(vcpus);
    s.set_max_vcpus(max_vcpus);
    *r.mutable_observed() = observed();
    auto& c = *r.mutable_capabilities();
    c.set_backend("double");
    c.set_dimm(true);
    c.set_virtio_mem(true);
    c.set_dimm_block_bytes(128 * mib);
    c.set_dimm_max_slots(256);
    c.set_dimm_unplug(true);
    c.set_virtio_mem_granule_bytes(2 * mib);
    c.set_virtio_mem_shrink(true);
    c.set_vcpu_plug(true);
    c.set_vcpu_unplug(vcpu_unplug);
    c.set_vcpu_unplug_why_not(vcpu_unplug ? "" : "this VMM never confirms it");
    c.set_max_vcpus(8);
    *r.mutable_facts() = facts();
    features.set_acpi_memory_hotplug(true);
    features.set_memory_hotremove(true);
    features.set_virtio_mem(true);
    features.set_cpu_hotplug(true);
    *r.mutable_features() = features;
    return r;
  }

  void event(v1::VmEvent::Kind kind, const std::string& device = {}, std::uint64_t size = 0,
             const std::string& text = {}) {
    v1::VmEvent e;
    e.set_sandbox_id("s1");
    e.set_kind(kind);
    e.set_device_id(device);
    e.set_size_bytes(size);
    e.set_text(text);
    if (lose_events && kind != v1::VmEvent::KIND_VMM_DIED)
      return;
    if (event_delay.count() > 0)
      sys.after(event_delay, [this, e] { emit(e); });
    else
      emit(e);
  }

  void die(const std::string& how = "killed by signal 9") {
    vm_state = v1::VM_STATE_STOPPED;
    event(v1::VmEvent::KIND_VMM_DIED, "", 0, how);
  }

  /// The guest brings online what it can of what is plugged, and its agent looks at who waits.
  void guest_takes() {
    std::erase_if(offline, [&](const auto& id) {
      return std::ranges::none_of(dimms, [&](const v1::Dimm& d) { return d.id() == id; });
    });
    auto may = plugged();
    for (const auto& d : dimms)
      may -= offline.contains(d.id()) ? d.size_bytes() : 0;
    online = std::min(may, online_most);
    if (poke_agent)
      poke_agent();
  }

  void settle_virtio() {
    const auto to = virtio_requested > virtio_plugged
                        ? std::max(virtio_plugged, std::min(virtio_requested, virtio_most))
                        : std::min(virtio_plugged, std::max(virtio_requested, virtio_least));
    if (to == virtio_plugged)
      return;
    virtio_plugged = to;
    guest_takes();
    event(v1::VmEvent::KIND_MEMORY_SIZE, "", virtio_plugged);
  }

  void remove_dimm(const std::string& id) {
    if (auto& left = refuses[id]; left > 0) {
      --left;
      return event(v1::VmEvent::KIND_DEVICE_REFUSED, id, 0, "device or resource busy");
    }
    std::erase_if(dimms, [&](const v1::Dimm& d) { return d.id() == id; });
    guest_takes();
    event(v1::VmEvent::KIND_DEVICE_REMOVED, id);
  }

  void perform(const v1::ApplyMemoryStep& m) {
    switch (m.step_case()) {
    case v1::ApplyMemoryStep::kPlugDimm:
      if (std::ranges::none_of(dimms, [&](const v1::Dimm& d) { return d.id() == m.plug_dimm().id(); })) {
        dimms.push_back(m.plug_dimm());
        if (tells_addresses)
          dimms.back().set_address(next_address);
        next_address += m.plug_dimm().size_bytes();
      }
      sys.after(takes, [this] { guest_takes(); });
      break;
    case v1::ApplyMemoryStep::kUnplugDimmId:
      if (!ignores_removal)
        sys.after(takes, [this, id = m.unplug_dimm_id()] { remove_dimm(id); });
      break;
    case v1::ApplyMemoryStep::kVirtioMemRequestedBytes:
      virtio_requested = m.virtio_mem_requested_bytes();
      sys.after(takes, [this] { settle_virtio(); });
      break;
    default:
      break;
    }
  }

  void perform(const v1::SetVmVcpus& m) {
    if (m.count() > vcpus)
      vcpus = std::min(m.count(), max_vcpus);
    else if (vcpu_unplug && vcpus_leave_after_looks > 0)
      vcpus_leaving_to = std::max(m.count(), cpus_online);
    else if (vcpu_unplug)
      vcpus = std::max(m.count(), cpus_online);
  }

  void perform(const v1::SetWorkloadLimits& m) {
    if (m.has_high_bytes()) {
      agent_asked.push_back("high " + std::to_string(m.high_bytes() / mib));
      workload_high = m.high_bytes();
    }
    if (m.has_reclaim_to_bytes())
      workload_cache = std::min(workload_cache, m.reclaim_to_bytes() - std::min(workload, m.reclaim_to_bytes()));
    if (m.has_max_bytes()) {
      agent_asked.push_back("max " + std::to_string(m.max_bytes() / mib));
      if (m.max_bytes() == 0 || workload <= m.max_bytes())
        workload_max = m.max_bytes();
    }
    if (m.has_cpu_milli()) {
      agent_asked.push_back("quota " + std::to_string(m.cpu_milli()));
      if (!ignores_quota)
        quota_milli = m.cpu_milli();
    }
  }

  v1::AgentReply perform(const v1::OfflineMemory& m) {
    v1::AgentReply r;
    const auto d = std::ranges::find_if(dimms, [&](const v1::Dimm& one) { return one.address() == m.address(); });
    if (old_agent || d == dimms.end()) {
      r.mutable_failure()->set_guest_errno(old_agent ? 38 : 22);
      r.mutable_failure()->set_text("this agent doesn't know the request");
      return r;
    }
    agent_asked.push_back("offline " + d->id());
    const bool stays = keeps_online[d->id()] > 0;
    if (stays) {
      --keeps_online[d->id()];
      r.mutable_blocks()->set_why("memory41 at 0x148000000 (zone Movable): Device or resource busy");
    } else {
      offline.insert(d->id());
      guest_takes();
    }
    for (std::uint64_t at = 0; at < m.size_bytes(); at += 128 * mib) {
      auto& b = *r.mutable_blocks()->add_blocks();
      b.set_address(m.address() + at);
      b.set_size_bytes(128 * mib);
      b.set_state(stays ? "online" : "offline");
      b.set_zone(stays ? "Movable" : "");
    }
    return r;
  }

  static std::string text_of(const v1::ApplyMemoryStep& m) {
    switch (m.step_case()) {
    case v1::ApplyMemoryStep::kPlugDimm:
      return "plug " + m.plug_dimm().id() + " " + std::to_string(m.plug_dimm().size_bytes() / mib);
    case v1::ApplyMemoryStep::kUnplugDimmId:
      return "unplug " + m.unplug_dimm_id();
    default:
      return "virtio " + std::to_string(m.virtio_mem_requested_bytes() / mib);
    }
  }
  static std::string text_of(const v1::SetVmVcpus& m) { return "vcpus " + std::to_string(m.count()); }
};

using model_ptr = std::shared_ptr<model_vm>;

struct double_backend_state {
  std::vector<caf::typed_response_promise<v1::VmObserved>> never;
};

inline backend_actor::behavior_type double_backend(backend_actor::stateful_pointer<double_backend_state> self,
                                                   model_ptr vm) {
  auto verb = [self, vm](const auto& m) -> caf::result<v1::VmObserved> {
    vm->verbs.push_back(model_vm::text_of(m));
    if (vm->before_verb)
      vm->before_verb();
    auto f = fault::none;
    if (!vm->faults.empty()) {
      f = vm->faults.front();
      vm->faults.pop_front();
    }
    if (vm->vm_state == v1::VM_STATE_STOPPED)
      return make_error(ec::vmm_died, "the VMM is gone");
    switch (f) {
    case fault::refuse:
      return make_error(ec::backend_refused, "the VMM says no");
    case fault::unknown_not:
      return make_error(ec::outcome_unknown, "no answer from the VMM in its time");
    case fault::lose_request:
      self->state.never.push_back(self->make_response_promise<v1::VmObserved>());
      return self->state.never.back();
    case fault::die:
      vm->die();
      return make_error(ec::vmm_died, "the VMM is gone");
    default:
      break;
    }
    vm->perform(m);
    if (f == fault::unknown_done)
      return make_error(ec::outcome_unknown, "no answer from the VMM in its time");
    if (f == fault::lose_reply) {
      self->state.never.push_back(self->make_response_promise<v1::VmObserved>());
      return self->state.never.back();
    }
    return vm->observed();
  };
  auto observed = [vm] { return vm->observed(); };
  return {
      [](const v1::DescribeBackend&) { return v1::Capabilities{}; },
      [observed](const v1::CreateVm&) { return observed(); },
      [self, vm](const v1::InspectVm&) -> caf::result<v1::VmObserved> {
        if (vm->silent_looks > 0) {
          --vm->silent_looks;
          self->state.never.push_back(self->make_response_promise<v1::VmObserved>());
          return self->state.never.back();
        }
        vm->looked_at();
        return vm->observed();
      },
      [verb](const v1::ApplyMemoryStep& m) { return verb(m); },
      [verb](const v1::SetVmVcpus& m) { return verb(m); },
      [observed](const v1::PauseVm&) { return observed(); },
      [observed](const v1::ResumeVm&) { return observed(); },
      [observed](const v1::DestroyVm&) { return observed(); },
      [](const v1::ListVms&) { return v1::VmList{}; },
      [observed](const v1::AttachDevice&) { return observed(); },
      [observed](const v1::DetachDevice&) { return observed(); },
  };
}

struct double_agent_state {
  struct waiter {
    caf::typed_response_promise<v1::AgentReply> promise;
    v1::AgentRequest asked;
  };
  std::uint64_t next = 1;
  std::map<std::uint64_t, waiter> waiting;
};

inline guest_agent_actor::behavior_type double_agent(guest_agent_actor::stateful_pointer<double_agent_state> self,
                                                     model_ptr vm) {
  auto reply = [vm] {
    v1::AgentReply r;
    *r.mutable_facts() = vm->facts();
    return r;
  };
  auto content = [vm](const v1::AgentRequest& m) {
    if (!m.has_await_memory())
      return vm->cpus_online == m.set_online_cpus().online();
    const auto total = vm->boot_total + vm->online;
    const auto& a = m.await_memory();
    return total >= a.mem_total_at_least_bytes() &&
           (a.mem_total_at_most_bytes() == 0 || total <= a.mem_total_at_most_bytes());
  };
  return {
      [](const v1::ConnectAgent&) { return v1::AgentHello{}; },
      [self, vm, reply, content](const v1::AgentRequest& m) -> caf::result<v1::AgentReply> {
        auto& st = self->state;
        auto promise = self->make_response_promise<v1::AgentReply>();
        if (m.has_await_memory()) {
          vm->agent_asked.push_back("await");
          if (!vm->offline.empty()) {
            vm->offline.clear();
            vm->guest_takes();
          }
        }
        if (!vm->agent_silent && m.has_set_workload_limits()) {
          vm->perform(m.set_workload_limits());
          promise.deliver(reply());
          return promise;
        }
        if (!vm->agent_silent && m.has_offline_memory()) {
          promise.deliver(vm->perform(m.offline_memory()));
          return promise;
        }
        if (m.has_set_online_cpus()) {
          const auto n = m.set_online_cpus().online();
          vm->agent_asked.push_back("cpus " + std::to_string(n));
          vm->cpus_online = n > vm->cpus_online ? std::min({n, vm->vcpus, std::max(vm->cpus_online, vm->cpus_most)})
                                                : std::max<std::uint32_t>(n, 1);
        }
        if (vm->agent_silent) {
          st.waiting.emplace(st.next++, double_agent_state::waiter{promise, {}});
          return promise;
        }
        if (m.has_read_facts() || content(m)) {
          promise.deliver(reply());
          return promise;
        }
        const auto wait = m.has_await_memory() ? m.await_memory().wait_ms() : m.set_online_cpus().wait_ms();
        const auto id = st.next++;
        st.waiting.emplace(id, double_agent_state::waiter{promise, m});
        self->delayed_send(self, std::chrono::milliseconds{wait}, tick_atom::value, id);
        return promise;
      },
      [](link_atom) { return guest_link_ptr{}; },
      [self, reply, content, vm](std::uint64_t, const v1::GuestControl&) {
        auto& waiting = self->state.waiting;
        for (auto w = waiting.begin(); w != waiting.end() && !vm->agent_silent;) {
          const bool now = content(w->second.asked);
          if (now)
            w->second.promise.deliver(reply());
          w = now ? waiting.erase(w) : std::next(w);
        }
      },
      [](link_atom, std::uint64_t, const std::string&) {},
      [self, reply, vm](tick_atom, std::uint64_t id) {
        auto at = self->state.waiting.find(id);
        if (at == self->state.waiting.end() || vm->agent_silent)
          return;
        at->second.promise.deliver(reply());
        self->state.waiting.erase(at);
      },
  };
}

} // namespace caisson::tests
