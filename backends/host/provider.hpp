#pragma once

/// A registry line whose backend is a program of its own: caisson-backend-NAME, speaking backends/host/wire.hpp.

#include <memory>
#include <string>

#include "backends/backend.hpp"
#include "backends/host/backend_process.hpp"

namespace caisson::host {

/// What a line named `name` runs as in this environment: PROGRAM_DIRECTORY/caisson-backend-NAME with the four
/// directories.
process_settings settings_for(const std::string& name, const backends::environment& e);

/// Starts the program when its first verb is sent. Its destructor ends the process and waits for that (a few
/// milliseconds, at most about 4 s); VMs live on. Destroy it before the actor system and the reactor.
class provider final : public backends::provider {
public:
  /// Uses the environment's reactor; has one of its own where `channels` is none.
  provider(const backends::environment& e, process_settings settings);
  ~provider() override;
  provider(const provider&) = delete;
  provider& operator=(const provider&) = delete;

  backend_actor spawn(const std::string& sandbox_id, vm_listener listener) override;
  pipe_opener& channels() override { return *channels_; }

private:
  std::unique_ptr<reactor::reactor> own_reactor_;
  caf::actor_system& system_;
  pipe_opener* channels_;
  std::shared_ptr<backend_process> process_;
};

} // namespace caisson::host
