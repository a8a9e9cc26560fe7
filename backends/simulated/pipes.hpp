#pragma once

/// Byte pipes into a simulated world. Every piece of bytes crosses an actor of its connection, so that a seeded
/// scheduler interleaves it with everything else; no thread and no descriptor is involved.

#include <caf/all.hpp>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
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
  void post(std::function<void()> work) override;

  /// Nothing runs when it has returned, and nothing will: what is queued may refer to what its owner takes along.
  /// Nothing is sent any more either: an actor system that shuts down destroys queued work under a lock that sending
  /// takes.
  void close();
  bool closed() const { return door_->closed; }

private:
  struct door {
    std::mutex running;
    std::atomic<bool> closed{false};
  };
  caf::actor runner_;
  std::shared_ptr<door> door_ = std::make_shared<door>();
};

class world_opener final : public pipe_opener {
public:
  world_opener(caf::actor_system& system, std::shared_ptr<world> where, world::user_id user);
  ~world_opener() override;
  void open(const std::string& endpoint,
            std::function<void(std::unique_ptr<byte_pipe>, std::string error)> done) override;
  executor& runs_on() override { return *executor_; }

private:
  caf::actor_system& system_;
  std::shared_ptr<world> world_;
  world::user_id user_;
  std::shared_ptr<actor_executor> executor_;
};

} // namespace caisson::backends::simulated

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(caisson::backends::simulated::job)
