#pragma once

/// Which backends the conformance body runs over, and as what: every line of the product's registry, and the lines of
/// backends that live in examples/ (a backend out of the tree is tried the same way: an entry and a kind in lines.cpp).

#include <iosfwd>
#include <string>
#include <vector>

#include "backends/backend.hpp"

namespace caisson::tests {

/// One way to be a backend.
struct kind {
  std::string name;   ///< of the test; what is before its first "__" is a filter's handle
  std::string line;   ///< of a registry
  v1::MemoryMethod method = v1::MEMORY_METHOD_VIRTIO_MEM;
  std::string faults = {};  ///< simulated: text of a fault plan; Cloud Hypervisor's double: its knobs
  std::string architecture = "x86_64";
  enum class where { usual, libvirt_daemon, double_vmm, found_vmm } runs = where::usual;
};

std::ostream& operator<<(std::ostream& out, const kind& k);

/// A line of the product's registry or of examples/; nullptr where there is none.
const backends::entry* find_line(const std::string& name);

/// Those over which the whole body runs.
std::vector<kind> all_kinds();
/// Those whose VMM loses or delays its replies: only what is about that runs over them.
std::vector<kind> lossy_kinds();

/// What a kind needs here.
struct place {
  std::string vmm_path;         ///< "" where the backend has no VMM to be told
  std::string guest_directory;  ///< kernel, initramfs; "" where no guest is booted
  std::string libvirt_uri;
  bool agent = false;           ///< the guest's agent answers
  bool reacts = false;          ///< the guest (or what stands for it) follows hotplug
  bool process = false;         ///< the VMM is a process that can be killed and stopped
  std::string missing;          ///< "" or why it cannot be tried here
};

place place_of(const kind& k);

} // namespace caisson::tests
