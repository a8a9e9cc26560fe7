#pragma once

/// BUDGET: the one that promises the host's memory. One an engine. Every promise is decided in one handler with figures
/// that were read for it, so that two creations at once cannot both get the last memory.
///
/// Reading is done in two steps: what the host has available is always read; what each VMM holds only where the promise
/// could not be given if none of them held anything yet. Requests that come meanwhile share the reading and are decided
/// in their order.

#include <chrono>
#include <deque>
#include <map>
#include <string>

#include "actors/budget/budget.hpp"
#include "actors/kept_promise.hpp"
#include "messages/ports.hpp"

namespace caisson::budget {

struct settings {
  host_actor host;
  std::chrono::milliseconds host_deadline{10'000};
  std::chrono::milliseconds processes_fresh{2'000}; ///< for somebody who only looks
};

struct keeper_state {
  static constexpr auto name = "budget";
  struct waiting {
    v1::PromiseMemory asked;
    limits within;
    std::shared_ptr<kept_promise<v1::MemoryPromised>> promise;
  };
  settings set;
  book promises;
  std::map<std::string, v1::MeasureProcess> vmms; ///< by sandbox
  std::deque<waiting> queue;
  bool reading = false;
  std::size_t processes_open = 0;
  std::chrono::steady_clock::time_point processes_read{};
};

budget_actor::behavior_type budget_keeper(budget_actor::stateful_pointer<keeper_state> self, settings set);

} // namespace caisson::budget
