#pragma once

/// The engine's own names, bound before caisson/engine.hpp is seen: there `caisson::engine` is a class.

#include "engine/safe_way.hpp"
#include "engine/service.hpp"

namespace caisson::embedding {

using service = engine::service;
using service_options = engine::options;
using exec_session = engine::exec_session;
using exec_events = engine::exec_events;
using event_subscription = engine::event_subscription;
template <class T> using outcome = engine::outcome<T>;

inline outcome<std::unique_ptr<service>> open_service(service_options o) {
  return engine::open(std::move(o));
}

inline bool is_utf8(std::string_view text) {
  return engine::is_utf8(text);
}

} // namespace caisson::embedding
