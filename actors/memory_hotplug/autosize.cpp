#include "actors/memory_hotplug/autosize.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "actors/memory_hotplug/plan.hpp"
#include "messages/validate.hpp"

namespace caisson::memory_hotplug {
namespace {

constexpr std::uint64_t mib = std::uint64_t{1} << 20;

std::uint64_t less(std::uint64_t a, std::uint64_t b) {
  return a - std::min(a, b);
}

std::uint64_t up(std::uint64_t bytes, std::uint64_t step) {
  return (bytes + step - 1) / step * step;
}

/// A size that the VM can have: up to the next granule, down where up would be above `most_bytes`.
std::uint64_t aligned(std::uint64_t bytes, const autosize_view& seen, std::uint64_t most_bytes) {
  const auto granule = std::max<std::uint64_t>(seen.granule_bytes, 1);
  const auto plugged = up(less(bytes, seen.boot_bytes), granule);
  if (seen.boot_bytes + plugged <= most_bytes)
    return seen.boot_bytes + plugged;
  return seen.boot_bytes + less(most_bytes, seen.boot_bytes) / granule * granule;
}

} // namespace

void autosizer::set(const autosize_policy& policy) {
  policy_ = policy;
  policy_.step_bytes = std::max(policy_.step_bytes, mib);
  policy_.ceiling_bytes = std::max(policy_.ceiling_bytes, policy_.floor_bytes);
  surplus_since_.reset();
  retry_ = {};
  not_before_ = {};
}

void autosizer::pressure(moment now) {
  stalled_ = now;
  surplus_since_.reset();
}

std::optional<autosize_wish> autosizer::look(moment now, const autosize_view& seen) {
  if (!policy_.enabled)
    return std::nullopt;
  const auto& p = policy_;
  // A workload with enough to take stalls for another reason, or for an earlier want.
  const bool stalls = stalled_ && now - *stalled_ < pace_.pressure_lasts &&
                      std::min(seen.available_bytes, seen.room_bytes) < p.headroom_bytes + p.step_bytes;
  const auto rest_most = p.headroom_bytes + 2 * p.step_bytes;

  // How long there has been too much, and how little of it there was at the least.
  const auto surplus = less(seen.available_bytes, p.headroom_bytes + p.step_bytes);
  if (seen.available_bytes <= rest_most || stalls) {
    surplus_since_.reset();
  } else if (!surplus_since_) {
    surplus_since_ = now;
    least_surplus_ = surplus;
  } else {
    least_surplus_ = std::min(least_surplus_, surplus);
  }
  if (seen.busy || now < not_before_)
    return std::nullopt;

  autosize_wish wish;
  const auto least = aligned(p.floor_bytes, seen, p.ceiling_bytes), most = aligned(p.ceiling_bytes, seen, p.ceiling_bytes);
  if (seen.has_bytes < least) {
    wish.target_bytes = least;
    wish.cause = fmt::format("automatic memory: it has {}, below its floor of {}", show_bytes(seen.has_bytes),
                             show_bytes(p.floor_bytes));
    return wish;
  }
  const bool is_short = seen.available_bytes < p.headroom_bytes;
  if ((is_short || stalls) && seen.has_bytes < most) {
    const auto apart = stalls ? pace_.between_growths_under_pressure : pace_.between_growths;
    if (last_growth_ && now - *last_growth_ < apart)
      return std::nullopt;
    auto grow = up(std::max(less(p.headroom_bytes, seen.available_bytes), std::uint64_t{1}), p.step_bytes);
    if (stalls)
      grow *= 2;
    grow = std::min(grow, std::max(most_steps * p.step_bytes, up(p.headroom_bytes, p.step_bytes)));
    wish.target_bytes = aligned(seen.has_bytes + grow, seen, most);
    wish.cause = fmt::format("automatic memory: {} of {} are available to the guest, {} shall be{}",
                             show_bytes(seen.available_bytes), show_bytes(seen.has_bytes), show_bytes(p.headroom_bytes),
                             stalls ? ", and the workload stalls" : "");
    return wish;
  }
  if (!surplus_since_ || now - *surplus_since_ < p.cool_down || seen.has_bytes <= least)
    return std::nullopt;
  const auto give = std::min(least_surplus_ / p.step_bytes * p.step_bytes, seen.has_bytes - least);
  wish.target_bytes = aligned(seen.has_bytes - give, seen, most);
  if (wish.target_bytes >= seen.has_bytes)
    return std::nullopt;
  wish.cause = fmt::format("automatic memory: at least {} of {} were available to the guest for {} s, {} shall be",
                           show_bytes(least_surplus_ + p.headroom_bytes + p.step_bytes), show_bytes(seen.has_bytes),
                           std::chrono::duration_cast<std::chrono::seconds>(now - *surplus_since_).count(),
                           show_bytes(p.headroom_bytes));
  return wish;
}

void autosizer::wished(moment now, const autosize_wish& wish, std::uint64_t has_bytes) {
  wished_from_ = has_bytes;
  if (wish.target_bytes > has_bytes)
    last_growth_ = now;
  surplus_since_.reset();
}

void autosizer::ended(moment now, std::uint64_t has_bytes, bool refused_by_host) {
  if (!wished_from_)
    return;
  if (has_bytes != *wished_from_) {
    retry_ = {};
    not_before_ = now;
  } else {
    retry_ = std::clamp(retry_ * 2, pace_.first_retry, refused_by_host ? pace_.slowest_retry : pace_.slowest_guest_retry);
    not_before_ = now + retry_;
  }
  wished_from_.reset();
  surplus_since_.reset();
}

std::uint64_t workload_high_bytes(std::uint64_t total_bytes, std::uint64_t boot_total_bytes,
                                  std::uint64_t own_use_bytes) {
  const auto map = less(total_bytes, boot_total_bytes) / map_ratio;
  // Below what a plan leaves to the guest no memory could be plugged any more, and a guest swings around its limits.
  const auto reserve = std::clamp(boot_total_bytes / 8, guest_reserve_bytes + 8 * mib, 2 * guest_reserve_bytes);
  return less(total_bytes, own_use_bytes + map + reserve);
}

std::uint64_t own_use_bytes(std::uint64_t boot_total_bytes, std::uint64_t total_bytes, std::uint64_t available_bytes,
                            std::uint64_t workload_bytes) {
  const auto map = less(total_bytes, boot_total_bytes) / map_ratio;
  const auto used = less(total_bytes, available_bytes + workload_bytes + map);
  return std::clamp(used, std::min(32 * mib, boot_total_bytes / 4), boot_total_bytes / 4);
}

} // namespace caisson::memory_hotplug
