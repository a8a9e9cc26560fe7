#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

/// How big a sandbox is, from the configuration and the limits of its containers. Pure arithmetic, in bytes and in
/// thousandths of a vCPU.
///
///   what             | add (Kata)                      | share (the secure-container page)
///   memory           | default + sum of limits         | max(default, sum of limits), at least 1 GiB, at most 256 GiB
///   vCPUs            | ceil(default + sum of quota / period); without any quota: ceil(default) + processors in the
///   cpusets
///
/// Dynamic sizing boots with the defaults and reaches the figures above once the guest answers. Static sizing boots
/// with them; where overheads are set they stand in for the defaults, for each resource that has a limit. (Kata's Rust
/// runtime gives a pod that limits only its processors a VM of `overhead_memory` alone, 32 MiB; here it keeps
/// default_memory.) Limits <= 0 do not count. Hugepage limits add to memory.
namespace caisson::config {

inline constexpr std::uint64_t mib = std::uint64_t{1} << 20;
inline constexpr std::uint64_t share_floor_bytes = std::uint64_t{1} << 30;
inline constexpr std::uint64_t share_ceiling_bytes = std::uint64_t{256} << 30;

enum class sizing_rule : std::uint8_t { add, share };

struct container_limits {
  std::int64_t memory_bytes = 0;
  std::int64_t hugepage_bytes = 0;
  std::int64_t cpu_quota_us = 0;
  std::int64_t cpu_period_us = 0;
  std::string_view cpuset; ///< "0-3,7"
};

struct sizing_base {
  sizing_rule rule = sizing_rule::add;
  bool static_sizing = false;
  std::uint64_t default_memory_bytes = 0;
  std::uint32_t default_vcpus_milli = 1000;
  std::optional<std::uint64_t> overhead_memory_bytes;
  std::optional<std::uint32_t> overhead_vcpus_milli;
};

struct sandbox_size {
  std::uint64_t boot_memory_bytes = 0;
  std::uint32_t boot_vcpus_milli = 0;
  std::uint64_t target_memory_bytes = 0; ///< once the guest answers; equals boot where nothing is to be added
  std::uint32_t target_vcpus_milli = 0;
  bool above_ceiling = false; ///< share: the limits ask for more than 256 GiB; target is the ceiling
};

/// Saturates instead of overflowing.
sandbox_size size_sandbox(const sizing_base& base, std::span<const container_limits> limits);

/// Number of processors in "0-3,7,9-9"; nothing: not a cpuset. Empty text: 0. Processor numbers up to 8191; a processor
/// that is named twice counts once.
std::optional<std::uint32_t> count_cpuset(std::string_view text);

/// Whole vCPUs for thousandths; at least 1.
std::uint32_t whole_vcpus(std::uint32_t milli);

} // namespace caisson::config
