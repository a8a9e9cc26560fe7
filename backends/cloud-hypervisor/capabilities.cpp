#include "backends/cloud-hypervisor/capabilities.hpp"

#include "backends/cloud-hypervisor/ledger.hpp"
#include "backends/cloud-hypervisor/spec.hpp"

namespace caisson::cloud_hypervisor {
namespace {

// Measured on v53.0: 7 MiB beside the guest's memory. The rest is room for its page tables (2 MiB a GiB of guest) and the
// buffers of its devices.
constexpr std::uint64_t overhead_bytes = 96 * mib;

} // namespace

v1::Capabilities capabilities_of(const std::string& architecture, const version_facts& facts, bool firmware) {
  const bool x86 = architecture == "x86_64";
  v1::Capabilities c;
  c.set_backend("cloud-hypervisor");
  c.set_architecture(architecture);
  c.set_dimm(x86 || firmware);
  c.set_dimm_block_bytes(dimm_block_bytes);
  c.set_dimm_max_slots(dimm_slots);
  c.set_dimm_unplug(false);
  c.set_dimm_why_not(c.dimm()
                         ? "Cloud Hypervisor cannot take ACPI memory back while the VM runs; virtio-mem can"
                         : "on ARM64 Cloud Hypervisor describes its devices to a directly booted kernel without ACPI, "
                           "on which DIMMs depend: use memory_method = \"virtio-mem\", or boot through UEFI "
                           "(firmware = the path of CLOUDHV_EFI.fd) from a disk");
  c.set_virtio_mem_why_not(virtio_mem_problem(facts));
  c.set_virtio_mem(c.virtio_mem_why_not().empty());
  c.set_virtio_mem_granule_bytes(virtio_mem_granule_bytes);
  c.set_virtio_mem_shrink(c.virtio_mem());
  c.set_vcpu_plug(x86);
  c.set_vcpu_unplug(x86 && facts.lets_vcpus_go);
  if (x86 && !facts.lets_vcpus_go)
    c.set_vcpu_unplug_why_not(std::string{"Cloud Hypervisor "} + std::string{facts.name} +
                              " does not let the guest eject a vCPU; one that the guest has taken offline stays plugged "
                              "and is used again at the next growth");
  if (!x86) {
    c.set_vcpu_plug_why_not("Cloud Hypervisor cannot plug vCPUs on ARM64; start the sandbox with those that it needs");
    c.set_vcpu_unplug_why_not(
        "Cloud Hypervisor cannot unplug vCPUs on ARM64; one that the guest has taken offline stays "
        "plugged and is used again at the next growth");
  }
  c.set_max_vcpus(most_vcpus);
  c.set_pause(true);
  c.set_disks(true);
  c.set_nets(true);
  c.set_shares(true);
  c.set_free_page_reporting(true);
  c.set_host_overhead_bytes(overhead_bytes);
  return c;
}

// Up to v51 vm.info does not tell what of virtio-mem the guest has taken, and a number that nobody has read back is not
// told.
std::string virtio_mem_problem(const version_facts& facts) {
  if (facts.actual_size_counts_virtio_mem)
    return {};
  return "Cloud Hypervisor up to v51 does not tell how much of its virtio-mem the guest has taken, v52 "
         "and later do: use a newer one, or memory_method = \"dimm\"";
}

std::string title_of(const std::string& version) {
  return version.empty() ? "Cloud Hypervisor" : "Cloud Hypervisor v" + version;
}

} // namespace caisson::cloud_hypervisor
