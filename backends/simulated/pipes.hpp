#pragma once

/// Byte pipes into a simulated world. Every piece of bytes crosses an actor of its connection, so that a seeded scheduler
/// interleaves it with everything else; no thread and no descriptor is involved.

#include <caf/all.hpp>

#include <functional>
#include <memory>
#include <string>

#include "backends/simulated/world.hpp"
#include "messages/local.hpp"

namespace caisson::backends::simulated {

struct job {
  std::function<void()> work;
};

/// An executor that is an actor: each function is a message.
class actor_executor final : public executor {
public:
  explicit actor_executor(caf::actor_system& system);
  ~actor_executor() override;
  void post(std::function<void()> work) override;

private:
  caf::actor runner_;
};

class world_opener final : public pipe_opener {
public:
  world_opener(caf::actor_system& system, std::shared_ptr<world> where, world::user_id user);
  void open(const std::string& endpoint, std::function<void(std::unique_ptr<byte_pipe>, std::string error)> done) override;
  executor& runs_on() override { return *executor_; }

private:
  caf::actor_system& system_;
  std::shared_ptr<world> world_;
  world::user_id user_;
  std::shared_ptr<actor_executor> executor_;
};

} // namespace caisson::backends::simulated

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(caisson::backends::simulated::job)
