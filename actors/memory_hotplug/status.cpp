#include <algorithm>
#include <bit>

#include <fmt/format.h>

#include "actors/memory_hotplug/run.hpp"
#include "messages/validate.hpp"

namespace caisson::memory_hotplug {
namespace {

constexpr std::uint64_t largest_guest_block = std::uint64_t{2} << 30; // no Linux has larger memory blocks

bool is_dimm(const state& st) {
  return st.spec.memory_method() == v1::MEMORY_METHOD_DIMM;
}

std::uint64_t granule_of(const state& st) {
  if (!is_dimm(st))
    return st.capabilities.virtio_mem() ? st.capabilities.virtio_mem_granule_bytes() : 0;
  if (!st.capabilities.dimm())
    return 0;
  // A guest brings memory online by whole blocks of its own; one that claims nonsense is not followed.
  const auto block = st.guest_block_bytes;
  const bool believed = std::has_single_bit(block) && block <= largest_guest_block;
  return std::max(st.capabilities.dimm_block_bytes(), believed ? block : 0);
}

} // namespace

v1::MemoryStatus status_of(const state& st) {
  v1::MemoryStatus m;
  m.set_boot_bytes(st.book.boot_bytes());
  m.set_plugged_bytes(st.book.plugged_bytes());
  m.set_guest_bytes(st.book.guest_bytes());
  m.set_target_bytes(st.book.target_bytes());
  m.set_max_bytes(st.book.max_bytes());
  m.set_method(st.spec.memory_method());
  m.set_slots_used(static_cast<std::uint32_t>(st.book.dimms().size()));
  if (is_dimm(st))
    m.set_slots_total(situation_of(st).slots_total);
  m.set_generation(st.book.generation());
  m.set_guest_available_bytes(st.book.guest_available_bytes());
  m.set_workload_bytes(st.workload_bytes);
  m.set_workload_max_bytes(st.workload_max_bytes);
  if (st.automatic.policy.enabled())
    *m.mutable_autosize() = st.automatic.policy;
  return m;
}

situation situation_of(const state& st, const change* for_change) {
  situation s;
  s.how = is_dimm(st) ? method::dimm : method::virtio_mem;
  s.boot_bytes = st.book.boot_bytes();
  s.plugged_bytes = st.book.plugged_bytes();
  s.max_bytes = st.book.max_bytes();
  s.granule_bytes = granule_of(st);
  s.guest_total_bytes = st.book.guest_total_bytes();
  s.guest_available_bytes = st.book.guest_available_bytes();
  s.guest_boot_total_bytes = st.book.guest_boot_total_bytes();
  s.workload_bytes = st.workload_bytes;
  if (is_dimm(st)) {
    s.slots_total = st.spec.memory_slots();
    if (st.capabilities.dimm_max_slots() > 0)
      s.slots_total = std::min(s.slots_total, st.capabilities.dimm_max_slots());
    s.dimms = st.book.dimms();
    s.can_shrink = st.capabilities.dimm_unplug();
  } else {
    s.can_shrink = st.capabilities.virtio_mem_shrink();
  }
  if (!s.can_shrink)
    s.why_no_shrink = is_dimm(st) && !st.capabilities.dimm_why_not().empty()
                          ? st.capabilities.dimm_why_not()
                          : fmt::format("{} does not unplug it", st.capabilities.backend().empty()
                                                                     ? "this VMM"
                                                                     : st.capabilities.backend());
  if (for_change)
    s.stubborn = for_change->stubborn;
  return s;
}

std::optional<refusal> missing_ability(const state& st, const plan& p) {
  if (p.steps.empty())
    return std::nullopt;
  const auto& f = st.features;
  if (is_dimm(st) && (!f.acpi_memory_hotplug() || st.guest_block_bytes == 0))
    return refusal{
        ec::unsupported,
        fmt::format("the guest's kernel would not notice a DIMM: it lacks {}{}. Use a guest kernel that has it, or "
                    "start the sandbox with memory_method = \"virtio-mem\"",
                    st.guest_block_bytes == 0 ? "memory hotplug (CONFIG_MEMORY_HOTPLUG)"
                                              : "ACPI memory hotplug (CONFIG_ACPI_HOTPLUG_MEMORY), or was started "
                                                "with acpi_no_memhotplug",
                    f.memory_probe() ? " (its probe interface, /sys/devices/system/memory/probe, takes memory that "
                                       "nobody has checked and cannot give it back, and is not used)"
                                     : "")};
  if (!is_dimm(st) && !f.virtio_mem())
    return refusal{
        ec::unsupported,
        "the guest has no virtio_mem driver: its kernel lacks CONFIG_VIRTIO_MEM, or the module virtio_mem was not "
        "loaded. Use a guest that has it, or start the sandbox with memory_method = \"dimm\""};
  if (!p.steps.front().grow && !f.memory_hotremove())
    return refusal{ec::unsupported,
                   "the guest's kernel cannot give memory back: it lacks CONFIG_MEMORY_HOTREMOVE. Use a "
                   "guest kernel that has it, or start the sandbox again with the size that is wanted"};
  return std::nullopt;
}

v1::ResizePlan to_proto(const state& st, const plan& p) {
  v1::ResizePlan out;
  out.set_memory_target_bytes(p.target.used_bytes);
  out.set_memory_asked_bytes(p.target.asked_bytes);
  for (const auto& s : p.steps) {
    auto& to = *out.add_steps();
    to.set_method(st.spec.memory_method());
    to.set_grow(s.grow);
    to.set_bytes(s.bytes);
    to.set_dimms(static_cast<std::uint32_t>(s.grow ? s.new_dimms.size() : s.leaving_dimms.size()));
    to.set_text(s.text);
  }
  for (const auto& n : p.notes)
    out.add_notes(n);
  return out;
}

void apply(self_ptr self, const v1::VmObserved& seen) {
  auto& st = self->state;
  if (seen.state() == v1::VM_STATE_STOPPED || seen.state() == v1::VM_STATE_ABSENT)
    return vm_ended(self, fmt::format("the VM has ended: {}",
                                      seen.stop_reason().empty() ? "the VMM knows it no longer" : seen.stop_reason()));
  st.paused = seen.state() == v1::VM_STATE_PAUSED;
  std::vector<dimm> dimms;
  for (const auto& d : seen.dimms())
    dimms.push_back({d.id(), d.size_bytes(), d.address()});
  st.book.vmm_says(seen.plugged_bytes(), seen.virtio_mem_requested_bytes(), std::move(dimms));
  tell(self);
}

void apply(self_ptr self, const v1::AgentFacts& facts) {
  auto& st = self->state;
  if (!facts.has_memory())
    return;
  const auto& m = facts.memory();
  st.guest_block_bytes = m.block_size_bytes();
  st.workload_bytes = std::min(m.workload_bytes(), absurd_bytes);
  st.workload_max_bytes = std::min(m.workload_max_bytes(), absurd_bytes);
  st.automatic.high_bytes = m.workload_high_bytes();
  st.book.guest_says(m.mem_total_bytes(), m.mem_available_bytes(), m.offline_blocks());
  lift_left_over(self);
  tell(self);
}

void tell(self_ptr self) {
  auto& st = self->state;
  if (!st.ready)
    return;
  auto now = status_of(st);
  auto same = [](v1::MemoryStatus a, v1::MemoryStatus b) {
    for (auto* moves_all_the_time : {&a, &b}) {
      moves_all_the_time->clear_guest_available_bytes();
      moves_all_the_time->clear_workload_bytes();
    }
    return a == b;
  };
  if (same(now, st.told))
    return;
  st.told = now;
  if (st.listener)
    self->send(st.listener, std::move(now));
}
} // namespace caisson::memory_hotplug
