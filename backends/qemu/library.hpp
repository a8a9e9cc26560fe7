#pragma once

/// libvirt in this process: its event loop, the embedded driver under a root of its own, connections to daemons.

#include <functional>
#include <memory>
#include <mutex>
#include <map>
#include <string>

#include "backends/qemu/libvirt_handles.hpp"

namespace caisson::qemu {

/// What libvirt tells unasked, on its event thread. Must not block.
struct library_events {
  std::function<void(const std::string& domain, int event, int detail)> lifecycle;
  std::function<void(const std::string& domain, const std::string& alias, bool removed)> device;
  std::function<void(const std::string& domain, const std::string& alias, std::uint64_t size_bytes)> memory_size;
};

/// Directory of the embedded driver. `run_directory` is the engine's.
std::string embedded_root(const std::string& run_directory);

/// libvirt's pid file of a domain of the embedded driver, and the VMM's own log.
std::string pid_file(const std::string& root, const std::string& domain_name);
std::string log_file(const std::string& root, const std::string& domain_name);

/// One command of QEMU's monitor and its answer, both JSON; an answer may be an error of QEMU's. May block. Throws failure
/// where libvirt has no answer.
std::string ask_qemu(virDomainPtr domain, const std::string& command);

class library {
public:
  /// `cache_directory`: where the probed capabilities of the VMMs are kept for all engines of this user.
  library(std::string run_directory, std::string cache_directory, library_events events);
  ~library();
  library(const library&) = delete;
  library& operator=(const library&) = delete;

  /// Opened at the first use and kept; "" is the embedded driver. May block. Throws failure (backend_lost, host_io).
  std::shared_ptr<virConnect> connection(const std::string& uri);
  const std::string& root() const { return root_; }
  /// Puts newly probed capabilities into the shared cache.
  void keep_capabilities();

private:
  std::shared_ptr<virConnect> open(const std::string& uri);
  void prepare_root();

  const std::string run_directory_;
  const std::string root_;
  const std::string cache_;
  const library_events events_;
  struct slot {
    std::mutex mutex;  ///< over an open, which may take as long as a daemon likes; one URI does not delay another
    std::shared_ptr<virConnect> connection;
  };
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<slot>> slots_;
};

} // namespace caisson::qemu
