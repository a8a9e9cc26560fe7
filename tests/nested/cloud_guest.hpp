#pragma once

#include <nlohmann/json.hpp>

#include <sys/types.h>

#include <cstdint>
#include <string>

namespace caisson::guest_protocol {

/// One real Cloud Hypervisor with the built guest image, driven by its own API and nothing of ours: shows what the guest does
/// there before any backend has a part in it. Gone with the object.
class cloud_guest {
public:
  struct options {
    std::string image;                ///< directory with vmlinux, initramfs.cpio, manifest.json
    std::string method = "VirtioMem"; ///< or "Acpi"
    std::uint64_t boot_bytes = 0, hotplug_bytes = 0;
    unsigned max_vcpus = 1;
  };

  /// Why no such guest can be had here, or "".
  static std::string unavailable(const std::string& image);

  explicit cloud_guest(const options& o);
  ~cloud_guest();
  cloud_guest(const cloud_guest&) = delete;

  /// A new connection to the agent; -1 when none comes within 120 s.
  int connect_agent();

  struct answer {
    int status = 0; ///< 0: no answer
    std::string body;
  };
  answer ask(const std::string& verb, const std::string& endpoint, const std::string& body = "");
  nlohmann::json info() { return nlohmann::json::parse(ask("GET", "vm.info").body, nullptr, false); }

  /// True when the process ends within the time; then `exit_status` is its wait status.
  bool ended(int within_ms);
  int exit_status = 0;

  std::string console() const;
  std::string events() const;
  const std::string& failure() const { return failure_; } ///< why the machine did not start, or ""

private:
  int connect_to(const std::string& name) const;

  std::string directory_, failure_;
  pid_t pid_ = -1;
  int pidfd_ = -1;
};

} // namespace caisson::guest_protocol
