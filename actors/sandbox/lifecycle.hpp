#pragma once

/// The states of a sandbox and the moves between them: one table, no actor.
///
///                 boot fails, VM undone
///      CREATING ───────────────────────────────► REMOVED
///          │ agent answers                          ▲
///          ▼            pause                       │ remove
///      RUNNING ◄──────────────────► PAUSED          │
///        │ ▲            resume        │             │
///        │ │ agent answers            │        STOPPED, FAILED
///        │ RECOVERING ◄─ engine starts│             ▲
///        │   │ VM is gone             │             │
///        │   └────────────────────────┼──► FAILED ──┤
///        ├── stop ──► STOPPING ◄──────┘             │
///        │               └── VM gone ──► STOPPED ───┤
///        └── VM gone unasked ──────────► FAILED ────┘
///
/// STOPPED: the VM is gone as somebody asked, or the guest powered off; FAILED: against everybody's will. In both the
/// record stays until it is removed.

#include <optional>
#include <string_view>

#include "messages/sandbox.pb.h"

namespace caisson::sandbox {

enum class happening {
  agent_answered,
  boot_failed,
  pause_done,
  resume_done,
  stop_asked,
  vm_gone_as_asked,
  vm_gone_unasked,
  guest_powered_off,
  engine_started,
  removed,
};

/// The state after it; nullopt where it cannot happen in this state.
std::optional<v1::SandboxState> next(v1::SandboxState from, happening what) noexcept;

/// A VM exists, or may.
bool has_vm(v1::SandboxState s) noexcept;

/// "running", "stopped", ...: for people and event types.
std::string_view word(v1::SandboxState s) noexcept;

} // namespace caisson::sandbox
