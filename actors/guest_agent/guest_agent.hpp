#pragma once

/// GUEST_AGENT: the channel to one guest. Owns the link, pairs requests with replies, and answers each request in
/// bounded time: with the reply, with `guest_unresponsive` when the guest stays silent, or with why the link is lost.

#include <chrono>
#include <functional>
#include <unordered_map>

#include "actors/guest_agent/guest_link.hpp"
#include "messages/ports.hpp"

namespace caisson {

struct guest_agent_settings {
  pipe_opener* channels = nullptr;            ///< outlives the actor
  std::function<std::uint64_t()> random;      ///< for epochs; seeded in a simulation
  std::chrono::milliseconds patience{90'000}; ///< for one reply; over the agent's own longest wait
};

struct guest_agent_state {
  static constexpr auto name = "guest_agent";
  guest_agent_settings settings;
  guest_listener listener;
  guest_link_ptr link;
  std::uint64_t link_number = 0; ///< messages of older links are dropped
  caf::typed_response_promise<v1::AgentHello> connecting;
  std::unordered_map<std::uint64_t, caf::typed_response_promise<v1::AgentReply>> waiting;
};

guest_agent_actor::behavior_type guest_agent(guest_agent_actor::stateful_pointer<guest_agent_state> self,
                                             guest_agent_settings settings, guest_listener listener);

/// The facts of a reply, or the failure as an error (`doing` says what was asked).
caf::error failure_of(const v1::AgentReply& reply, std::string_view doing);

} // namespace caisson
