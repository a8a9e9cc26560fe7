#pragma once

/// EVENTS: who wants to hear, and how far each has heard. Numbers make the order: events may reach this actor in another
/// one, and some not at all (their sender has ended between the journal and here); what is missing is read back from the
/// journal, which has everything that was ever numbered. So each subscriber gets each event once, in order, or is told how
/// many he does not get (a "lagged" event).

#include <chrono>
#include <map>
#include <optional>
#include <vector>

#include "actors/events/event_sink.hpp"
#include "actors/kept_promise.hpp"
#include "messages/ports.hpp"

namespace caisson {

struct events_settings {
  std::uint64_t last_seq = 0;                  ///< of the journal, when this actor is made
  std::chrono::milliseconds patience{30'000};  ///< for one answer of the journal
  std::uint32_t page = 256;                    ///< old events that are read at once
};

struct events_state {
  static constexpr auto name = "events";

  struct subscriber {
    event_sink_ptr sink;
    std::uint64_t next = 0;  ///< first one that he has not been offered
    bool live = false;       ///< false: old ones are being read for him
    kept_promise<v1::Empty> caught_up;
  };

  events_settings settings;
  journal_actor journal;
  std::vector<subscriber> subscribers;
  std::uint64_t head = 0;                    ///< newest one up to which nothing is missing
  std::map<std::uint64_t, v1::Event> ahead;  ///< came too early; waits for what is missing before it
  bool reading_gap = false;

  subscriber* find(const event_sink_ptr& sink);
};

/// `journal` is also asked for the old ones. A subscription is answered when the old events have been offered.
events_actor::behavior_type events(events_actor::stateful_pointer<events_state> self, journal_actor journal,
                                   events_settings settings);

} // namespace caisson
