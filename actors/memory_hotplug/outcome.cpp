#include "actors/memory_hotplug/outcome.hpp"

#include <fmt/format.h>

#include "messages/validate.hpp"

namespace caisson::memory_hotplug {

verdict judge(const ledger& book, const ending& e) {
  std::string because;
  for (const auto& r : e.reasons)
    because += (because.empty() ? "" : "; ") + r;
  const auto figures =
      fmt::format("asked for {}: the VM has {} ({} at boot, {} plugged), the guest uses {}", show_bytes(e.target_bytes),
                  show_bytes(book.has_bytes()), show_bytes(book.boot_bytes()), show_bytes(book.plugged_bytes()),
                  show_bytes(book.guest_bytes()));
  verdict v;
  if (!e.ended.empty()) {
    v.why = fmt::format("{}. Last read back, {}", e.ended, figures);
    v.error = refusal{ec::vmm_died, v.why};
    return v;
  }
  const bool there = book.has_bytes() == e.target_bytes;
  if (there && book.guest_agrees()) {
    v.state = v1::OPERATION_STATE_CONVERGED;
    return v;
  }
  if (!e.stop_why.empty()) {
    v.state = v1::OPERATION_STATE_CANCELLED;
    v.why = fmt::format("{}. {}", e.stop_why, figures);
    return v;
  }
  if (because.empty())
    because =
        there ? fmt::format("the guest does not confirm it ({} memory blocks are not online)", book.offline_blocks())
              : "the VMM has not followed";
  v.why = fmt::format("{}. {}", figures, because);
  if (there || book.plugged_bytes() != e.plugged_at_start) {
    v.state = v1::OPERATION_STATE_PARTLY;
    return v;
  }
  v.error = refusal{e.failure == ec::none ? ec::guest_refused : e.failure, v.why};
  return v;
}

} // namespace caisson::memory_hotplug
