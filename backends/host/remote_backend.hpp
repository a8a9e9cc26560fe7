#pragma once

/// The backend actor of one sandbox whose backend lives in a process of its own: a verb becomes a call, the call's
/// answer becomes the reply. Deadlines are backend_process's: a timer of the actor's own would keep it alive after its
/// owner.

#include <map>
#include <memory>

#include "backends/backend.hpp"
#include "backends/host/backend_process.hpp"

namespace caisson::host {

/// The contract, and what the reactor's thread sends: an answer, its id replaced by the actor's own tag.
using remote_backend_actor = backend_actor::extend<caf::reacts_to<v1::BackendAnswer>>;

struct remote_backend_state {
  static constexpr const char* name = "remote_backend";

  /// Gives the reply to whoever has asked.
  struct open_call {
    std::string what; ///< "create of sandbox a"
    std::function<void(const v1::BackendAnswer&)> reply;
  };

  ~remote_backend_state();
  void reply(std::uint64_t tag, const v1::BackendAnswer& with);

  std::shared_ptr<backend_process> process;
  std::uint64_t ticket = 0; ///< of the listener
  std::uint64_t last_tag = 0;
  std::map<std::uint64_t, open_call> open;
};

/// `listener` may be null.
remote_backend_actor::behavior_type remote_backend(remote_backend_actor::stateful_pointer<remote_backend_state> self,
                                                   std::shared_ptr<backend_process> process, std::string sandbox_id,
                                                   vm_listener listener);

} // namespace caisson::host
