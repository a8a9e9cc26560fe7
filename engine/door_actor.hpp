#pragma once

/// How a thread that is no actor asks one: work is sent to this actor and runs there with its `request`.

#include <functional>
#include <memory>

#include "messages/ports.hpp"

namespace caisson::engine {

using door_self = caf::event_based_actor*;
using door_work = std::shared_ptr<std::function<void(door_self)>>;

} // namespace caisson::engine

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(caisson::engine::door_work)

namespace caisson::engine {

inline caf::behavior door_actor_body(door_self self) {
  return {[self](const door_work& work) { (*work)(self); }};
}

} // namespace caisson::engine
