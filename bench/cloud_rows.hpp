#pragma once

/// What the two tiers of the Cloud Hypervisor benchmark share: the sizes, the bound and the rows.

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string>

#include "bench/measure.hpp"

namespace caisson::bench {

inline constexpr std::uint64_t boot = 256 * mib;
inline constexpr std::uint64_t sizes_mib[] = {128, 1024, 4096};
inline constexpr double ratio_bound = 1.25, slack_ms = 30;

inline std::string text_of(std::uint64_t size_mib) {
  return size_mib < 1024 ? fmt::format("{} MiB", size_mib) : fmt::format("{} GiB", size_mib / 1024);
}

/// What both sides took for one verb.
struct measured {
  series raw, ours;

  nlohmann::json row(const std::string& what) const {
    const auto ratio = ours.median() / raw.median();
    return {{"what", what},
            {"raw_ms", raw.median()},
            {"raw_range_ms", {raw.least(), raw.most()}},
            {"caisson_ms", ours.median()},
            {"caisson_range_ms", {ours.least(), ours.most()}},
            {"ratio", ratio},
            {"bound", fmt::format("{}x or +{} ms", ratio_bound, slack_ms)},
            {"within", ratio <= ratio_bound || ours.median() <= raw.median() + slack_ms},
            {"pairs", raw.values.size()}};
  }
};

} // namespace caisson::bench
