#pragma once

/// The guest that is made when `run` finds none: a kernel and an initramfs of Debian's packages and our agent, made by
/// guest/image/build, which leaves nothing half done. In a build tree the build makes it (with the agent, where that is
/// missing too), into build/guest/ARCH; installed, the script and the agents lie in share/caisson/guest-build and the
/// guest goes into the cache directory (engine::made_guest_directory()). What is being done is told on stderr, a line
/// each.

#include "frontends/cli/command_line.hpp"

namespace caisson::cli {

/// `attempt` is the sending of `create`. Where the engine refuses it because there is no guest of its architecture (and
/// nobody has named a directory with one), the guest is made and the same is sent once more. `may_make` false: the
/// refusal stands. Two commands at once make one guest: the second waits for the first.
int with_guest(const command_context& c, const v1::CreateSandbox& create, bool may_make,
               const std::function<int()>& attempt);

} // namespace caisson::cli
