#pragma once

/// What the bodies of replies mean. The VMM is not trusted: every body that does not have its form gives an error that
/// names the place, never a guess. Keys that we don't know are passed over (versions add some).

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace caisson::cloud_hypervisor {

/// A value, or why there is none.
template <class T>
struct parsed {
  std::optional<T> value;
  std::string error; ///< "vm.info: config.memory.size: expected ..., got ..."
  explicit operator bool() const { return value.has_value(); }
  const T& operator*() const { return *value; }
  const T* operator->() const { return &*value; }
};

struct ping_reply {
  std::string version;       ///< "53.0.0"
  std::string build_version; ///< "v53.0.0", empty where it is not said
  std::int64_t pid = 0;      ///< 0 where it is not said
  std::vector<std::string> features;
};
parsed<ping_reply> parse_ping(std::string_view body);

enum class vm_state { created, running, paused, shutdown, break_point, other };

struct device_reply {
  std::string id;
  std::string kind; ///< "disk", "net", "share", "vsock"
  std::string host; ///< image, tap or socket
  std::string bdf;  ///< "0000:00:05.0"; empty while the VM has not booted
};

struct info_reply {
  vm_state state = vm_state::other;
  std::string state_text;
  std::uint32_t boot_vcpus = 1; ///< what was asked for last, not what the guest has online
  std::uint32_t max_vcpus = 1;
  std::uint64_t memory_bytes = 0;     ///< config.memory.size. With ACPI a refused shrink makes it lie: keep a ledger
  std::uint64_t hotplug_bytes = 0;    ///< config.memory.hotplug_size, 0: none
  std::uint64_t hotplugged_bytes = 0; ///< virtio-mem's requested size, 0: none
  bool virtio_mem = false;
  std::optional<std::uint64_t> memory_actual_bytes; ///< see version_facts::actual_size_counts_virtio_mem
  std::optional<std::uint64_t> balloon_bytes;       ///< asked for; empty: no balloon device
  bool free_page_reporting = false;
  std::vector<device_reply> devices; ///< of the configuration, in its order
  std::map<std::string, std::string> addresses; ///< by device: all that are there, also those that are leaving, which the
                                                ///< configuration does not have any more
  std::string serial_path;           ///< file, socket or pty of the serial line
  bool has_device_tree = false;      ///< with state `created`: a boot has failed half way, vm.delete is due
};
parsed<info_reply> parse_info(std::string_view body);

/// add-disk, add-net, add-fs on a booted VM (200; in a VM that is only created it is a 204 without body).
struct pci_device_reply {
  std::string id;
  std::string bdf;
};
parsed<pci_device_reply> parse_pci_device(std::string_view body);

/// vm.counters: one number. Some are 2^64-1.
struct counter {
  std::string device;
  std::string name;
  std::uint64_t value = 0;
};
parsed<std::vector<counter>> parse_counters(std::string_view body);

} // namespace caisson::cloud_hypervisor
