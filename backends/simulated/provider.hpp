#pragma once

/// The registry line "simulated": a real backend whose VMs are models in this process (world.hpp). For trying Caisson
/// out without a hypervisor, for deterministic simulations, for benchmarks of the engine alone.

#include <memory>

#include "backends/backend.hpp"
#include "backends/simulated/world.hpp"

namespace caisson::backends::simulated {

/// Over the world of the environment's state directory (world_of), with the faults of CAISSON_SIMULATED_FAULTS.
std::unique_ptr<provider> make_simulated(const environment& e);

/// Over a given world. A provider that ends leaves the machines as they are; another one finds them.
std::unique_ptr<provider> make_simulated(caf::actor_system& system, std::shared_ptr<world> where);

} // namespace caisson::backends::simulated
