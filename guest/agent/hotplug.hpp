#pragma once

#include "guest/agent/event_loop.hpp"
#include "guest/agent/sysfs_writer.hpp"
#include "messages/agent.pb.h"

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace caisson::agent {

/// Brings memory and processors online, and answers AwaitMemory and SetOnlineCpus when their mark is reached or their
/// wait is over, always with the facts as they are then. What OfflineMemory took offline stays so until it leaves, until
/// AwaitMemory asks for all memory again, or until the host has gone. Ticks only while a wait is pending; news from the kernel
/// (uevents) makes it look at once.
class hotplug {
public:
  struct settings {
    bool may_change_cpus = false; ///< false: only looks (an agent under test on somebody's machine)
    bool may_change_blocks = false;
  };
  using answer = std::function<void(std::uint64_t request_id, const v1::AgentFacts& facts)>;

  using blocks_answer = std::function<void(std::uint64_t request_id, const v1::AgentBlocks& blocks)>;

  /// `facts` is asked for all that an answer shows.
  hotplug(event_loop& loop, settings s, std::function<v1::AgentFacts()> facts, answer on_answer, blocks_answer on_blocks);

  /// False: too many waits.
  bool await_memory(std::uint64_t request_id, const v1::AwaitMemory& wanted);
  bool set_online_cpus(std::uint64_t request_id, const v1::SetOnlineCpus& wanted);

  [[nodiscard]] v1::AgentBlocks blocks(std::uint64_t address, std::uint64_t size_bytes) const;

  /// False: another part is on its way, or nothing may be changed.
  bool offline_memory(std::uint64_t request_id, const v1::OfflineMemory& wanted);

  void on_memory_event();
  void on_cpu_event();
  bool on_exit(pid_t pid, int status) { return writer_.on_exit(pid, status) || offliner_.on_exit(pid, status); }

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

  struct offline_job {
    std::uint64_t request_id; // 0: the host that asked has gone
    v1::OfflineMemory wanted;
    std::vector<std::string> names; // of the blocks that were online
  };

  void offline_done(int failed);
  void offline_answer(const std::string& why);
  void release_blocks();
  void forget_gone_blocks();
  void online_memory();
  void step_memory();
  void step_cpus();
  void answer_cpus();
  void tick();

  event_loop& loop_;
  settings settings_;
  std::function<v1::AgentFacts()> facts_;
  answer on_answer_;
  blocks_answer on_blocks_;
  sysfs_writer writer_, offliner_;
  bool memory_job_ = false;
  bool memory_again_ = false;
  bool cpu_job_ = false;
  bool ticking_ = false;
  std::vector<memory_wait> memory_waits_;
  std::optional<cpu_wait> cpu_wait_;
  std::optional<offline_job> offline_job_;
  std::set<std::string> held_; // blocks that are to stay offline
  std::uint64_t holds_ = 0;
};

} // namespace caisson::agent
