#pragma once

#include "guest/agent/event_loop.hpp"
#include "guest/agent/sysfs_writer.hpp"
#include "guest/agent/unique_fd.hpp"
#include "messages/agent.pb.h"

#include <cstdint>
#include <functional>
#include <string>

namespace caisson::agent {

/// The control group in which all of the workload runs (cgroup v2, /workload): every command starts in its leaf `exec`,
/// the agent stays outside. Without the memory controller there is none: commands run beside the agent, nothing is
/// limited. Until the host sets a limit there is none.
class workload {
public:
  using limits_answer = std::function<void(std::uint64_t request_id, int error_number)>;

  /// `directory`: where the group is, or is to be made. `overcommit`: the kernel's vm.overcommit_memory; "" is none.
  workload(event_loop& loop, std::string directory, std::string overcommit, limits_answer on_limits,
           std::function<void(v1::MemoryPressure)> on_pressure);

  /// Makes the group, below a root that gives its controllers away.
  void make();

  [[nodiscard]] bool usable() const;

  /// The group that commands are started in; "" without one.
  [[nodiscard]] std::string leaf() const;

  void add_facts(v1::AgentFacts& facts) const;

  /// Limits and reclaim as messages/agent.proto says, one request after another; answered by `limits_answer` with 0 or
  /// an errno when it is done or its wait is over. False: too many wait.
  ///
  /// memory.high without a reclaim is that of automatic memory: while it stands a program may ask at once for more than
  /// there is (vm.overcommit_memory 1), as it is slowed down until the rest has come. Without one the kernel's default is
  /// back, if it was changed here.
  bool set_limits(std::uint64_t request_id, const v1::SetWorkloadLimits& wanted);

  /// 0 or an errno. A later watch replaces the earlier one.
  int watch_pressure(const v1::WatchPressure& wanted);

  /// The host has gone: it is told nothing more. Limits stay.
  void forget_host();

  bool on_exit(pid_t pid, int status) { return writer_.on_exit(pid, status); }

private:
  void allow_overcommit(bool on);
  void end_watch();
  void tell_pressure();

  event_loop& loop_;
  std::string directory_, overcommit_;
  bool overcommit_changed_ = false;
  limits_answer on_limits_;
  std::function<void(v1::MemoryPressure)> on_pressure_;
  sysfs_writer writer_;
  unique_fd trigger_;
  std::uint32_t waiting_ = 0;
  std::uint64_t host_ = 0; // answers to a host that has gone are dropped
};

} // namespace caisson::agent
