#pragma once

/// What Cloud Hypervisor can do, by architecture and version: data, each "no" with its reason. Pure.

#include <string>

#include "backends/cloud-hypervisor/requests.hpp"
#include "messages/backend.pb.h"

namespace caisson::cloud_hypervisor {

/// `architecture`: x86_64 or aarch64. `firmware`: the VM is to boot through UEFI.
v1::Capabilities capabilities_of(const std::string& architecture, const version_facts& facts, bool firmware);

/// Why memory of this version's VMs does not grow by virtio-mem; "" where it does.
std::string virtio_mem_problem(const version_facts& facts);

/// "Cloud Hypervisor v53.0.0".
std::string title_of(const std::string& version);

} // namespace caisson::cloud_hypervisor
