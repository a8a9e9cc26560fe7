#pragma once

/// ENGINE: registry and supervisor of all sandboxes of a state directory. Creates them, finds them again after a
/// restart, and passes on what is asked of them by id or name.

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "actors/sandbox/sandbox.hpp"
#include "actors/sandbox/spec.hpp"
#include "backends/backend.hpp"
#include "messages/ports.hpp"

namespace caisson {

struct engine_settings {
  sandbox::settings sandbox; ///< what every sandbox gets; `provider` and `engine` are filled in
  config_actor config;
  /// The provider of a registry line; made at first use, kept. nullptr and `why` where it cannot be.
  std::function<backends::provider*(const std::string& name, std::string& why)> provider;
  /// Caisson's own guest for an architecture. An error says how to make it.
  std::function<caf::error(const std::string& architecture, const std::string& directory, sandbox::guest_assets& into)>
      guest;
  /// Backends that may hold VMs of a lost journal: their unknown VMs are destroyed at the start.
  std::vector<std::string> sweep;
  v1::EngineStatus about; ///< what GetEngine answers; counts are filled in
  std::uint32_t most_sandboxes = 100'000;
  std::function<void(std::size_t)> count_changed; ///< optional; sandboxes in any state but REMOVED
};

struct engine_state {
  static constexpr auto name = "engine";

  struct entry {
    std::string id, name;
    sandbox_actor actor;
    std::int64_t created_unix_ms = 0;
    std::string idempotency_key;
  };

  engine_settings set;
  v1::SandboxConfig limits;         ///< the default configuration's reserve and overcommit, as last read
  std::int64_t limits_unix_ms = 0;  ///< when
  std::map<std::string, entry> sandboxes;         ///< by id
  std::map<std::string, std::string> ids_by_name; ///< reserved as soon as a creation is accepted
};

engine_actor::behavior_type engine_keeper(engine_actor::stateful_pointer<engine_state> self, engine_settings set,
                                          v1::JournalContents found);

} // namespace caisson
