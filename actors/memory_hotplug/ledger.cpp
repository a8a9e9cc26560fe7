#include "actors/memory_hotplug/ledger.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "messages/validate.hpp"

namespace caisson::memory_hotplug {

void ledger::open(std::uint64_t boot_bytes, std::uint64_t max_bytes, std::uint64_t guest_boot_total_bytes,
                  std::uint64_t target_bytes, std::uint64_t generation) {
  boot_ = boot_bytes;
  max_ = std::max(max_bytes, boot_bytes);
  guest_boot_total_ = guest_boot_total_bytes;
  target_ = target_bytes;
  generation_ = std::max(generation, generation_);
}

void ledger::vmm_says(std::uint64_t plugged_bytes, std::uint64_t requested_bytes, std::vector<dimm> dimms) {
  plugged_ = plugged_bytes;
  requested_ = requested_bytes;
  dimms_ = std::move(dimms);
  if (target_ == 0)
    target_ = has_bytes();
}

void ledger::guest_says(std::uint64_t total_bytes, std::uint64_t available_bytes, std::uint32_t offline_blocks) {
  // A claim above what is believed at all would only wrap sums.
  guest_total_ = std::min(total_bytes, absurd_bytes);
  guest_available_ = std::min(available_bytes, guest_total_);
  offline_blocks_ = offline_blocks;
}

void ledger::accept(std::uint64_t target_bytes) {
  target_ = target_bytes;
  ++generation_;
}

std::uint64_t ledger::guest_bytes() const {
  if (guest_total_ == 0)
    return 0; // nothing was heard yet
  if (guest_total_ >= guest_boot_total_)
    return boot_ + (guest_total_ - guest_boot_total_);
  return boot_ - std::min(boot_, guest_boot_total_ - guest_total_);
}

bool ledger::guest_agrees() const {
  const auto guest = guest_bytes();
  const auto has = has_bytes();
  return (guest > has ? guest - has : has - guest) < agreement_bytes;
}

std::string ledger::inconsistency() const {
  if (has_bytes() > max_)
    return fmt::format("the VMM says that {} are plugged, which with {} at boot is above the maximum of {}",
                       show_bytes(plugged_), show_bytes(boot_), show_bytes(max_));
  std::uint64_t sum = 0;
  for (const auto& d : dimms_)
    sum += d.size_bytes;
  if (!dimms_.empty() && sum > plugged_)
    return fmt::format("the VMM lists DIMMs of {} and says that {} are plugged", show_bytes(sum), show_bytes(plugged_));
  return {};
}

} // namespace caisson::memory_hotplug
