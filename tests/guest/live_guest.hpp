#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace caisson::guest_protocol {

/// One QEMU under TCG with the built guest image, a serial port for the agent and a QMP socket; gone with the object.
class live_guest {
public:
  struct options {
    std::string image;              ///< directory with vmlinux (aarch64: Image), initramfs.cpio, manifest.json
    std::string parameters;         ///< more kernel parameters
    std::vector<std::string> more;  ///< more QEMU arguments
    std::string architecture = "x86_64";
    std::string firmware;           ///< aarch64: a flash image of 64 MiB; "": none
    std::uint32_t slots = 4;        ///< for DIMMs
    std::uint32_t max_mib = 2048;   ///< of the 256 MiB at boot and all that is plugged
  };

  /// Why a live guest cannot be had here, or "".
  static std::string unavailable(const std::string& image, const std::string& architecture = "x86_64");

  explicit live_guest(const options& o);
  ~live_guest();
  live_guest(const live_guest&) = delete;

  /// A new connection to the agent's port; -1 when QEMU doesn't listen.
  int connect_agent();

  /// Executes one QMP command and returns the answer's line; "" when none comes within 10 s.
  std::string qmp(const std::string& command);

  /// The next event with this name and this text in it, whether it has come already or comes within the time; "" for none.
  /// Each event is given once.
  std::string qmp_event(const std::string& name, const std::string& text, int within_ms);

  /// True when QEMU ends within the time.
  bool ended(int within_ms);

  std::string console() const;

private:
  std::string read_line(int within_ms);
  int connect_to(const std::string& path);

  std::string directory_;
  pid_t pid_ = -1;
  int pidfd_ = -1;
  int qmp_ = -1;
  std::vector<std::string> events_; // of QMP, not asked for yet
};

} // namespace caisson::guest_protocol
