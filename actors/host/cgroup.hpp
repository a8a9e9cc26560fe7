#pragma once

/// One cgroup a sandbox on the host, with a limit of memory that follows what the sandbox was promised. Blocks on files:
/// used by the host actor alone.
///
/// Where cgroup v2 has the memory controller: below /sys/fs/cgroup/caisson for root; for others below the nearest cgroup
/// above their own that they may write and whose children have the memory controller (a delegated subtree). Where the
/// memory controller is on cgroup v1: below the engine's own memory cgroup, so that what bounds the engine bounds its
/// VMMs too. Pages that a VMM touched before it was moved stay charged where it was.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "messages/sandbox.pb.h"

namespace caisson {

/// The files that it works on; a test's own in a test.
struct cgroup_files {
  std::string root = "/sys/fs/cgroup";
  std::string own = "/proc/self/cgroup";
  bool superuser = false;
  /// "" or why not. The file has to exist.
  std::function<std::string(const std::string& path, const std::string& text)> write;
  std::function<std::string(const std::string& path)> read; ///< "" where it cannot be read
  std::function<std::string(const std::string& path)> make; ///< a directory; "" or why not; an existing one is fine
  std::function<std::string(const std::string& path)> remove;
  std::function<bool(const std::string& path)> writable; ///< a directory in which directories can be made

  static cgroup_files real();
};

class host_cgroups {
public:
  explicit host_cgroups(cgroup_files files = cgroup_files::real()) : files_{std::move(files)} {}

  /// Makes the sandbox's cgroup where it is missing, moves the process and sets the limit. Never below what the cgroup
  /// holds now, because the kernel would kill the VMM for it: then `why_not` says so beside the path, and the caller may
  /// try again. Limit 0 removes the cgroup. Process 0 with a limit changes nothing: `why_not` then says whether the
  /// kernel has killed in the cgroup for what was taken beyond its limit, and is "" where it has not.
  v1::CgroupFollowed follow(const v1::FollowCgroup& m);

private:
  void look();
  v1::CgroupFollowed remove(const std::string& path);
  v1::CgroupFollowed killed_in(const std::string& path) const;

  const char* limit_name() const { return v1_ ? "/memory.limit_in_bytes" : "/memory.max"; }

  cgroup_files files_;
  bool looked_ = false;
  bool v1_ = false;
  std::string base_;    ///< cgroups are made in it; "" where there is none
  std::string why_not_; ///< of that
};

} // namespace caisson
