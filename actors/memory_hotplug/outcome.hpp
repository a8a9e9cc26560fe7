#pragma once

/// How a change of memory has ended, judged by figures that were read back. Pure.

#include <optional>
#include <string>
#include <vector>

#include "actors/memory_hotplug/ledger.hpp"
#include "messages/sandbox.pb.h"

namespace caisson::memory_hotplug {

struct ending {
  std::uint64_t target_bytes = 0; ///< after rounding
  std::uint64_t plugged_at_start = 0;
  std::string stop_why; ///< not empty: it was to stop early
  std::string ended;    ///< not empty: the VM has ended
  std::vector<std::string> reasons;
  ec failure = ec::none;
};

struct verdict {
  v1::OperationState state = v1::OPERATION_STATE_FAILED;
  std::string why;
  std::optional<refusal> error; ///< of FAILED
};

/// CONVERGED only where the VMM's plugged size is the target's and the guest agrees.
verdict judge(const ledger& book, const ending& e);

} // namespace caisson::memory_hotplug
