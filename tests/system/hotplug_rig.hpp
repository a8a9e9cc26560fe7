#pragma once

// Real sandboxes for the tests of memory and vCPUs: an engine in this process over real QEMU, so that a test can send a
// second command at a certain event, and figures read from every side that has an opinion.

#include <gtest/gtest.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/service.hpp"

namespace caisson::test {

inline constexpr std::uint64_t mib = std::uint64_t{1} << 20;

/// A machine on which everything is tried.
struct machine {
  const char* name;
  const char* architecture;
  const char* method; ///< the key memory_method
  bool dimm() const { return std::string{method} == "dimm"; }
  bool arm() const { return std::string{architecture} == "aarch64"; }
};
inline constexpr machine x86_dimm{"x86_64_dimm", "x86_64", "dimm"};
inline constexpr machine x86_virtio{"x86_64_virtio_mem", "x86_64", "virtio-mem"};
inline constexpr machine arm_dimm{"aarch64_dimm", "aarch64", "dimm"};
inline constexpr machine arm_virtio{"aarch64_virtio_mem", "aarch64", "virtio-mem"};

/// Why sandboxes of this machine cannot be had here, or "".
std::string unavailable(const machine& m);

/// What ran in a guest.
struct ran {
  int status = -1; ///< 126, 127, 128+n as a shell gives
  std::string out, err;
};

/// The engine's events, as they come.
class event_box {
public:
  void put(const v1::Event& e);
  /// The first event from `from` on that fits; nothing after `at_most`.
  std::optional<v1::Event> await(const std::function<bool(const v1::Event&)>& fits, std::chrono::seconds at_most);
  std::size_t count() const;
  /// Only what comes from now on is looked at.
  void forget();

private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<v1::Event> heard_;
  std::size_t from_ = 0;
};

class hotplug_rig {
public:
  hotplug_rig();
  /// Removes what is left and expects that nothing of it stays: no process, no file of a sandbox.
  ~hotplug_rig();
  hotplug_rig(const hotplug_rig&) = delete;

  struct wish {
    machine on;
    std::string name;
    std::uint64_t boot_mib = 512, max_mib = 3072;
    std::string more;  ///< lines for the hypervisor's table
    std::string guest; ///< directory of another guest image; "" the usual one
  };
  engine::outcome<v1::SandboxStatus> create(const wish& w);
  /// The answer comes later.
  std::function<engine::outcome<v1::SandboxStatus>()> create_later(const wish& w);

  engine::outcome<v1::Operation> begin_resize(const std::string& name, std::uint64_t memory_bytes,
                                              bool dry_run = false);
  /// The operation's end.
  v1::Operation wait(const v1::Operation& o);
  /// Both; a refusal is an operation FAILED with the error and without an id.
  v1::Operation resize(const std::string& name, std::uint64_t memory_bytes);
  engine::outcome<v1::Operation> cancel(const v1::Operation& o);
  engine::outcome<v1::Operation> look(const v1::Operation& o);

  engine::outcome<v1::SandboxStatus> get(const std::string& name);
  v1::SandboxStatus status(const std::string& name);
  engine::outcome<v1::SandboxStatus> pause(const std::string& name);
  engine::outcome<v1::SandboxStatus> resume(const std::string& name);
  engine::outcome<v1::SandboxStatus> remove(const std::string& name);
  ran in_guest(const std::string& name, std::vector<std::string> argv);

  /// MemTotal as the guest's own /proc/meminfo has it.
  std::uint64_t mem_total(const std::string& name);
  /// Memory that the VMM has mapped for its guest: the host's view, from /proc/PID/maps.
  static std::uint64_t mapped_by(std::int64_t vmm_pid);

  /// Every side says boot + `plugged_bytes`: the ledger, the VMM, the guest's claim, the guest's own file, the host's
  /// map of the VMM's memory (DIMM). `total_at_boot`: mem_total() before anything was plugged.
  void expect_everywhere(const std::string& name, std::uint64_t plugged_bytes, std::uint64_t total_at_boot,
                         bool target_reached = true);

  event_box events;

private:
  std::string text_of(const wish& w);

  std::string root_, run_;
  std::unique_ptr<engine::service> engine_;
  std::unique_ptr<engine::event_subscription> watching_;
};

/// Waits until this process is gone; false after `at_most`.
bool gone(std::int64_t pid, std::chrono::seconds at_most);

} // namespace caisson::test
