// THE TABLE of hypervisor backends, in the order in which they are listed. A new one is a folder and a line here.

#include <array>

#include "backends/backend.hpp"
#include "backends/cloud-hypervisor/provider.hpp"
#include "backends/host/provider.hpp"
#include "backends/simulated/provider.hpp"

namespace caisson::backends {
namespace {

std::unique_ptr<provider> make_qemu(const environment& e) {
  return std::make_unique<host::provider>(e, host::settings_for("qemu", e));
}

std::unique_ptr<provider> make_cloud_hypervisor(const environment& e) {
  return cloud_hypervisor::make_provider(e);
}

std::unique_ptr<provider> make_simulated(const environment& e) {
  return simulated::make_simulated(e);
}

constexpr std::array<std::string_view, 2> qemu_architectures{"x86_64", "aarch64"};

constexpr std::array<std::string_view, 2> cloud_hypervisor_architectures{"x86_64", "aarch64"};

constexpr std::array<entry, 3> table{{
    {"qemu", "QEMU through libvirt, in a process of its own", qemu_architectures, &make_qemu},
    {"cloud-hypervisor", "Cloud Hypervisor by its REST API, under the host's KVM", cloud_hypervisor_architectures,
     &make_cloud_hypervisor},
    {"simulated", "models of VMs in the engine's own process, for trying out and testing", {}, &make_simulated},
}};

} // namespace

std::span<const entry> registry() {
  return table;
}

const entry* find(std::string_view name) {
  for (const auto& line : table)
    if (line.name == name)
      return &line;
  return nullptr;
}

} // namespace caisson::backends
