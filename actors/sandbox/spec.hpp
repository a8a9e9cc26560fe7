#pragma once

/// From a resolved configuration to the VM's specification. Pure.

#include <chrono>
#include <string>

#include <caf/error.hpp>

#include "messages/error.hpp"
#include "messages/sandbox.pb.h"

namespace caisson::sandbox {

/// Caisson's own guest for one architecture, as it lies on the host.
struct guest_assets {
  std::string kernel_path;  ///< what is booted without firmware (x86: the ELF vmlinux, PVH)
  std::string bzimage_path; ///< what firmware boots
  std::string initrd_path;
  std::string command_line; ///< the image's own needs, from its manifest
};

struct places {
  std::string run_directory; ///< of the engine; the sandbox's own is below it
};

/// Fills record.spec from record.request and record.config (all but `accelerator` and an open memory method, which the
/// backend's capabilities decide: settle()). The request wins over the configuration.
caf::error build_spec(v1::SandboxRecord& record, const guest_assets& guest, const places& where);

/// Decides what the backend's capabilities decide: method and accelerator. Refuses what cannot work, with the mend.
caf::error settle(v1::SandboxRecord& record, const v1::Capabilities& capabilities);

/// What is asked of the backend before settle().
v1::DescribeBackend describe_request(const v1::VmSpec& spec, std::chrono::milliseconds deadline);

} // namespace caisson::sandbox
