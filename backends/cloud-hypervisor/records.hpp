#pragma once

/// What has to survive the engine of each VM, one small file beside its event stream. They lie on the run directory's
/// tmpfs, as VMs do: a reboot ends both. No CAF, no reactor; a save is one write and one rename.

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "backends/cloud-hypervisor/ledger.hpp"
#include "messages/backend.pb.h"

namespace caisson::cloud_hypervisor {

struct vm_record {
  v1::VmSpec spec;
  pid_t pid = 0; ///< 0: the engine ended between the record and the process's start, or there is none yet
  std::uint64_t start_ticks = 0;
  std::string version; ///< "53.0.0", as vmm.ping said
  std::string accelerator;
  bool booted = false;
  ledger book;
  std::uint64_t events_read_bytes = 0; ///< of the event stream
  v1::VmEvent::Kind ended = v1::VmEvent::KIND_UNSPECIFIED;
  std::string stop_reason;

  const std::string& sandbox_id() const { return spec.sandbox_id(); }
};

class records {
public:
  explicit records(std::string directory) : directory_(std::move(directory)) {}

  /// Makes the directory where it is missing (0700). An empty text is success, else what is wrong and how to mend it.
  std::string save(const vm_record& record) const;
  /// The record and the VM's files here.
  void remove(const std::string& sandbox_id) const;
  /// Files that are no record are left out.
  std::vector<vm_record> all() const;

  const std::string& directory() const { return directory_; }
  std::string event_file(const std::string& sandbox_id) const { return path(sandbox_id, ".events"); }
  /// What the VMM says on its standard error.
  std::string log_file(const std::string& sandbox_id) const { return path(sandbox_id, ".log"); }

private:
  std::string path(const std::string& sandbox_id, const char* ending) const {
    return directory_ + "/" + sandbox_id + ending;
  }
  std::string directory_;
};

std::string to_text(const vm_record& record);
/// False where the text is no record.
bool from_text(const std::string& text, vm_record& record);

} // namespace caisson::cloud_hypervisor
