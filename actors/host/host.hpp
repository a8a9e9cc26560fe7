#pragma once

/// HOST: the few things that block on files and /proc, kept out of the other actors. Production spawns it detached.

#include "messages/ports.hpp"

namespace caisson {

host_actor::behavior_type host_worker(host_actor::pointer self);

} // namespace caisson
