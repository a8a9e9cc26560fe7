/// vCPUs plugged and unplugged.

#include <algorithm>

#include "backends/qemu/driver.hpp"
#include "backends/qemu/monitor_reading.hpp"

namespace caisson::qemu {
namespace {

using namespace std::chrono_literals;

constexpr auto catch_up_look_again = 10ms;

std::string vcpus(std::size_t n) {
  return std::to_string(n) + (n == 1 ? " vCPU" : " vCPUs");
}

} // namespace

v1::VmObserved driver::set_vcpus(const vm_ptr& vm, const call_ptr& call, std::uint32_t count) {
  auto domain = living_domain(vm);
  auto now = read_back(vm, domain.get(), read_back_budget(*call));
  if (!now.stale_reason().empty())
    throw failure("backend_refused", "how many vCPUs there are cannot be read: " + now.stale_reason());
  if (count == 0 || count > now.max_vcpus())
    throw failure("out_of_range", vcpus(count) + ": expected 1 to " + std::to_string(now.max_vcpus()) +
                                      ", the most that the VM was made with");
  if (count == now.plugged_vcpus())
    return now;
  if (count > now.plugged_vcpus())
    plug_vcpus(vm, call, domain.get(), now.plugged_vcpus(), count);
  else if (now.accelerator() != "kvm")
    throw failure("unsupported", vcpus(now.plugged_vcpus()) +
                                     " are plugged, and QEMU under TCG never finishes unplugging one (capability "
                                     "vcpu_unplug); take vCPUs offline in the guest instead");
  else
    ask_for_vcpus(domain.get(), now.plugged_vcpus(), count);
  auto spent = now.vmm_call_us();
  now = read_back(vm, domain.get(), read_back_budget(*call));
  now.set_vmm_call_us(now.vmm_call_us() + spent);
  return now;
}

void driver::plug_vcpus(const vm_ptr& vm, const call_ptr& call, virDomainPtr domain, std::uint32_t plugged,
                        std::uint32_t count) {
  // libvirt hears of a vCPU that has left a moment after QEMU has forgotten it, and would plug too few until then.
  auto known = [&] { return in_library([&] { return virDomainGetVcpusFlags(domain, VIR_DOMAIN_AFFECT_LIVE); }); };
  for (int n = known(); n > static_cast<int>(plugged) && call->left() > catch_up_look_again; n = known()) {
    std::unique_lock lock{vm->mutex};
    if (vm->changed.wait_for(lock, catch_up_look_again, [&] { return vm->destroying > 0; }))
      throw failure("vmm_died", "the VM is being destroyed");
  }
  must(domain, in_library([&] { return virDomainSetVcpusFlags(domain, count, VIR_DOMAIN_AFFECT_LIVE); }),
       "vCPUs were not set to " + std::to_string(count));
}

// Not by virDomainSetVcpusFlags, which waits for the guest, five seconds for each. Asked like this libvirt takes note when
// QEMU tells that a vCPU has left, and asking twice is harmless.
void driver::ask_for_vcpus(virDomainPtr domain, std::uint32_t plugged, std::uint32_t count) {
  auto look = [&] { return read_removable_vcpus(ask_qemu(domain, R"({"execute":"query-hotpluggable-cpus"})")); };
  auto removable = look();
  if (removable.size() < plugged - count)
    throw failure("unsupported", "of " + vcpus(plugged) + " that are plugged " + std::to_string(removable.size()) +
                                     " can be unplugged, the others belong to the machine; expected at least " +
                                     std::to_string(plugged - removable.size()) + " to stay");
  removable.resize(plugged - count);
  for (const auto& name : removable) {
    try {
      read_taken(ask_qemu(domain, R"({"execute":"device_del","arguments":{"id":")" + name + R"("}})"), "device_del");
    } catch (const failure&) {
      auto there = look();
      if (std::find(there.begin(), there.end(), name) != there.end())
        throw;  // else it has left meanwhile
    }
  }
}

} // namespace caisson::qemu
