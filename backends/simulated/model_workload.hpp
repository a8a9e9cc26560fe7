#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "backends/simulated/model_machine.hpp"
#include "messages/agent.pb.h"

namespace caisson::backends::simulated {

/// The workload's control group in a model guest: what its commands hold for good, and the limits. A command that wants
/// more than memory.high is throttled: it waits, and that is pressure. One that wants more than memory.max or than the
/// guest has is killed, as a kernel would do.
class model_workload {
public:
  explicit model_workload(model_machine& machine) : machine_{machine} {}

  void want(std::uint64_t command, std::uint64_t bytes);
  void let_go(std::uint64_t command);

  struct news {
    std::vector<std::uint64_t> satisfied; ///< hold all that they wanted
    std::vector<std::uint64_t> killed;
    bool stalls = false; ///< somebody waits for memory
  };
  /// Gives to those who want what they may have now. To be called after each change of the limits or of the machine.
  news settle();

  void set_limits(const v1::SetWorkloadLimits& wanted);

  [[nodiscard]] std::uint64_t held_bytes() const noexcept;
  [[nodiscard]] std::uint64_t high_bytes() const noexcept { return high_; }
  void add_facts(v1::AgentFacts& facts) const;

private:
  struct holder {
    std::uint64_t wanted = 0, held = 0;
    bool told = false;
  };
  model_machine& machine_;
  std::map<std::uint64_t, holder> holders_;
  std::uint64_t high_ = 0, max_ = 0; // 0: none
  std::uint32_t cpu_milli_ = 0;
};

} // namespace caisson::backends::simulated
