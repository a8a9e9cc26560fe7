#include "actors/memory_hotplug/plan.hpp"

#include <algorithm>
#include <bit>
#include <numeric>
#include <optional>

#include <fmt/format.h>

#include "messages/validate.hpp"

namespace caisson::memory_hotplug {
namespace {

constexpr std::uint64_t most_cells = 16u << 20; // of the subset sum's table: 256 DIMMs of up to 65 536 units

std::uint64_t saturating_multiply(std::uint64_t a, std::uint64_t b) {
  return b != 0 && a > UINT64_MAX / b ? UINT64_MAX : a * b;
}

std::string_view name_of(method how) {
  return how == method::dimm ? "DIMM" : "virtio-mem";
}

std::string sizes_text(const std::vector<std::uint64_t>& sizes) {
  std::string out;
  for (auto s : sizes)
    out += (out.empty() ? "" : " + ") + show_bytes(s);
  return out;
}

/// A guest that is predicted to have taken `bytes` more.
void grow_guest(situation& s, std::uint64_t bytes) {
  s.guest_total_bytes += bytes;
  s.guest_available_bytes += bytes - bytes / map_ratio;
}

refusal no_room_for_map(const situation& s, std::uint64_t wanted) {
  return {
      ec::guest_refused,
      fmt::format("the guest cannot take more memory now: it has {} available and {} of that stay free; the memory map "
                  "of even {} more needs {}. End something in the guest, or start the sandbox with a larger "
                  "default_memory (asked for {} more)",
                  show_bytes(s.guest_available_bytes), show_bytes(guest_reserve_bytes), show_bytes(s.granule_bytes),
                  show_bytes(std::max<std::uint64_t>(s.granule_bytes / map_ratio, 1)), show_bytes(wanted))};
}

refusal no_slots(const situation& s, std::uint64_t wanted) {
  return {
      ec::conflict,
      fmt::format("no slot is left for another DIMM: {} of {} are in use, {} more cannot be plugged. Give memory back "
                  "first so that whole DIMMs leave, or start the sandbox with a larger memory_slots, or with "
                  "memory_method = \"virtio-mem\", which needs no slots",
                  s.dimms.size(), s.slots_total, show_bytes(wanted))};
}

std::optional<refusal> plan_growth(situation s, plan& p, std::uint64_t missing) {
  const auto blocks_wanted = missing / s.granule_bytes;
  auto left = blocks_wanted * s.granule_bytes;
  if (left != missing)
    p.notes.push_back(fmt::format("{} cannot be plugged: it is less than one block of {}", show_bytes(missing - left),
                                  show_bytes(s.granule_bytes)));
  auto used = static_cast<std::uint32_t>(s.dimms.size());
  while (left > 0) {
    const auto limit = step_limit_bytes(s.guest_total_bytes, s.guest_available_bytes) / s.granule_bytes;
    if (limit == 0) {
      if (p.steps.empty())
        return no_room_for_map(s, left);
      p.notes.push_back(no_room_for_map(s, left).text);
      break;
    }
    step next;
    next.bytes = std::min(left / s.granule_bytes, limit) * s.granule_bytes;
    if (s.how == method::dimm) {
      const auto free = used < s.slots_total ? s.slots_total - used : 0;
      if (free == 0) {
        if (p.steps.empty())
          return no_slots(s, left);
        p.notes.push_back(
            fmt::format("{} cannot be plugged: no slot is left ({} of {} in use then); start the sandbox with "
                        "a larger memory_slots, or with memory_method = \"virtio-mem\"",
                        show_bytes(left), used, s.slots_total));
        break;
      }
      next.bytes = 0;
      // Split by what is left in all, cut where this step's memory map would no longer fit.
      for (auto blocks : split_growth(left / s.granule_bytes, limit, free, s.slots_total)) {
        if (next.bytes / s.granule_bytes + blocks > limit)
          break;
        next.new_dimms.push_back(blocks * s.granule_bytes);
        next.bytes += blocks * s.granule_bytes;
      }
      used += static_cast<std::uint32_t>(next.new_dimms.size());
    }
    s.plugged_bytes += next.bytes;
    next.plugged_after_bytes = s.plugged_bytes;
    next.text = s.how == method::dimm
                    ? fmt::format("plug {} DIMM{}: {}", next.new_dimms.size(), next.new_dimms.size() == 1 ? "" : "s",
                                  sizes_text(next.new_dimms))
                    : fmt::format("grow virtio-mem by {} to {}", show_bytes(next.bytes), show_bytes(s.plugged_bytes));
    left -= next.bytes;
    grow_guest(s, next.bytes);
    p.steps.push_back(std::move(next));
  }
  if (p.steps.size() > 1)
    p.notes.push_back(
        fmt::format("{} steps, because the guest must have room for the memory map of each", p.steps.size()));
  p.reached_bytes = s.boot_bytes + s.plugged_bytes;
  return std::nullopt;
}

std::optional<refusal> plan_shrink(const situation& s, plan& p, std::uint64_t excess) {
  if (!s.can_shrink)
    return refusal{ec::unsupported,
                   fmt::format("memory cannot be given back by {}: {}", name_of(s.how),
                               s.why_no_shrink.empty() ? "this VMM cannot unplug it" : s.why_no_shrink)};
  step next;
  next.grow = false;
  const auto limit = shrink_limit_bytes(s.guest_boot_total_bytes, s.guest_available_bytes);
  const auto most = limit < excess ? limit / s.granule_bytes * s.granule_bytes : excess;
  if (most < excess)
    p.notes.push_back(
        fmt::format("the guest uses too much to give back {}: it has {} available{} and keeps a reserve, so "
                    "that {} can leave now. End something in the guest and ask again",
                    show_bytes(excess), show_bytes(s.guest_available_bytes),
                    s.workload_bytes > 0 ? ", its workload holds " + show_bytes(s.workload_bytes) + "," : "",
                    most == 0 ? "nothing" : "at most " + show_bytes(most)));
  if (s.how == method::virtio_mem) {
    next.bytes = most;
  } else {
    std::vector<dimm> willing;
    for (const auto& d : s.dimms)
      if (!s.stubborn.contains(d.id))
        willing.push_back(d);
    std::vector<std::uint64_t> sizes;
    for (auto i : choose_leaving(willing, most)) {
      next.leaving_dimms.push_back(willing[i].id);
      sizes.push_back(willing[i].size_bytes);
      next.bytes += willing[i].size_bytes;
    }
    next.text = fmt::format("unplug {} DIMM{}: {}", sizes.size(), sizes.size() == 1 ? "" : "s", sizes_text(sizes));
    if (next.bytes < most && !willing.empty())
      p.notes.push_back(
          fmt::format("no set of the DIMMs that can be asked to leave makes {}: {} can leave, {} stay beyond "
                      "the target",
                      show_bytes(most), show_bytes(next.bytes), show_bytes(excess - next.bytes)));
  }
  next.plugged_after_bytes = s.plugged_bytes - next.bytes;
  if (s.how == method::virtio_mem)
    next.text =
        fmt::format("shrink virtio-mem by {} to {}", show_bytes(next.bytes), show_bytes(next.plugged_after_bytes));
  p.reached_bytes = s.boot_bytes + next.plugged_after_bytes;
  if (next.bytes > 0)
    p.steps.push_back(std::move(next));
  return std::nullopt;
}

} // namespace

std::uint64_t step_limit_bytes(std::uint64_t guest_total_bytes, std::uint64_t guest_available_bytes) {
  if (guest_available_bytes <= guest_reserve_bytes)
    return 0;
  return std::min(saturating_multiply(map_ratio, guest_available_bytes - guest_reserve_bytes),
                  saturating_multiply(most_growth_ratio, guest_total_bytes));
}

std::uint64_t shrink_limit_bytes(std::uint64_t guest_boot_total_bytes, std::uint64_t guest_available_bytes) {
  const auto reserve = std::min(guest_reserve_bytes, guest_boot_total_bytes / 8);
  if (guest_available_bytes <= reserve)
    return 0;
  const auto spare = guest_available_bytes - reserve;
  return spare + spare / (map_ratio - 1);
}

std::variant<settled_target, refusal> settle_target(const situation& s, std::uint64_t asked_bytes) {
  if (asked_bytes == 0)
    return refusal{ec::invalid_argument,
                   "a memory target of 0 bytes: name the size that the sandbox shall have, e.g. 2G"};
  if (asked_bytes >= absurd_bytes)
    return refusal{ec::out_of_range,
                   fmt::format("a memory target of {} bytes is above everything that is believed ({}): the "
                               "sandbox may have up to {}",
                               asked_bytes, show_bytes(absurd_bytes), show_bytes(s.max_bytes))};
  if (asked_bytes < s.boot_bytes)
    return refusal{
        ec::out_of_range,
        fmt::format("memory target {}: the sandbox was started with {}, and memory that a guest has booted with "
                    "cannot leave. Ask for at least {}, or start it again with a smaller default_memory",
                    show_bytes(asked_bytes), show_bytes(s.boot_bytes), show_bytes(s.boot_bytes))};
  if (asked_bytes > s.max_bytes)
    return refusal{
        ec::out_of_range,
        fmt::format("memory target {}: the sandbox may have at most {}. Ask for less, or start it again with a "
                    "larger default_maxmemory",
                    show_bytes(asked_bytes), show_bytes(s.max_bytes))};
  if (s.granule_bytes == 0)
    return refusal{ec::unsupported, fmt::format("this VM has no memory that can be plugged ({})", name_of(s.how))};
  settled_target t;
  t.asked_bytes = asked_bytes;
  const auto beyond = asked_bytes - s.boot_bytes;
  const auto room = s.max_bytes - s.boot_bytes;
  auto granules = beyond / s.granule_bytes;
  const bool exact = beyond % s.granule_bytes == 0;
  const bool up_fits = !exact && granules < room / s.granule_bytes;
  if (up_fits)
    ++granules;
  t.used_bytes = s.boot_bytes + granules * s.granule_bytes;
  if (!exact)
    t.notes.push_back(fmt::format(
        "{} ({} bytes) rounded {} to {}: boot size {} and a multiple of {}{}", show_bytes(asked_bytes), asked_bytes,
        up_fits ? "up" : "down", show_bytes(t.used_bytes), show_bytes(s.boot_bytes), show_bytes(s.granule_bytes),
        up_fits ? "" : fmt::format("; up would be above the maximum of {}", show_bytes(s.max_bytes))));
  return t;
}

std::variant<plan, refusal> make_plan(const situation& s, std::uint64_t asked_bytes) {
  auto settled = settle_target(s, asked_bytes);
  if (auto* no = std::get_if<refusal>(&settled))
    return std::move(*no);
  plan p;
  p.target = std::get<settled_target>(std::move(settled));
  p.notes = p.target.notes;
  const auto wanted = p.target.used_bytes - s.boot_bytes;
  p.reached_bytes = s.boot_bytes + s.plugged_bytes;
  std::optional<refusal> no;
  if (wanted != s.plugged_bytes && s.guest_total_bytes == 0)
    return refusal{ec::guest_unresponsive,
                   "nothing can be planned, because the guest's agent has not said what the guest has"};
  if (wanted > s.plugged_bytes)
    no = plan_growth(s, p, wanted - s.plugged_bytes);
  else if (wanted < s.plugged_bytes)
    no = plan_shrink(s, p, s.plugged_bytes - wanted);
  if (no)
    return std::move(*no);
  return p;
}

std::vector<std::uint64_t> split_growth(std::uint64_t blocks, std::uint64_t largest, std::uint32_t slots_free,
                                        std::uint32_t slots_total) {
  std::vector<std::uint64_t> out;
  while (blocks > 0 && slots_free > 0 && largest > 0) {
    const bool plenty = std::uint64_t{slots_free} * 2 > slots_total;
    // The largest power of two within the (rounded up) half: together the pieces make every smaller sum.
    auto piece = plenty ? std::bit_floor(blocks / 2 + blocks % 2) : blocks;
    if (piece > largest)
      piece = plenty ? std::bit_floor(largest) : largest;
    out.push_back(piece);
    blocks -= piece;
    --slots_free;
  }
  return out;
}

std::vector<std::size_t> choose_leaving(const std::vector<dimm>& dimms, std::uint64_t at_most_bytes) {
  std::vector<std::size_t> order; // newest first
  std::uint64_t unit = 0;
  for (std::size_t i = dimms.size(); i-- > 0;)
    if (dimms[i].size_bytes > 0 && dimms[i].size_bytes <= at_most_bytes) {
      order.push_back(i);
      unit = std::gcd(unit, dimms[i].size_bytes);
    }
  std::vector<std::size_t> chosen;
  if (order.empty())
    return chosen;
  const auto capacity = at_most_bytes / unit;
  if (capacity > most_cells / order.size()) {
    std::ranges::stable_sort(order, [&](auto a, auto b) { return dimms[a].size_bytes > dimms[b].size_bytes; });
    auto left = at_most_bytes;
    for (auto i : order)
      if (dimms[i].size_bytes <= left) {
        chosen.push_back(i);
        left -= dimms[i].size_bytes;
      }
    return chosen;
  }
  // Fewest DIMMs for every sum; `took` remembers, DIMM by DIMM, where it improved a sum.
  constexpr auto never = UINT32_MAX;
  const auto cells = static_cast<std::size_t>(capacity) + 1;
  std::vector<std::uint32_t> fewest(cells, never);
  fewest[0] = 0;
  std::vector<std::vector<bool>> took(order.size(), std::vector<bool>(cells, false));
  for (std::size_t n = 0; n < order.size(); ++n) {
    const auto size = static_cast<std::size_t>(dimms[order[n]].size_bytes / unit);
    for (std::size_t sum = cells; sum-- > size;)
      if (fewest[sum - size] != never && fewest[sum - size] + 1 < fewest[sum]) {
        fewest[sum] = fewest[sum - size] + 1;
        took[n][sum] = true;
      }
  }
  auto sum = cells - 1;
  while (fewest[sum] == never)
    --sum;
  for (std::size_t n = order.size(); n-- > 0;)
    if (took[n][sum]) {
      chosen.push_back(order[n]);
      sum -= static_cast<std::size_t>(dimms[order[n]].size_bytes / unit);
    }
  std::ranges::reverse(chosen); // newest first
  return chosen;
}

} // namespace caisson::memory_hotplug
