#include "actors/journal/journal.hpp"

namespace caisson {
namespace {

template <class T> caf::result<T> answer(std::variant<T, v1::Error> outcome) {
  if (auto* why = std::get_if<v1::Error>(&outcome))
    return make_error(*why);
  return std::get<T>(std::move(outcome));
}

} // namespace

journal_actor::behavior_type journal(journal_actor::stateful_pointer<journal_state> self, journal_store_ptr store) {
  self->state.store = std::move(store);
  return {
      [self](const v1::JournalRecord& r) { return answer(self->state.store->record(r)); },
      [self](const v1::JournalReplay&) { return answer(self->state.store->replay()); },
      [self](const v1::EventsFrom& f) { return answer(self->state.store->events(f)); },
  };
}

} // namespace caisson
