#include "backends/simulated/model_workload.hpp"

#include <algorithm>

namespace caisson::backends::simulated {
namespace {

std::uint64_t up_to(std::uint64_t limit, std::uint64_t held) {
  if (limit == 0)
    return UINT64_MAX;
  return limit > held ? limit - held : 0;
}

} // namespace

std::uint64_t model_workload::held_bytes() const noexcept {
  std::uint64_t sum = 0;
  for (const auto& [id, h] : holders_)
    sum += h.held;
  return sum;
}

void model_workload::want(std::uint64_t command, std::uint64_t bytes) {
  holders_[command].wanted = bytes;
}

void model_workload::let_go(std::uint64_t command) {
  holders_.erase(command);
  machine_.set_workload_bytes(held_bytes());
}

model_workload::news model_workload::settle() {
  news n;
  for (auto at = holders_.begin(); at != holders_.end();) {
    auto& h = at->second;
    const auto held = held_bytes();
    const auto under_high = up_to(high_, held), under_max = up_to(max_, held);
    const auto more = std::min({h.wanted - h.held, under_high, under_max, machine_.mem_available_bytes()});
    h.held += more;
    machine_.set_workload_bytes(held + more);
    const bool lacks = h.held < h.wanted;
    if (lacks && up_to(high_, held + more) > 0) {
      n.killed.push_back(at->first);
      at = holders_.erase(at);
      machine_.set_workload_bytes(held_bytes());
      continue;
    }
    n.stalls = n.stalls || lacks;
    if (!lacks && !h.told) {
      h.told = true;
      n.satisfied.push_back(at->first);
    }
    ++at;
  }
  return n;
}

void model_workload::set_limits(const v1::SetWorkloadLimits& wanted) {
  if (wanted.has_high_bytes())
    high_ = wanted.high_bytes();
  if (wanted.has_max_bytes() && (wanted.max_bytes() == 0 || held_bytes() <= wanted.max_bytes()))
    max_ = wanted.max_bytes();
  if (wanted.has_cpu_milli())
    cpu_milli_ = wanted.cpu_milli();
}

void model_workload::add_facts(v1::AgentFacts& facts) const {
  auto& memory = *facts.mutable_memory();
  memory.set_workload_bytes(held_bytes());
  memory.set_workload_high_bytes(high_);
  memory.set_workload_max_bytes(max_);
  facts.set_cpu_quota_milli(cpu_milli_);
}

} // namespace caisson::backends::simulated
