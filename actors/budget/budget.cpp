#include "actors/budget/budget.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "messages/validate.hpp"

namespace caisson::budget {
namespace {

constexpr std::uint64_t mib = std::uint64_t{1} << 20;

std::uint64_t percent_of(std::uint64_t bytes, std::uint32_t percent) {
  return bytes / 100 * percent + bytes % 100 * percent / 100; // no host has enough for it to wrap
}

std::uint64_t less(std::uint64_t a, std::uint64_t b) {
  return a - std::min(a, b);
}

} // namespace

void book::holds(const std::string& sandbox_id, std::uint64_t bytes) {
  if (auto at = entries_.find(sandbox_id); at != entries_.end())
    at->second.held = bytes;
}

std::optional<refusal> book::promise(const std::string& sandbox_id, std::uint64_t bytes, const host_memory& host,
                                     const limits& within, const std::string& what, bool dry_run) {
  const auto known = entries_.find(sandbox_id);
  const entry mine = known == entries_.end() ? entry{} : known->second;
  std::uint64_t held = mine.held, others = 0, owed = 0;
  std::size_t creditors = 0;
  for (const auto& [id, e] : entries_) {
    if (id == sandbox_id)
      continue;
    held += e.held;
    others += std::max(e.promised, e.held);
    owed += less(e.promised, e.held);
    creditors += e.promised > e.held;
  }
  const auto capacity = less(host.available_bytes + held, within.reserve_bytes);
  const auto may = percent_of(capacity, within.overcommit_percent);
  const auto needs = others + std::max(bytes, mine.held);
  if (bytes > mine.promised && needs > may) {
    refusal no;
    no.short_by_bytes = needs - may;
    no.text = fmt::format(
        "{} needs {} of the host's memory{}, and that is {} more than the host can still promise: it has {} available, "
        "keeps {} back (host_reserve_mib), and owes {} to {} other sandbox{}{}. Stop or shrink a sandbox, ask for less, "
        "or change host_reserve_mib or overcommit in [runtime.caisson]",
        what.empty() ? "this" : what, show_bytes(bytes),
        mine.held > 0 ? fmt::format(" ({} of it taken already)", show_bytes(mine.held)) : "",
        show_bytes(no.short_by_bytes), show_bytes(host.available_bytes), show_bytes(within.reserve_bytes),
        show_bytes(owed), creditors, creditors == 1 ? "" : "es",
        within.overcommit_percent == 100
            ? ""
            : fmt::format(", with overcommit {}.{:02}", within.overcommit_percent / 100, within.overcommit_percent % 100));
    return no;
  }
  if (!dry_run)
    entries_[sandbox_id].promised = bytes;
  return std::nullopt;
}

void book::state(const std::string& sandbox_id, std::uint64_t bytes) {
  if (bytes == 0)
    entries_.erase(sandbox_id);
  else
    entries_[sandbox_id].promised = bytes;
}

std::uint64_t book::promised_bytes(const std::string& sandbox_id) const {
  const auto at = entries_.find(sandbox_id);
  return at == entries_.end() ? 0 : at->second.promised;
}

std::uint64_t book::promised_bytes() const {
  std::uint64_t sum = 0;
  for (const auto& [id, e] : entries_)
    sum += e.promised;
  return sum;
}

std::uint64_t book::owed_bytes() const {
  std::uint64_t sum = 0;
  for (const auto& [id, e] : entries_)
    sum += less(e.promised, e.held);
  return sum;
}

v1::HostBudget book::figures(const host_memory& host, const limits& within) const {
  v1::HostBudget b;
  b.set_total_bytes(host.total_bytes);
  b.set_available_bytes(host.available_bytes);
  b.set_reserve_bytes(within.reserve_bytes);
  b.set_overcommit_percent(within.overcommit_percent);
  b.set_promised_bytes(promised_bytes());
  b.set_owed_bytes(owed_bytes());
  return b;
}

std::uint64_t overhead_bytes(const v1::Capabilities& can) {
  if (can.host_overhead_bytes() > 0)
    return can.host_overhead_bytes();
  return can.accelerator() == "tcg" ? 384 * mib : 128 * mib;
}

v1::PromiseMemory statement(const std::string& sandbox_id, std::uint64_t bytes) {
  v1::PromiseMemory so;
  so.set_sandbox_id(sandbox_id);
  so.set_bytes(bytes);
  return so;
}

std::uint64_t promise_bytes(const v1::VmSpec& spec, const v1::Capabilities& can, std::uint64_t target_bytes) {
  return (spec.hugepages() ? 0 : target_bytes) + overhead_bytes(can);
}

std::uint64_t limit_slack_bytes(const v1::Capabilities& can) {
  return can.accelerator() == "tcg" ? 1152 * mib : 128 * mib;
}

} // namespace caisson::budget
