#include "actors/sandbox/spec.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "messages/validate.hpp"

namespace caisson::sandbox {
namespace {

constexpr std::uint64_t mib = 1024 * 1024;
// Below it Debian's kernel with Caisson's initramfs does not come up dependably.
constexpr std::uint64_t least_boot_bytes = 128 * mib;

} // namespace

caf::error build_spec(v1::SandboxRecord& record, const guest_assets& guest, const places& where) {
  const auto& request = record.request();
  const auto& config = record.config().sandbox();
  auto& spec = *record.mutable_spec();
  spec.set_sandbox_id(record.id());
  spec.set_name(record.name());
  spec.set_architecture(config.architecture());
  spec.set_machine_type(config.machine_type());
  spec.set_vmm_path(config.vmm_path());
  spec.set_accelerator(config.accelerator().empty() ? "auto" : config.accelerator());
  spec.set_boot_vcpus(request.vcpus() > 0 ? request.vcpus() : config.boot_vcpus());
  spec.set_max_vcpus(config.max_vcpus());
  spec.set_boot_bytes(request.memory_bytes() > 0 ? request.memory_bytes() : config.boot_memory_bytes());
  spec.set_max_bytes(config.max_memory_bytes());
  spec.set_memory_slots(config.memory_slots());
  spec.set_memory_method(request.memory_method() != v1::MEMORY_METHOD_UNSPECIFIED ? request.memory_method()
                                                                                  : config.memory_method());
  spec.set_free_root_ports(config.root_ports());
  spec.set_bridges(config.bridges());
  spec.set_firmware_path(config.firmware_path());
  spec.set_firmware_variables_path(config.firmware_volume_path());
  spec.set_cpu_features(config.cpu_features());
  spec.set_hugepages(config.hugepages());
  spec.set_preallocate(config.preallocate_memory());
  spec.set_entropy_source(config.entropy_source());
  spec.set_libvirt_uri(config.libvirt_uri());
  spec.set_free_page_reporting(config.free_page_reporting());
  spec.set_run_directory(where.run_directory + "/s/" + record.id());

  if (config.guest() == v1::GUEST_SOURCE_FILE) {
    spec.set_kernel_path(config.kernel_path());
    spec.set_initrd_path(config.initrd_path());
    spec.set_kernel_command_line(config.kernel_params());
  } else {
    spec.set_kernel_path(config.firmware_path().empty() ? guest.kernel_path : guest.bzimage_path);
    spec.set_initrd_path(guest.initrd_path);
    spec.set_kernel_command_line(guest.command_line +
                                 (config.kernel_params().empty() ? "" : " " + config.kernel_params()));
  }

  // A program may ask at once for more than the guest has now: it comes as it is touched.
  if (config.autosize())
    spec.set_kernel_command_line(spec.kernel_command_line() + " sysctl.vm.overcommit_memory=1");

  if (spec.boot_bytes() % mib != 0)
    return make_error(ec::out_of_range, fmt::format("memory at boot: {} bytes is no multiple of 1 MiB; ask for {} MiB",
                                                    spec.boot_bytes(), (spec.boot_bytes() + mib - 1) / mib));
  if (spec.boot_bytes() < least_boot_bytes)
    return make_error(
        ec::out_of_range,
        fmt::format("memory at boot: {} is below the {} that the guest needs to start; raise default_memory "
                    "or --memory",
                    show_bytes(spec.boot_bytes()), show_bytes(least_boot_bytes)));
  if (spec.boot_bytes() > spec.max_bytes())
    return make_error(
        ec::out_of_range,
        fmt::format("memory at boot: {} is above the maximum of {} (default_maxmemory); lower it, or raise "
                    "default_maxmemory",
                    show_bytes(spec.boot_bytes()), show_bytes(spec.max_bytes())));
  if (spec.boot_vcpus() == 0 || spec.boot_vcpus() > spec.max_vcpus())
    return make_error(ec::out_of_range, fmt::format("cpus at boot: {} is not between 1 and the maximum of {} "
                                                    "(default_maxvcpus); lower it, or raise default_maxvcpus",
                                                    spec.boot_vcpus(), spec.max_vcpus()));
  return {};
}

caf::error settle(v1::SandboxRecord& record, const v1::Capabilities& can) {
  auto& spec = *record.mutable_spec();
  if (spec.memory_method() == v1::MEMORY_METHOD_UNSPECIFIED)
    spec.set_memory_method(can.virtio_mem() ? v1::MEMORY_METHOD_VIRTIO_MEM : v1::MEMORY_METHOD_DIMM);
  bool dimm = spec.memory_method() == v1::MEMORY_METHOD_DIMM;
  // A sandbox that is sized once at boot needs no method at all.
  bool wants_hotplug = spec.max_bytes() > spec.boot_bytes() && !record.config().sandbox().static_sizing();
  if (wants_hotplug && dimm && !can.dimm())
    return make_error(ec::unsupported, fmt::format("memory hotplug by DIMM does not work with {} on {}: {}",
                                                   can.backend(), spec.architecture(), can.dimm_why_not()));
  if (wants_hotplug && !dimm && !can.virtio_mem())
    return make_error(ec::unsupported, fmt::format("memory hotplug by virtio-mem does not work with {} on {}: {}",
                                                   can.backend(), spec.architecture(), can.virtio_mem_why_not()));
  if (can.max_vcpus() > 0 && spec.boot_vcpus() > can.max_vcpus())
    return make_error(ec::out_of_range,
                      fmt::format("cpus at boot: {} is above the {} that {} takes on {}", spec.boot_vcpus(),
                                  can.max_vcpus(), can.backend(), spec.architecture()));
  auto adapt = [&](std::string key, std::string asked, std::string used, std::string why) {
    auto* a = record.mutable_config()->add_adaptations();
    a->set_key(std::move(key));
    a->set_asked(std::move(asked));
    a->set_used(std::move(used));
    a->set_why(std::move(why));
    a->set_where(can.backend());
  };
  if (can.max_vcpus() > 0 && spec.max_vcpus() > can.max_vcpus()) {
    adapt("default_maxvcpus", fmt::to_string(spec.max_vcpus()), fmt::to_string(can.max_vcpus()),
          "the most that this VMM takes on this architecture");
    spec.set_max_vcpus(can.max_vcpus());
  }
  if (!can.vcpu_plug() && spec.max_vcpus() > spec.boot_vcpus()) {
    adapt("default_maxvcpus", fmt::to_string(spec.max_vcpus()), fmt::to_string(spec.boot_vcpus()),
          "no vCPU can be added while the VM runs" +
              (can.vcpu_plug_why_not().empty() ? std::string{} : ": " + can.vcpu_plug_why_not()));
    spec.set_max_vcpus(spec.boot_vcpus());
  }
  if (dimm && can.dimm_max_slots() > 0 && spec.memory_slots() > can.dimm_max_slots()) {
    adapt("memory_slots", fmt::to_string(spec.memory_slots()), fmt::to_string(can.dimm_max_slots()),
          "the VMM has no more DIMM slots");
    spec.set_memory_slots(can.dimm_max_slots());
  }
  const auto& config = record.config().sandbox();
  if (config.autosize() && spec.max_bytes() <= spec.boot_bytes())
    adapt("runtime.caisson.memory_autosize", "true", "false",
          "the sandbox can have no more memory than at boot (" + show_bytes(spec.boot_bytes()) + ")");
  else if (config.autosize() && config.autosize_ceiling_bytes() > 0 &&
           config.autosize_ceiling_bytes() < spec.boot_bytes())
    adapt("runtime.caisson.memory_autosize_ceiling", fmt::to_string(config.autosize_ceiling_bytes() / mib),
          fmt::to_string(spec.boot_bytes() / mib), "a sandbox never has less than at boot");
  if (spec.free_page_reporting() && !can.free_page_reporting())
    adapt("runtime.caisson.free_page_reporting", "true", "false", "this VMM has none");
  spec.set_free_page_reporting(spec.free_page_reporting() && can.free_page_reporting());
  spec.set_accelerator(can.accelerator());
  spec.set_modelled_memory(can.modelled_memory());
  record.set_accelerator_reason(can.accelerator_reason());
  return {};
}

v1::DescribeBackend describe_request(const v1::VmSpec& spec, std::chrono::milliseconds deadline) {
  v1::DescribeBackend ask;
  ask.set_architecture(spec.architecture());
  ask.set_accelerator(spec.accelerator());
  ask.set_vmm_path(spec.vmm_path());
  ask.set_firmware_path(spec.firmware_path());
  ask.set_firmware_variables_path(spec.firmware_variables_path());
  ask.set_machine_type(spec.machine_type());
  ask.set_kernel_path(spec.kernel_path());
  ask.set_initrd_path(spec.initrd_path());
  ask.set_libvirt_uri(spec.libvirt_uri());
  ask.set_deadline_ms(static_cast<std::uint32_t>(deadline.count()));
  return ask;
}

} // namespace caisson::sandbox
