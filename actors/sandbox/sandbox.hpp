#pragma once

/// SANDBOX: the life of one sandbox. Owns its VM's backend actor, the channel to its guest and the two hotplug actors;
/// keeps its record in the journal. Every change of state is durable before anybody is told of it.
///
/// Handlers are one line each in sandbox.cpp; what they do is in boot.cpp (creating), ending.cpp (stop, remove, a VM
/// that is gone), operations.cpp (resizes), promises.cpp (what it may take of the host)
/// and recovery.cpp (after a restart of the engine).

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "actors/sandbox/console_ring.hpp"
#include "backends/backend.hpp"
#include "messages/ports.hpp"

namespace caisson::sandbox {

using std::chrono::milliseconds;

/// Whom a sandbox tells that it is gone.
using last_word_listener = caf::typed_actor<caf::reacts_to<v1::SandboxStatus>>;

struct settings {
  journal_actor journal;
  events_actor events;
  host_actor host;
  budget_actor budget;                  ///< nobody: memory is promised without limit
  bool modelled_memory_counts = false;  ///< promises also for a VM whose memory is a model's figures: in a simulation
  backends::provider* provider = nullptr; ///< of the record's hypervisor; outlives the actor
  last_word_listener engine;
  std::function<std::uint64_t()> random;
  std::function<std::int64_t()> now_unix_ms;
  std::string host_boot_id;
  std::string log_directory; ///< "" saves no console text
  milliseconds verb_deadline{30'000};
  milliseconds describe_deadline{90'000}; ///< the first one on a host probes accelerator and VMM
  milliseconds create_deadline{60'000};
  milliseconds agent_deadline{60'000}; ///< where the configuration says nothing
  milliseconds stop_grace{10'000};
  milliseconds operation_deadline{180'000};
  milliseconds refresh_deadline{2'000}; ///< for the figures of a status
};

struct state {
  static constexpr auto name = "sandbox";

  settings set;
  v1::SandboxRecord record;
  v1::VmObserved observed; ///< last read back
  v1::Capabilities capabilities;
  v1::AgentHello hello; ///< of the last connection
  bool agent_connected = false;
  bool hotplug_told = false;        ///< the hotplug actors know VM and guest
  bool failing = false;  ///< the boot is being undone
  bool cleaning = false; ///< the VM is being destroyed; its death is no news
  bool power_off_sent = false;
  bool finishing = false; ///< the last word is being written
  std::uint64_t host_bytes = 0;
  std::uint64_t promised_bytes = 0;           ///< by the budget
  std::multiset<std::uint64_t> asking_memory; ///< targets that the budget was asked for and has not answered yet
  std::uint64_t cgroup_limit_bytes = 0;       ///< last asked of the host's cgroup
  bool cgroup_made = false, cgroup_missed = false;
  bool autosize_refused = false; ///< by the budget, and told; until it is given something again
  std::uint32_t reconnects = 0;
  std::int64_t last_oom_unix_ms = 0;
  std::vector<std::string> warnings;

  backend_actor backend;
  guest_agent_actor agent;
  memory_hotplug_actor memory;
  vcpu_hotplug_actor vcpus;
  std::shared_ptr<console_ring> console;
  v1::MemoryStatus memory_status;
  v1::VcpuStatus vcpu_status;

  std::int64_t boot_started_unix_ms = 0;
  caf::typed_response_promise<v1::SandboxStatus> booting;
  v1::Error boot_error;  ///< what `booting` gets once everything is undone
  std::vector<caf::typed_response_promise<v1::SandboxStatus>> stopping;
  std::vector<caf::typed_response_promise<v1::SandboxStatus>> removing;
  std::vector<std::function<void()>> parked; ///< requests that came during a recovery
  bool remove_wanted = false;

  struct running_operation {
    v1::Operation operation;
    int parts_open = 0;
    std::vector<v1::HotplugOutcome> outcomes;
    std::vector<caf::typed_response_promise<v1::Operation>> waiting;
    std::int64_t last_progress_unix_ms = 0;
  };
  std::map<std::string, running_operation> operations;
  std::deque<std::string> ended_operations; ///< oldest first; bounded
  std::uint64_t operations_begun = 0;
  int memory_accepted = 0, vcpus_accepted = 0; ///< targets that are being journalled and have not begun
  bool explaining = false; ///< the VM is gone, and the host is asked why
  std::string gone_why;    ///< what was found
  std::vector<std::function<void()>> when_explained;

  std::map<std::uint64_t, std::function<void()>> timers;
  std::uint64_t last_timer = 0;
};

sandbox_actor::behavior_type sandbox(sandbox_actor::stateful_pointer<state> self, settings set);

} // namespace caisson::sandbox
