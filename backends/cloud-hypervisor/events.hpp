#pragma once

/// The event monitor's stream: indented JSON objects with a blank line behind each. Pure.
///
/// An event may be missing (the VMM drops what the pipe does not take), and "booting", "resizing" and the like are told
/// for refused calls, too: only the closing event ("booted", "resized") says that something has happened.

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace caisson::cloud_hypervisor {

struct vmm_event {
  std::uint64_t secs = 0; ///< since the VMM's start
  std::uint32_t nanos = 0;
  std::string source;                            ///< "vmm", "vm", "virtio-device", "vdpa", "guest"
  std::string event;                             ///< "booted", "device-removed", "panic"
  std::map<std::string, std::string> properties; ///< e.g. id, bdf

  bool is(std::string_view of, std::string_view what) const { return source == of && event == what; }
  std::string property(const std::string& name) const; ///< empty where it is missing
};

class event_parser {
public:
  /// One object may have this many bytes; real ones have less than 300.
  static constexpr std::size_t most_event_bytes = 64 * 1024;

  /// The events that these bytes complete, in order.
  std::vector<vmm_event> feed(std::string_view bytes);

  /// Objects, or pieces between blank lines, that were no event.
  std::uint64_t skipped() const { return skipped_; }
  /// Bytes that wait for the end of their object.
  std::size_t waiting() const { return waiting_.size(); }

private:
  void take(std::string_view piece, std::vector<vmm_event>& into);

  std::string waiting_;
  std::size_t searched_ = 0; // no blank line begins before this place
  bool oversized_ = false;   // passing over to the next blank line
  std::uint64_t skipped_ = 0;
};

} // namespace caisson::cloud_hypervisor
