#include "actors/events/events.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <thread>

#include "actors/journal/journal.hpp"
#include "tests/support/deterministic_system.hpp"

namespace caisson {
namespace {

using namespace std::chrono_literals;
using tests::deterministic_system;

v1::Event numbered(std::uint64_t seq) {
  v1::Event e;
  e.set_seq(seq);
  e.set_type("x");
  return e;
}

std::vector<std::uint64_t> drained(event_queue& q) {
  std::vector<std::uint64_t> seen;
  while (auto e = q.take(0ms))
    seen.push_back(e->lagged() ? 0 : e->seq());
  return seen;
}

std::vector<std::uint64_t> range(std::uint64_t first, std::uint64_t last) {
  std::vector<std::uint64_t> n;
  for (auto i = first; i <= last; ++i)
    n.push_back(i);
  return n;
}

TEST(event_queue, a_slow_reader_gets_the_count_of_what_he_lost_in_its_place) {
  event_queue q{4};
  for (std::uint64_t i = 1; i <= 10; ++i)
    EXPECT_TRUE(q.offer(numbered(i)));
  for (std::uint64_t i = 1; i <= 4; ++i)
    EXPECT_EQ(q.take(0ms)->seq(), i);
  auto lag = q.take(0ms);
  ASSERT_TRUE(lag);
  EXPECT_EQ(lag->type(), "lagged");
  EXPECT_EQ(lag->lagged(), 6u);
  EXPECT_EQ(lag->seq(), 10u);
  EXPECT_NE(lag->text().find("from number 5"), std::string::npos) << lag->text();
  q.offer(numbered(11));
  EXPECT_EQ(q.take(0ms)->seq(), 11u);
  EXPECT_FALSE(q.take(0ms));
}

TEST(event_queue, tells_when_it_stops_being_empty_and_when_it_has_room) {
  event_queue q{4};
  int woken = 0, room = 0;
  q.on_wake([&] { ++woken; });
  q.offer(numbered(1));
  q.offer(numbered(2));
  EXPECT_EQ(woken, 1);
  q.offer(numbered(3));
  q.offer(numbered(4));
  q.when_room([&] { ++room; });
  q.take(0ms);
  EXPECT_EQ(room, 0);
  q.take(0ms);
  EXPECT_EQ(room, 1);
  q.close();
  EXPECT_EQ(woken, 2);
  EXPECT_FALSE(q.offer(numbered(5)));
  EXPECT_FALSE(q.take(1h));
}

TEST(event_queue, a_waiting_reader_is_woken_from_another_thread) {
  event_queue q;
  std::thread writer{[&] { q.offer(numbered(1)); }};
  EXPECT_EQ(q.take(1min)->seq(), 1u);
  writer.join();
}

/// Journal and events over one store, and a writer that numbers events and tells them as it likes.
struct events_fixture : ::testing::Test {
  void start(journal_limits limits = {}, events_settings settings = {}) {
    store = std::get<journal_store_ptr>(open_journal_store(":memory:", limits));
    journal_handle = sys.track(sys.system().spawn(journal, store));
    settings.last_seq = store->last_seq();
    handle = sys.track(sys.system().spawn(events, journal_handle, settings));
  }

  v1::EventBatch recorded(int count) {
    v1::JournalRecord r;
    for (int i = 0; i < count; ++i)
      r.add_events()->set_type("x");
    v1::EventBatch b;
    *b.mutable_events() = std::get<v1::JournalRecorded>(store->record(r)).events();
    return b;
  }

  void happen(int count) { sys.tell(handle, recorded(count)); }

  auto subscribe(std::uint64_t from, const std::shared_ptr<event_queue>& q) {
    v1::EventsFrom f;
    f.set_from_seq(from);
    return sys.ask<v1::Empty>(handle, f, event_sink_ptr{q});
  }

  deterministic_system sys;
  journal_store_ptr store;
  journal_actor journal_handle;
  events_actor handle;
};

TEST_F(events_fixture, old_ones_come_from_the_journal_then_live_ones) {
  start();
  happen(600);
  sys.drain();
  auto q = std::make_shared<event_queue>();
  auto answer = subscribe(3, q);
  sys.drain();
  EXPECT_TRUE(answer.value());
  happen(2);
  sys.drain();
  EXPECT_EQ(drained(*q), range(3, 602));
}

TEST_F(events_fixture, from_zero_means_from_now_on) {
  start();
  happen(5);
  sys.drain();
  auto q = std::make_shared<event_queue>();
  subscribe(0, q);
  sys.drain();
  happen(2);
  sys.drain();
  EXPECT_EQ(drained(*q), range(6, 7));
}

TEST_F(events_fixture, a_reader_of_old_events_is_never_overrun) {
  start();
  happen(5'000);
  sys.drain();
  auto q = std::make_shared<event_queue>(64);
  auto answer = subscribe(1, q);
  std::vector<std::uint64_t> seen;
  happen(3);
  while (seen.size() < 5'003) {
    sys.drain();
    auto more = drained(*q);
    ASSERT_FALSE(more.empty());
    seen.insert(seen.end(), more.begin(), more.end());
  }
  sys.drain();
  EXPECT_EQ(seen, range(1, 5'003));
  EXPECT_TRUE(answer.value());
}

TEST_F(events_fixture, events_that_come_in_another_order_or_not_at_all_are_put_right) {
  start();
  auto q = std::make_shared<event_queue>();
  subscribe(0, q);
  sys.drain();
  auto first = recorded(1), lost = recorded(2), third = recorded(1), fourth = recorded(1);
  sys.tell(handle, fourth);
  sys.tell(handle, first);
  sys.tell(handle, third);
  sys.tell(handle, fourth);
  sys.drain();
  EXPECT_EQ(drained(*q), range(1, 5));
}

TEST_F(events_fixture, what_the_journal_has_dropped_is_counted) {
  start({.events = 10, .prune_batch = 1});
  happen(50);
  sys.drain();
  auto q = std::make_shared<event_queue>();
  subscribe(1, q);
  sys.drain();
  auto lag = q->take(0ms);
  ASSERT_TRUE(lag);
  EXPECT_EQ(lag->type(), "lagged");
  auto rest = drained(*q);
  EXPECT_EQ(lag->lagged() + rest.size(), 50u);
  EXPECT_EQ(rest.back(), 50u);
}

TEST_F(events_fixture, a_dead_journal_is_told_to_late_readers_and_holds_up_nobody) {
  start();
  happen(5);
  auto live = std::make_shared<event_queue>();
  subscribe(0, live);
  sys.drain();
  auto six = recorded(1), seven = recorded(1);
  sys.stop(journal_handle, caf::exit_reason::kill);
  sys.drain();
  auto late = std::make_shared<event_queue>();
  auto answer = subscribe(1, late);
  sys.drain();
  EXPECT_EQ(code_of(answer.error()), ec::backend_lost);
  sys.tell(handle, seven);
  sys.run_for(1min);
  auto seen = drained(*live);
  EXPECT_TRUE(seen == (std::vector<std::uint64_t>{0, 7}) || seen == (std::vector<std::uint64_t>{1, 2, 3, 4, 5, 0, 7}))
      << ::testing::PrintToString(seen);
}

TEST_F(events_fixture, dead_sinks_are_dropped_and_unsubscribed_ones_hear_nothing) {
  start();
  happen(500);
  sys.drain();
  auto dead = std::make_shared<event_queue>(16);
  auto answer = subscribe(1, dead);
  sys.drain();
  EXPECT_FALSE(answer.done());
  dead->close();
  sys.drain();
  EXPECT_EQ(code_of(answer.error()), ec::cancelled);
  EXPECT_EQ(dead.use_count(), 1);

  auto left = std::make_shared<event_queue>();
  subscribe(0, left);
  sys.drain();
  sys.tell(handle, unsub_atom::value, event_sink_ptr{left});
  sys.drain();
  happen(1);
  sys.drain();
  EXPECT_TRUE(drained(*left).empty());
  EXPECT_EQ(left.use_count(), 1);
}

TEST_F(events_fixture, subscribing_twice_is_refused_and_an_end_answers_everybody) {
  start();
  happen(500);
  sys.drain();
  auto q = std::make_shared<event_queue>(16);
  auto waiting = subscribe(1, q);
  sys.drain();
  auto twice = subscribe(1, q);
  sys.drain();
  EXPECT_EQ(code_of(twice.error()), ec::already_exists);
  sys.stop(handle);
  sys.drain();
  EXPECT_TRUE(waiting.done());
  EXPECT_EQ(code_of(waiting.error()), ec::cancelled);
}

/// Any order of records, deliveries (late, twice, lost), subscriptions and readings: each reader sees each event from his
/// first one on exactly once and in order, or is told exactly which ones he does not see.
TEST(events_simulation, every_seed_gives_every_reader_every_event_once_or_its_number) {
  for (std::uint64_t seed = 1; seed <= 25; ++seed) {
    deterministic_system sys{seed};
    auto store = std::get<journal_store_ptr>(open_journal_store(":memory:"));
    auto j = sys.track(sys.system().spawn(journal, store));
    auto ev = sys.track(sys.system().spawn(events, j, events_settings{.page = 8}));
    struct reader {
      std::shared_ptr<event_queue> queue = std::make_shared<event_queue>(32);
      std::uint64_t from;
      std::vector<std::uint64_t> seen;
    };
    std::vector<reader> readers;
    std::vector<v1::EventBatch> told_later;
    auto& random = sys.random();
    auto read = [&](reader& r) {
      while (auto e = r.queue->take(0ms)) {
        for (auto lost = e->lagged(); lost > 1; --lost)
          r.seen.push_back(e->seq() - lost + 1);
        r.seen.push_back(e->seq());
      }
    };
    for (int step = 0; step < 400; ++step) {
      switch (random() % 6) {
      case 0: {
        v1::JournalRecord rec;
        for (auto n = random() % 3 + 1; n > 0; --n)
          rec.add_events()->set_type("x");
        v1::EventBatch b;
        *b.mutable_events() = std::get<v1::JournalRecorded>(store->record(rec)).events();
        if (random() % 8 != 0)
          told_later.push_back(b);
        break;
      }
      case 1:
        if (!told_later.empty()) {
          auto at = random() % told_later.size();
          sys.tell(ev, told_later[at]);
          if (random() % 4 != 0)
            told_later.erase(told_later.begin() + static_cast<std::ptrdiff_t>(at));
        }
        break;
      case 2:
        if (readers.size() < 4) {
          reader r;
          r.from = random() % (store->last_seq() + 1) + 1;
          v1::EventsFrom f;
          f.set_from_seq(r.from);
          sys.ask<v1::Empty>(ev, f, event_sink_ptr{r.queue});
          readers.push_back(std::move(r));
        }
        break;
      case 3:
        if (!readers.empty())
          read(readers[random() % readers.size()]);
        break;
      default: sys.step();
      }
    }
    v1::JournalRecord last;
    last.add_events()->set_type("last");
    v1::EventBatch b;
    *b.mutable_events() = std::get<v1::JournalRecorded>(store->record(last)).events();
    sys.tell(ev, b);
    for (int i = 0; i < 200; ++i) {
      sys.drain();
      for (auto& r : readers)
        read(r);
    }
    for (auto& r : readers)
      ASSERT_EQ(r.seen, range(r.from, store->last_seq())) << "seed " << seed << ", from " << r.from;
  }
}

} // namespace
} // namespace caisson
