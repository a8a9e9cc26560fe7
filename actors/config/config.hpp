#pragma once

/// CONFIG: resolves a sandbox's configuration and keeps the default file's last good content. The reasoning is in
/// config/.

#include <functional>

#include "config/resolve.hpp"
#include "messages/ports.hpp"

namespace caisson {

struct config_state {
  static constexpr auto name = "config";
  config::host_facts host;
  v1::ResolvedConfig last; ///< of the default file; for the differences of a reload
};

/// `host` has the registry's backends in it. Reading a few small files is done in the handler: they are local and
/// bounded.
config_actor::behavior_type config_keeper(config_actor::stateful_pointer<config_state> self, config::host_facts host);

} // namespace caisson
