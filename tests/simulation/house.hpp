#pragma once

/// What an engine stands in, in a simulation: the machines, the disk, the wall clock. It outlives engines; an engine
/// that is killed is followed by another one over the same house.

#include <cstdint>
#include <memory>
#include <set>
#include <string>

#include "actors/journal/store.hpp"
#include "backends/backend.hpp"
#include "backends/simulated/world.hpp"
#include "messages/ports.hpp"
#include "tests/support/deterministic_system.hpp"

namespace caisson::tests {

/// Between an engine and what outlives it; down when the engine has been killed.
struct fence {
  bool down = false;
};

struct house {
  explicit house(std::uint64_t seed, const backends::simulated::fault_plan& plan);

  std::uint64_t seed;
  std::shared_ptr<backends::simulated::world> world;
  journal_store_ptr journal;
  std::set<std::string> directories;        ///< run directories of sandboxes
  std::uint64_t available_bytes = std::uint64_t{60} << 30; ///< of the host's memory
  std::int64_t unix_ms = 1'700'000'000'000; ///< when the present engine began
};

/// A configuration whose sandboxes follow their load, from 256 MiB to 2 GiB.
const std::string& autosize_config_path();

/// One engine: all its actors under the test scheduler.
class engine_run {
public:
  engine_run(house& h, std::uint64_t seed);
  ~engine_run();
  engine_run(const engine_run&) = delete;
  engine_run& operator=(const engine_run&) = delete;

  /// SIGKILL: from this moment nothing that it does reaches machines, disk or anybody else.
  void kill();

  deterministic_system& sys() { return *sys_; }
  const engine_actor& engine() const { return engine_; }
  backends::provider& provider() { return *provider_; }

private:
  house& house_;
  std::shared_ptr<fence> fence_ = std::make_shared<fence>();
  std::unique_ptr<deterministic_system> sys_;
  std::unique_ptr<backends::provider> provider_;
  caf::actor journal_, events_, config_, host_, budget_;
  engine_actor engine_;
};

} // namespace caisson::tests
