#include <algorithm>
#include <utility>

#include "backends/simulated/model_machine.hpp"

// Blocks of memory that the guest's agent takes offline and back.

namespace caisson::backends::simulated {

std::vector<machine_block> model_machine::blocks(std::uint64_t address, std::uint64_t size_bytes) const {
  std::vector<machine_block> found;
  for (const auto& d : dimms_)
    for (std::uint64_t at = 0; d.seen && at < d.size_bytes; at += shape_.block_bytes)
      if (d.address + at >= address && d.address + at - address < size_bytes)
        found.push_back({d.address + at, shape_.block_bytes, at < d.online_bytes});
  std::ranges::sort(found, {}, &machine_block::address);
  return found;
}

void model_machine::take_offline(std::uint64_t address, std::uint64_t size_bytes,
                                 std::function<void(const std::string& why)> on_end) {
  after(habits_.leave_ms.draw(dice_), [this, address, size_bytes, on_end = std::move(on_end)] {
    std::vector<machine_dimm*> whole;
    std::uint64_t online = 0;
    for (auto& d : dimms_)
      if (d.address >= address && d.address + d.size_bytes <= address + size_bytes) {
        whole.push_back(&d);
        online += d.online_bytes;
      }
    const auto refuse = [&](const char* why) {
      const auto there = blocks(address, size_bytes);
      char text[128];
      std::snprintf(text, sizeof text, "the block at 0x%llx (zone Movable): %s",
                    static_cast<unsigned long long>(there.empty() ? address : there.front().address), why);
      on_end(text);
    };
    if (dice_.chance(habits_.dimm_refused))
      return refuse("Device or resource busy");
    if (mem_available_bytes() < online)
      return refuse("Cannot allocate memory");
    for (auto* d : whole) {
      d->online_bytes = 0;
      d->kept_offline = true;
    }
    changed();
    on_end("");
  });
}

void model_machine::bring_all_online() {
  for (auto& d : dimms_)
    if (std::exchange(d.kept_offline, false))
      after(habits_.online_ms.draw(dice_), [this, id = d.id] { online_dimm(id); });
}

} // namespace caisson::backends::simulated
