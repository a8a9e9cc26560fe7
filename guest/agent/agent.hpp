#pragma once

#include "guest/agent/event_loop.hpp"
#include "guest/agent/hotplug.hpp"
#include "guest/agent/listener.hpp"
#include "guest/agent/processes.hpp"
#include "guest/agent/transport.hpp"
#include "guest/agent/uevents.hpp"
#include "guest/agent/workload.hpp"
#include "guest/protocol/guest_session.hpp"

#include <memory>
#include <optional>
#include <string>

namespace caisson::agent {

struct agent_settings {
  bool is_init = false;  ///< false: an ordinary process under test; nothing of the machine is changed
  std::uint64_t boot_mem_total_bytes = 0;
  std::string workload_cgroup;     ///< its directory; init makes it
  std::string overcommit_memory;   ///< where the kernel's vm.overcommit_memory is; "": it is left alone
  bool may_change_blocks = false;  ///< for tests, with a memory root of their own (facts.hpp)
};

/// The agent: joins the channel's session, the commands and the hotplug waits in one loop.
class agent {
public:
  explicit agent(agent_settings settings);

  /// Serves as process 1: on the virtio-serial port as soon as it appears, or on the vsock connections of the host.
  /// Returns never.
  void run();

  /// For tests: serves on this connected socket until it ends.
  void run_on(unique_fd channel);

  /// For tests: serves on the connections of this listening socket, for ever.
  void run_behind(unique_fd listening);

private:
  void use_channel(unique_fd channel, transport::kind what);
  void forget_host();
  void listen_on(unique_fd listening);
  void look_for_port();
  v1::AgentFacts facts() const;
  void on_open();
  void on_request(const v1::AgentRequest& request);
  void reply(v1::AgentReply answer);
  void answer_facts(std::uint64_t id, const v1::AgentFacts& facts);
  void answer_blocks(std::uint64_t id, const v1::AgentBlocks& blocks);
  void answer_failure(std::uint64_t id, const v1::AgentFailure& failure);
  void on_uevent(const uevents::event& event);
  void tell_changes();
  void on_signal(int number);
  void reap();
  void watch_signals();
  void watch_kernel_log();
  void read_kernel_log();

  agent_settings settings_;
  event_loop loop_;
  guest_protocol::guest_session session_;
  processes processes_;
  hotplug hotplug_;
  workload workload_;
  std::optional<uevents> uevents_;
  std::optional<listener> listener_;
  std::optional<transport> transport_;
  unique_fd signals_, kernel_log_;
  bool change_timer_ = false;
  std::string told_facts_;
  std::uint32_t oom_notices_left_ = 0;
  bool oom_timer_ = false;
};

} // namespace caisson::agent
