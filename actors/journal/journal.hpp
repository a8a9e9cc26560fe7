#pragma once

/// JOURNAL: the actor around journal_store. It may block on the disk, so production spawns it detached; the composition
/// root opens the store first (open_journal_store) and shows its error.

#include "actors/journal/store.hpp"
#include "messages/ports.hpp"

namespace caisson {

struct journal_state {
  static constexpr auto name = "journal";
  journal_store_ptr store;
};

journal_actor::behavior_type journal(journal_actor::stateful_pointer<journal_state> self, journal_store_ptr store);

} // namespace caisson
