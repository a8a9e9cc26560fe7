#pragma once

#include "guest/agent/event_loop.hpp"
#include "guest/agent/sysfs_writer.hpp"
#include "messages/agent.pb.h"

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

namespace caisson::agent {

/// Brings memory and processors online, and answers AwaitMemory and SetOnlineCpus when their mark is reached or their
/// wait is over, always with the facts as they are then. Ticks only while a wait is pending; news from the kernel
/// (uevents) makes it look at once.
class hotplug {
public:
  struct settings {
    bool may_change = false; ///< false: only looks (an agent under test on somebody's machine)
    std::uint64_t boot_mem_total_bytes = 0;
  };
  using answer = std::function<void(std::uint64_t request_id, const v1::AgentFacts& facts)>;

  hotplug(event_loop& loop, settings s, answer on_answer);

  [[nodiscard]] v1::AgentFacts facts() const;

  /// False: too many waits.
  bool await_memory(std::uint64_t request_id, const v1::AwaitMemory& wanted);
  bool set_online_cpus(std::uint64_t request_id, const v1::SetOnlineCpus& wanted);

  void on_memory_event();
  void on_cpu_event();
  bool on_exit(pid_t pid, int status) { return writer_.on_exit(pid, status); }

  /// The host has gone: nobody waits any more.
  void forget_waits();

private:
  using clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds tick_every{20};
  static constexpr std::chrono::milliseconds settle_for{200};
  static constexpr std::uint32_t wait_ms_max = 60'000;
  static constexpr std::size_t waits_max = 64;

  struct memory_wait {
    std::uint64_t request_id;
    std::uint64_t at_least, at_most;
    clock::time_point deadline;
    clock::time_point reached_at{}; // when the mark was first seen reached
  };
  struct cpu_wait {
    std::uint64_t request_id;
    std::uint32_t online;
    clock::time_point deadline;
    clock::time_point not_before; // after a refused write the next try waits a little
    bool tried;
  };

  void online_memory();
  void step_memory();
  void step_cpus();
  void answer_cpus();
  void tick();

  event_loop& loop_;
  settings settings_;
  answer on_answer_;
  sysfs_writer writer_;
  bool memory_job_ = false;
  bool memory_again_ = false;
  bool cpu_job_ = false;
  bool ticking_ = false;
  std::vector<memory_wait> memory_waits_;
  std::optional<cpu_wait> cpu_wait_;
};

} // namespace caisson::agent
