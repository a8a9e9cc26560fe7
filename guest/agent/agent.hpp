#pragma once

#include "guest/agent/event_loop.hpp"
#include "guest/agent/hotplug.hpp"
#include "guest/agent/processes.hpp"
#include "guest/agent/transport.hpp"
#include "guest/agent/uevents.hpp"
#include "guest/protocol/guest_session.hpp"

#include <memory>
#include <optional>
#include <string>

namespace caisson::agent {

struct agent_settings {
  bool is_init = false;  ///< false: an ordinary process under test; nothing of the machine is changed
  std::uint64_t boot_mem_total_bytes = 0;
};

/// The agent: joins the channel's session, the commands and the hotplug waits in one loop.
class agent {
public:
  explicit agent(agent_settings settings);

  /// Serves on this channel (tests), or on the virtio-serial port as soon as it appears (init). Returns never as init.
  void run(unique_fd channel);

private:
  void use_channel(unique_fd channel);
  void look_for_port();
  void on_open();
  void on_request(const v1::AgentRequest& request);
  void reply(v1::AgentReply answer);
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
  std::optional<uevents> uevents_;
  std::optional<transport> transport_;
  unique_fd signals_, kernel_log_;
  bool change_timer_ = false;
  std::string told_facts_;
  std::uint32_t oom_notices_left_ = 0;
  bool oom_timer_ = false;
};

} // namespace caisson::agent
