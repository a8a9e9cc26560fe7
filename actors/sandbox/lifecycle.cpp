#include "actors/sandbox/lifecycle.hpp"

#include <array>

namespace caisson::sandbox {
namespace {

using enum happening;

struct move {
  v1::SandboxState from;
  happening what;
  v1::SandboxState to;
};

constexpr std::array moves{
    move{v1::SANDBOX_STATE_CREATING, agent_answered, v1::SANDBOX_STATE_RUNNING},
    move{v1::SANDBOX_STATE_CREATING, boot_failed, v1::SANDBOX_STATE_REMOVED},
    move{v1::SANDBOX_STATE_RUNNING, pause_done, v1::SANDBOX_STATE_PAUSED},
    move{v1::SANDBOX_STATE_RUNNING, stop_asked, v1::SANDBOX_STATE_STOPPING},
    move{v1::SANDBOX_STATE_RUNNING, vm_gone_unasked, v1::SANDBOX_STATE_FAILED},
    move{v1::SANDBOX_STATE_RUNNING, guest_powered_off, v1::SANDBOX_STATE_STOPPED},
    move{v1::SANDBOX_STATE_PAUSED, resume_done, v1::SANDBOX_STATE_RUNNING},
    move{v1::SANDBOX_STATE_PAUSED, stop_asked, v1::SANDBOX_STATE_STOPPING},
    move{v1::SANDBOX_STATE_PAUSED, vm_gone_unasked, v1::SANDBOX_STATE_FAILED},
    move{v1::SANDBOX_STATE_STOPPING, vm_gone_as_asked, v1::SANDBOX_STATE_STOPPED},
    move{v1::SANDBOX_STATE_RECOVERING, agent_answered, v1::SANDBOX_STATE_RUNNING},
    move{v1::SANDBOX_STATE_RECOVERING, pause_done, v1::SANDBOX_STATE_PAUSED},
    move{v1::SANDBOX_STATE_RECOVERING, stop_asked, v1::SANDBOX_STATE_STOPPING},
    move{v1::SANDBOX_STATE_RECOVERING, vm_gone_unasked, v1::SANDBOX_STATE_FAILED},
    move{v1::SANDBOX_STATE_RUNNING, engine_started, v1::SANDBOX_STATE_RECOVERING},
    move{v1::SANDBOX_STATE_PAUSED, engine_started, v1::SANDBOX_STATE_RECOVERING},
    move{v1::SANDBOX_STATE_RECOVERING, engine_started, v1::SANDBOX_STATE_RECOVERING},
    move{v1::SANDBOX_STATE_STOPPING, engine_started, v1::SANDBOX_STATE_STOPPING},
    move{v1::SANDBOX_STATE_STOPPED, removed, v1::SANDBOX_STATE_REMOVED},
    move{v1::SANDBOX_STATE_FAILED, removed, v1::SANDBOX_STATE_REMOVED},
};

} // namespace

std::optional<v1::SandboxState> next(v1::SandboxState from, happening what) noexcept {
  for (const auto& m : moves)
    if (m.from == from && m.what == what)
      return m.to;
  return std::nullopt;
}

bool has_vm(v1::SandboxState s) noexcept {
  switch (s) {
  case v1::SANDBOX_STATE_CREATING:
  case v1::SANDBOX_STATE_RUNNING:
  case v1::SANDBOX_STATE_PAUSED:
  case v1::SANDBOX_STATE_STOPPING:
  case v1::SANDBOX_STATE_RECOVERING:
    return true;
  default:
    return false;
  }
}

std::string_view word(v1::SandboxState s) noexcept {
  switch (s) {
  case v1::SANDBOX_STATE_CREATING:
    return "creating";
  case v1::SANDBOX_STATE_RUNNING:
    return "running";
  case v1::SANDBOX_STATE_PAUSED:
    return "paused";
  case v1::SANDBOX_STATE_STOPPING:
    return "stopping";
  case v1::SANDBOX_STATE_STOPPED:
    return "stopped";
  case v1::SANDBOX_STATE_FAILED:
    return "failed";
  case v1::SANDBOX_STATE_REMOVED:
    return "removed";
  case v1::SANDBOX_STATE_RECOVERING:
    return "recovering";
  default:
    return "unknown";
  }
}

} // namespace caisson::sandbox
