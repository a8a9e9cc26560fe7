#pragma once

#include "config/host_facts.hpp"

namespace caisson::engine {

/// This host as the engine's configuration sees it: what config::read_host_facts() finds, and the registry's backends.
config::host_facts config_facts();

} // namespace caisson::engine
