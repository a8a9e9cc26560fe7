#pragma once

#include <memory>

#include "engine/service.hpp"

namespace caisson::daemon {

/// Sandboxes that belonged to a stream of an engine that is gone. Looked for once, before the door opens, so that no
/// living stream's sandbox is among them.
class orphans {
public:
  orphans(engine::service& service, std::function<void(std::string_view)> log);

  void look();  ///< waits at most 10 s for the list
  void sweep(); ///< asks for the removal of those that are left; does not wait
  bool any() const;

private:
  struct state;
  engine::service& service_;
  std::function<void(std::string_view)> log_;
  std::shared_ptr<state> state_;
};

} // namespace caisson::daemon
