#pragma once

/// The event stream of one VMM as it lies in a file: read on from where somebody stopped, also after a restart of the
/// engine. What has been read is given back to the file system, since a guest can make the VMM write without end.

#include <cstdint>
#include <string>
#include <vector>

#include "backends/cloud-hypervisor/events.hpp"

namespace caisson::cloud_hypervisor {

class event_file {
public:
  /// From `read_bytes` on. The file may come later.
  event_file(std::string path, std::uint64_t read_bytes) : path_{std::move(path)}, at_{read_bytes} {}
  ~event_file();
  event_file(const event_file&) = delete;
  event_file& operator=(const event_file&) = delete;

  /// What is new; a bounded part of it, so that the caller asks again until nothing comes.
  std::vector<vmm_event> read();
  /// Where a later reader has to go on: everything before it has been given out.
  std::uint64_t read_bytes() const { return at_ - parser_.waiting(); }

private:
  bool open();
  void give_back();

  const std::string path_;
  int fd_ = -1;
  std::uint64_t at_;
  std::uint64_t given_back_ = 0;
  event_parser parser_;
};

} // namespace caisson::cloud_hypervisor
