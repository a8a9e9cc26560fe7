#include "config/sizing.hpp"

#include <algorithm>
#include <bitset>
#include <charconv>
#include <limits>

namespace caisson::config {
namespace {

constexpr std::uint32_t most_processors = 8192;
using processors = std::bitset<most_processors>;

std::uint64_t plus(std::uint64_t a, std::uint64_t b) {
  return a > std::numeric_limits<std::uint64_t>::max() - b ? std::numeric_limits<std::uint64_t>::max() : a + b;
}

std::uint32_t narrow(std::uint64_t milli) {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(milli, std::numeric_limits<std::uint32_t>::max()));
}

bool add_cpuset(std::string_view text, processors& set) {
  while (!text.empty()) {
    const auto comma = text.find(',');
    auto part = text.substr(0, comma);
    text = comma == text.npos ? std::string_view{} : text.substr(comma + 1);
    if (comma != part.npos && comma != text.npos && text.empty() && part.size() != comma)
      return false;
    std::uint32_t first = 0, last = 0;
    const auto* end = part.data() + part.size();
    auto [p, failed] = std::from_chars(part.data(), end, first);
    if (failed != std::errc{})
      return false;
    last = first;
    if (p != end) {
      if (*p != '-')
        return false;
      auto [q, failed_too] = std::from_chars(p + 1, end, last);
      if (failed_too != std::errc{} || q != end)
        return false;
    }
    if (last < first || last >= most_processors)
      return false;
    for (auto i = first; i <= last; ++i)
      set.set(i);
  }
  return true;
}

} // namespace

std::optional<std::uint32_t> count_cpuset(std::string_view text) {
  processors set;
  if (!add_cpuset(text, set))
    return std::nullopt;
  return static_cast<std::uint32_t>(set.count());
}

std::uint32_t whole_vcpus(std::uint32_t milli) {
  return std::max<std::uint32_t>(1, milli / 1000 + (milli % 1000 ? 1 : 0));
}

sandbox_size size_sandbox(const sizing_base& base, std::span<const container_limits> limits) {
  std::uint64_t memory = 0;
  std::uint64_t quota_milli = 0;
  processors cpusets;
  for (const auto& each : limits) {
    if (each.memory_bytes > 0)
      memory = plus(memory, static_cast<std::uint64_t>(each.memory_bytes));
    if (each.hugepage_bytes > 0)
      memory = plus(memory, static_cast<std::uint64_t>(each.hugepage_bytes));
    if (each.cpu_quota_us > 0 && each.cpu_period_us > 0) {
      // thousandths, rounded up, so that a share of a processor never vanishes
      const auto quota = static_cast<std::uint64_t>(each.cpu_quota_us);
      const auto period = static_cast<std::uint64_t>(each.cpu_period_us);
      const auto whole = quota / period;
      const auto rest = quota % period;
      const auto scaled =
          rest > std::numeric_limits<std::uint64_t>::max() / 1000 ? 1000 : (rest * 1000 + period - 1) / period;
      quota_milli = plus(quota_milli, plus(std::min<std::uint64_t>(whole, 4'000'000) * 1000, scaled));
    }
    processors own;
    if (add_cpuset(each.cpuset, own))
      cpusets |= own;
  }
  const auto wanted_milli = quota_milli ? quota_milli : static_cast<std::uint64_t>(cpusets.count()) * 1000;

  sandbox_size out;
  out.boot_memory_bytes = base.default_memory_bytes;
  out.boot_vcpus_milli = base.default_vcpus_milli;
  out.target_memory_bytes = base.default_memory_bytes;
  out.target_vcpus_milli = base.default_vcpus_milli;
  if (memory) {
    const auto floor =
        base.static_sizing && base.overhead_memory_bytes ? *base.overhead_memory_bytes : base.default_memory_bytes;
    if (base.rule == sizing_rule::add || (base.static_sizing && base.overhead_memory_bytes)) {
      out.target_memory_bytes = plus(floor, memory);
    } else {
      const auto shared = std::max({base.default_memory_bytes, memory, share_floor_bytes});
      out.above_ceiling = shared > share_ceiling_bytes;
      out.target_memory_bytes = std::min(shared, share_ceiling_bytes);
    }
  }
  if (wanted_milli) {
    const auto own =
        base.static_sizing && base.overhead_vcpus_milli ? *base.overhead_vcpus_milli : base.default_vcpus_milli;
    out.target_vcpus_milli = narrow(plus(own, wanted_milli));
  }
  if (base.static_sizing) {
    out.boot_memory_bytes = out.target_memory_bytes;
    out.boot_vcpus_milli = out.target_vcpus_milli;
  }
  return out;
}

} // namespace caisson::config
