#pragma once

/// What the host's memory is promised to, and whether more can be. Pure: no actor, no clock, no I/O; sizes in bytes.
///
///   promised    all that a sandbox may take from now on: the largest of target and plugged, and the VMM's overhead
///   held        what its VMM and helpers hold of the host now (PSS)
///   committed   the larger of the two
///   capacity    what the host has for sandboxes: available + what they hold already - the reserve
///
/// A promise is given where everything committed, the new one included, stays within capacity x overcommit. Without
/// overcommit that is the same as: what was promised and is not yet taken fits into what is available. A maximum
/// (default_maxmemory) is no promise: only targets are.

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "messages/error.hpp"
#include "messages/sandbox.pb.h"

namespace caisson::budget {

struct limits {
  std::uint64_t reserve_bytes = 0;      ///< never promised
  std::uint32_t overcommit_percent = 100;
};

struct host_memory {
  std::uint64_t total_bytes = 0;
  std::uint64_t available_bytes = 0;
};

struct refusal {
  std::string text; ///< with all numbers, and how to mend it
  std::uint64_t short_by_bytes = 0;
};

class book {
public:
  /// What was read of its VMM's process. For sandboxes without a promise it is kept out.
  void holds(const std::string& sandbox_id, std::uint64_t bytes);

  /// Gives the promise (nullopt), or says why not and changes nothing. One that asks for no more than it was promised
  /// before always gets it.
  std::optional<refusal> promise(const std::string& sandbox_id, std::uint64_t bytes, const host_memory& host,
                                 const limits& within, const std::string& what, bool dry_run);

  /// What is so anyway (found again, given back, gone): never refused. 0 forgets the sandbox.
  void state(const std::string& sandbox_id, std::uint64_t bytes);

  std::uint64_t promised_bytes(const std::string& sandbox_id) const;
  std::uint64_t promised_bytes() const; ///< to all
  std::uint64_t owed_bytes() const;     ///< to all: promised and not yet taken
  std::size_t sandboxes() const { return entries_.size(); }

  v1::HostBudget figures(const host_memory& host, const limits& within) const;

private:
  struct entry {
    std::uint64_t promised = 0, held = 0;
  };
  std::map<std::string, entry> entries_;
};

/// A VM's own needs beside its guest's memory: the VMM's word (Capabilities.host_overhead_bytes), else a documented
/// figure: 128 MiB under KVM, 384 MiB under TCG, whose translated code lies there too.
std::uint64_t overhead_bytes(const v1::Capabilities& can);

/// Tells the budget what a sandbox may take from now on; 0: it is gone.
v1::PromiseMemory statement(const std::string& sandbox_id, std::uint64_t bytes);

/// What a VM of this kind takes of its host for a target of boot + plugged. Memory on hugetlbfs was set apart before.
std::uint64_t promise_bytes(const v1::VmSpec& spec, const v1::Capabilities& can, std::uint64_t target_bytes);

/// Added to a promise where the host is to stop a VMM that takes more (memory.max): what it may take for short, and
/// under TCG the 1 GiB that QEMU lets its translated code grow to.
std::uint64_t limit_slack_bytes(const v1::Capabilities& can);

} // namespace caisson::budget
