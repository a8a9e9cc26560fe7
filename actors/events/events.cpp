#include "actors/events/events.hpp"

#include <algorithm>

#include <fmt/format.h>

namespace caisson {
namespace {

using self_ptr = events_actor::stateful_pointer<events_state>;

/// So many early events are kept while the missing ones are read; more of them are read from the journal again.
constexpr std::size_t most_ahead = 1'024;

v1::EventsFrom page_from(std::uint64_t seq, std::size_t limit) {
  v1::EventsFrom from;
  from.set_from_seq(seq);
  from.set_limit(static_cast<std::uint32_t>(limit));
  return from;
}

/// Offers what he has not had; a hole before `e` is told. False: he is gone.
bool offer(events_state::subscriber& s, const v1::Event& e) {
  if (e.seq() < s.next)
    return true;
  if (e.seq() > s.next) {
    auto count = e.seq() - s.next;
    if (!s.sink->offer(lagged_event(count, e.seq() - 1,
                                    fmt::format("{} events from number {} on are not in the journal any more", count,
                                                s.next))))
      return false;
  }
  s.next = e.seq() + 1;
  return s.sink->offer(e);
}

void drop(self_ptr self, const event_sink_ptr& sink, const caf::error& why) {
  auto& all = self->state.subscribers;
  auto at = std::find_if(all.begin(), all.end(), [&](const auto& s) { return s.sink == sink; });
  if (at == all.end())
    return;
  at->caught_up.deliver(why);
  all.erase(at);
}

caf::error gone() {
  return make_error(ec::cancelled, "the subscription to events has ended: its reader is gone");
}

/// Everything up to head has been offered to live subscribers when this returns.
void advance(self_ptr self, const v1::Event& e) {
  auto& st = self->state;
  st.head = e.seq();
  std::vector<event_sink_ptr> dead;
  for (auto& s : st.subscribers)
    if (s.live && !offer(s, e))
      dead.push_back(s.sink);
  for (const auto& sink : dead)
    drop(self, sink, gone());
}

void advance_ahead(self_ptr self) {
  auto& ahead = self->state.ahead;
  while (!ahead.empty() && ahead.begin()->first <= self->state.head + 1) {
    auto e = std::move(ahead.begin()->second);
    ahead.erase(ahead.begin());
    if (e.seq() == self->state.head + 1)
      advance(self, e);
  }
}

/// The missing ones cannot be read: the subscribers are told (by offer()) and life goes on behind the hole.
void skip_gap(self_ptr self) {
  if (self->state.ahead.empty())
    return;
  self->state.head = self->state.ahead.begin()->first - 1;
  advance_ahead(self);
}

void read_gap(self_ptr self) {
  auto& st = self->state;
  if (st.reading_gap || st.ahead.empty())
    return;
  st.reading_gap = true;
  self->request(st.journal, st.settings.patience, page_from(st.head + 1, st.settings.page))
      .then(
          [self](const v1::EventBatch& page) {
            auto& now = self->state;
            now.reading_gap = false;
            const auto before = now.head;
            for (const auto& e : page.events())
              if (e.seq() > now.head)
                advance(self, e);
            advance_ahead(self);
            if (now.head == before)
              skip_gap(self);
            read_gap(self);
          },
          [self](const caf::error&) {
            self->state.reading_gap = false;
            skip_gap(self);
            read_gap(self);
          });
}

void on_batch(self_ptr self, const v1::EventBatch& batch) {
  auto& st = self->state;
  for (const auto& e : batch.events()) {
    if (e.seq() <= st.head)
      continue;
    if (e.seq() == st.head + 1) {
      advance(self, e);
      advance_ahead(self);
    } else if (st.ahead.size() < most_ahead || e.seq() < st.ahead.rbegin()->first) {
      st.ahead.emplace(e.seq(), e);
      if (st.ahead.size() > most_ahead)
        st.ahead.erase(std::prev(st.ahead.end()));
    }
  }
  read_gap(self);
}

void go_live(events_state::subscriber& s) {
  s.live = true;
  s.caught_up.deliver(v1::Empty{});
}

void read_old(self_ptr self, const event_sink_ptr& sink);

void on_page(self_ptr self, const event_sink_ptr& sink, const v1::EventBatch& page) {
  auto* s = self->state.find(sink);
  if (!s)
    return;
  const auto before = s->next;
  for (const auto& e : page.events()) {
    // What is ahead of head comes live, once its turn is there.
    if (e.seq() > self->state.head)
      break;
    if (!offer(*s, e))
      return drop(self, sink, gone());
  }
  if (s->next == before && s->next <= self->state.head) {
    // Taken out of the journal while they were asked for.
    auto count = self->state.head - s->next + 1;
    if (!s->sink->offer(lagged_event(count, self->state.head,
                                     fmt::format("{} events from number {} on are not in the journal any more", count,
                                                 s->next))))
      return drop(self, sink, gone());
    s->next = self->state.head + 1;
  }
  read_old(self, sink);
}

void read_old(self_ptr self, const event_sink_ptr& sink) {
  auto& st = self->state;
  auto* s = st.find(sink);
  if (!s || s->live)
    return;
  if (s->next > st.head)
    return go_live(*s);
  // One place is kept for the word that some are missing.
  auto room = sink->room();
  if (room < 2) {
    sink->when_room([me = caf::weak_actor_ptr{self->ctrl()}, weak = std::weak_ptr{sink}] {
      auto to = caf::actor_cast<caf::strong_actor_ptr>(me);
      auto again = weak.lock();
      if (to && again)
        caf::anon_send(caf::actor_cast<events_actor>(to), tick_atom::value, again);
    });
    return;
  }
  self->request(st.journal, st.settings.patience, page_from(s->next, std::min<std::size_t>(room - 1, st.settings.page)))
      .then([self, sink](const v1::EventBatch& page) { on_page(self, sink, page); },
            [self, sink](const caf::error& why) { drop(self, sink, why); });
}

caf::result<v1::Empty> on_subscribe(self_ptr self, const v1::EventsFrom& from, const event_sink_ptr& sink) {
  auto& st = self->state;
  if (!sink)
    return make_error(ec::invalid_argument, "a subscription to events needs a sink");
  if (st.find(sink))
    return make_error(ec::already_exists, "this sink is subscribed to events already; unsubscribe it first");
  auto& s = st.subscribers.emplace_back();
  s.sink = sink;
  s.next = from.from_seq() == 0 ? st.head + 1 : from.from_seq();
  auto promise = self->make_response_promise<v1::Empty>();
  s.caught_up = kept_promise<v1::Empty>{promise};
  read_old(self, sink);
  return promise;
}

/// A reader that is full or gone is heard of when there is room again; if it is gone, the next page finds it.
void on_room(self_ptr self, const event_sink_ptr& sink) {
  auto* s = self->state.find(sink);
  if (s && !s->live)
    read_old(self, sink);
}

} // namespace

events_state::subscriber* events_state::find(const event_sink_ptr& sink) {
  auto at = std::find_if(subscribers.begin(), subscribers.end(), [&](const auto& s) { return s.sink == sink; });
  return at == subscribers.end() ? nullptr : &*at;
}

events_actor::behavior_type events(events_actor::stateful_pointer<events_state> self, journal_actor journal,
                                   events_settings settings) {
  self->state.journal = std::move(journal);
  self->state.settings = settings;
  self->state.head = settings.last_seq;
  self->set_exit_handler([self](caf::exit_msg& down) {
    for (auto& s : self->state.subscribers)
      s.caught_up.deliver(make_error(ec::cancelled, "the engine ends; subscribe again at its successor"));
    self->state.subscribers.clear();
    self->quit(std::move(down.reason));
  });
  return {
      [self](const v1::EventBatch& b) { on_batch(self, b); },
      [self](const v1::EventsFrom& f, const event_sink_ptr& sink) { return on_subscribe(self, f, sink); },
      [self](unsub_atom, const event_sink_ptr& sink) { drop(self, sink, gone()); },
      [self](tick_atom, const event_sink_ptr& sink) { on_room(self, sink); },
  };
}

} // namespace caisson
