#pragma once

/// CONFIG: resolves a sandbox's configuration, watches the files that were used, and keeps the last good content of the
/// default file. The reasoning is in config/.
///
/// A file that was named (`run --config F`) is read as it is, and its errors refuse the sandbox. The default file (no
/// name: the search order) is the engine's own: while it has errors, its last good content stays in force and every
/// sandbox made from it says so in its warnings. Each change that is found is an event: `config.changed` with the
/// differences, `config.refused` with everything that is wrong.

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "config/resolve.hpp"
#include "config/tell.hpp"
#include "messages/ports.hpp"

namespace caisson {

struct config_settings {
  config::host_facts host; ///< with the registry's backends
  journal_actor journal;   ///< none: changes are told to nobody
  events_actor events;
  std::function<std::int64_t()> now_unix_ms;
  /// Calls `changed` whenever something in these directories does, until it is called again for the same name; empty: no
  /// watching.
  std::function<void(const std::string& name, std::vector<std::string> directories, std::function<void()> changed)> watch;
};

struct config_state {
  static constexpr auto name = "config";

  struct file {
    config::sources good;        ///< last content without an error
    v1::ResolvedConfig resolved; ///< of it, without annotations and command line
    std::string refused;         ///< first error of what is there now; "": it is good
  };

  config_settings set;
  std::map<std::string, file> files; ///< by the name as asked; "" is the default file; bounded
};

/// Reading a few small files is done in the handler: they are local and bounded.
config_actor::behavior_type config_keeper(config_actor::stateful_pointer<config_state> self, config_settings set);

} // namespace caisson
