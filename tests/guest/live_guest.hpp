#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace caisson::guest_protocol {

/// One QEMU under TCG with the built guest image, a serial port for the agent and a QMP socket; gone with the object.
class live_guest {
public:
  struct options {
    std::string image;              ///< directory with vmlinux, initramfs.cpio, manifest.json
    std::string parameters;         ///< more kernel parameters
    std::vector<std::string> more;  ///< more QEMU arguments
  };

  /// Why a live guest cannot be had here, or "".
  static std::string unavailable(const std::string& image);

  explicit live_guest(const options& o);
  ~live_guest();
  live_guest(const live_guest&) = delete;

  /// A new connection to the agent's port; -1 when QEMU doesn't listen.
  int connect_agent();

  /// Executes one QMP command and returns the answer's line; "" when none comes within 10 s.
  std::string qmp(const std::string& command);

  /// True when QEMU ends within the time.
  bool ended(int within_ms);

  std::string console() const;

private:
  int connect_to(const std::string& path);

  std::string directory_;
  pid_t pid_ = -1;
  int pidfd_ = -1;
  int qmp_ = -1;
};

} // namespace caisson::guest_protocol
