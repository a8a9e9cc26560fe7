#pragma once

/// Which accelerator a VM would run under here, and why. /dev/kvm that opens is no proof: KVM counts only after the guest
/// kernel itself has reached its first console line under it. CPU flags are not looked at.

#include <cstdint>
#include <string>

namespace caisson::qemu {

struct accelerator_question {
  std::string asked;  ///< "auto", "kvm", "tcg"
  std::string architecture;
  std::string vmm_path;
  std::string kernel_path;
  std::string initrd_path;
};

struct accelerator_choice {
  std::string accelerator;  ///< "kvm", "tcg"
  std::string reason;
};

/// May take 5 s, the first time on a host for this VMM and kernel; the result is kept in the cache directory under a key
/// of host kernel, VMM, guest kernel and /dev/kvm's numbers. Throws failure (host_missing, host_denied, invalid_argument)
/// where "kvm" is asked and does not serve.
accelerator_choice choose_accelerator(const accelerator_question& question, const std::string& cache_directory);

/// Name of the Debian package that brings QEMU for this architecture.
std::string qemu_package(const std::string& architecture);

/// "QEMU 7.2.22". Kept as long as the file stays the same. Throws failure (host_missing, host_denied).
std::string vmm_version(const std::string& vmm_path, const std::string& architecture);

} // namespace caisson::qemu
