#include "actors/journal/store.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <sqlite3.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

namespace caisson {
namespace {

namespace fs = std::filesystem;

struct temporary_directory {
  temporary_directory() {
    char name[] = "/dev/shm/csn-journal-XXXXXX";
    path = ::mkdtemp(name);
  }
  ~temporary_directory() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  std::string file(const std::string& name = "journal.db") const { return path + "/" + name; }
  std::string path;
};

journal_store_ptr opened(const std::string& path, journal_limits limits = {}) {
  auto r = open_journal_store(path, limits);
  if (auto* why = std::get_if<v1::Error>(&r))
    throw std::runtime_error(why->text());
  return std::get<journal_store_ptr>(r);
}

v1::Error refused(const std::string& path) {
  auto r = open_journal_store(path);
  return std::holds_alternative<v1::Error>(r) ? std::get<v1::Error>(r) : v1::Error{};
}

v1::JournalRecord of_sandbox(const std::string& id, v1::SandboxState state, std::vector<std::string> event_types) {
  v1::JournalRecord r;
  r.mutable_upsert()->set_id(id);
  r.mutable_upsert()->set_name("name of " + id);
  r.mutable_upsert()->set_state(state);
  for (auto& t : event_types) {
    auto* e = r.add_events();
    e->set_type(t);
    e->set_sandbox_id(id);
  }
  return r;
}

template <class T> T must(std::variant<T, v1::Error> r) {
  if (auto* why = std::get_if<v1::Error>(&r))
    throw std::runtime_error(why->text());
  return std::get<T>(std::move(r));
}

std::vector<std::uint64_t> numbers(const v1::EventBatch& b) {
  std::vector<std::uint64_t> n;
  for (const auto& e : b.events())
    n.push_back(e.seq());
  return n;
}

v1::EventsFrom from(std::uint64_t seq, std::uint32_t limit = 0) {
  v1::EventsFrom f;
  f.set_from_seq(seq);
  f.set_limit(limit);
  return f;
}

void sql(const std::string& path, const char* statement) {
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &db), SQLITE_OK);
  EXPECT_EQ(sqlite3_exec(db, statement, nullptr, nullptr, nullptr), SQLITE_OK) << sqlite3_errmsg(db);
  sqlite3_close(db);
}

TEST(journal_store, remembers_sandboxes_operations_and_events_over_a_restart) {
  temporary_directory dir;
  {
    auto j = opened(dir.file());
    auto r = of_sandbox("sb-1", v1::SANDBOX_STATE_RUNNING, {"sandbox.created", "sandbox.running"});
    r.mutable_operation()->set_id("op-1");
    r.mutable_operation()->set_sandbox_id("sb-1");
    r.mutable_operation()->set_state(v1::OPERATION_STATE_RUNNING);
    EXPECT_EQ(must(j->record(r)).events(1).seq(), 2u);
    r.mutable_operation()->set_state(v1::OPERATION_STATE_CONVERGED);
    r.clear_events();
    must(j->record(r));
  }
  auto j = opened(dir.file());
  auto all = must(j->replay());
  ASSERT_EQ(all.sandboxes_size(), 1);
  EXPECT_EQ(all.sandboxes(0).name(), "name of sb-1");
  EXPECT_EQ(all.sandboxes(0).state(), v1::SANDBOX_STATE_RUNNING);
  ASSERT_EQ(all.operations_size(), 1);
  EXPECT_EQ(all.operations(0).state(), v1::OPERATION_STATE_CONVERGED);
  EXPECT_EQ(all.last_seq(), 2u);
  EXPECT_EQ(must(j->record(of_sandbox("sb-2", v1::SANDBOX_STATE_CREATING, {"sandbox.created"}))).events(0).seq(), 3u);
  EXPECT_EQ(numbers(must(j->events(from(2)))), (std::vector<std::uint64_t>{2, 3}));
  struct stat st{};
  ASSERT_EQ(::stat(dir.file().c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0600u);
}

TEST(journal_store, forgets_a_removed_sandbox_with_its_operations_but_not_its_events) {
  auto j = opened(":memory:");
  auto r = of_sandbox("sb-1", v1::SANDBOX_STATE_RUNNING, {"sandbox.created"});
  r.mutable_operation()->set_id("op-1");
  r.mutable_operation()->set_sandbox_id("sb-1");
  must(j->record(r));
  v1::JournalRecord gone;
  gone.set_remove_sandbox_id("sb-1");
  gone.add_events()->set_type("sandbox.removed");
  must(j->record(gone));
  auto all = must(j->replay());
  EXPECT_EQ(all.sandboxes_size() + all.operations_size(), 0);
  EXPECT_EQ(numbers(must(j->events(from(1)))), (std::vector<std::uint64_t>{1, 2}));
}

TEST(journal_store, keeps_the_newest_events_and_operations_only) {
  auto j = opened(":memory:", {.events = 20, .prune_batch = 5, .operations_per_sandbox = 3});
  for (int i = 1; i <= 200; ++i) {
    auto r = of_sandbox("sb-1", v1::SANDBOX_STATE_RUNNING, {"operation.ended"});
    r.mutable_operation()->set_id("op-" + std::to_string(i));
    r.mutable_operation()->set_sandbox_id("sb-1");
    r.mutable_operation()->set_started_unix_ms(i);
    must(j->record(r));
    auto kept = must(j->events(from(1)));
    EXPECT_LE(kept.events_size(), 25);
    EXPECT_GE(kept.events_size(), std::min(i, 20));
    EXPECT_EQ(kept.events(kept.events_size() - 1).seq(), static_cast<std::uint64_t>(i));
  }
  auto all = must(j->replay());
  ASSERT_EQ(all.operations_size(), 3);
  EXPECT_EQ(all.operations(2).id(), "op-200");
}

TEST(journal_store, pages_are_bounded_and_wild_numbers_find_nothing) {
  auto j = opened(":memory:");
  v1::JournalRecord many;
  for (int i = 0; i < 12'000; ++i)
    many.add_events()->set_type("x");
  must(j->record(many));
  EXPECT_EQ(must(j->events(from(1, 7))).events_size(), 7);
  EXPECT_EQ(must(j->events(from(1, 4'000'000'000))).events_size(), 10'000);
  EXPECT_EQ(must(j->events(from(~std::uint64_t{0}))).events_size(), 0);
  EXPECT_EQ(must(j->events(from(12'001))).events_size(), 0);
}

TEST(journal_store, refuses_a_newer_schema_a_foreign_file_and_damage) {
  temporary_directory dir;
  must(opened(dir.file())->record(of_sandbox("sb-1", v1::SANDBOX_STATE_RUNNING, {"sandbox.created"})));
  sql(dir.file(), "PRAGMA user_version=7");
  auto newer = refused(dir.file());
  EXPECT_EQ(newer.code(), "journal");
  EXPECT_NE(newer.text().find("schema 7"), std::string::npos) << newer.text();
  EXPECT_NE(newer.text().find(dir.file()), std::string::npos) << newer.text();

  sql(dir.file("other.db"), "CREATE TABLE songs(name TEXT)");
  EXPECT_NE(refused(dir.file("other.db")).text().find("something else"), std::string::npos);

  std::ofstream(dir.file("noise.db")) << std::string(8192, 'x');
  auto noise = refused(dir.file("noise.db"));
  EXPECT_EQ(noise.code(), "journal");
  EXPECT_NE(noise.text().find(".recover"), std::string::npos) << noise.text();

  must(opened(dir.file("bad.db"))->record(of_sandbox("sb-1", v1::SANDBOX_STATE_RUNNING, {"a"})));
  sql(dir.file("bad.db"), "UPDATE sandboxes SET record=x'ffffff'");
  EXPECT_NE(refused(dir.file("bad.db")).text().find("sandbox sb-1"), std::string::npos);

  fs::create_directory(dir.file("dir.db"));
  EXPECT_EQ(refused(dir.file("dir.db")).code(), "journal");
  fs::create_symlink(dir.file("bad.db"), dir.file("link.db"));
  EXPECT_NE(refused(dir.file("link.db")).text().find("symbolic link"), std::string::npos);
  EXPECT_EQ(refused(dir.file("missing/journal.db")).code(), "journal");
}

TEST(journal_store, a_flipped_page_is_found) {
  temporary_directory dir;
  {
    auto j = opened(dir.file());
    for (int i = 0; i < 300; ++i)
      must(j->record(of_sandbox("sb-" + std::to_string(i), v1::SANDBOX_STATE_RUNNING, {"sandbox.created"})));
  }
  {
    std::fstream f(dir.file(), std::ios::in | std::ios::out | std::ios::binary);
    f.seekp(4096 + 1);
    f << std::string(3000, '\xee');
  }
  EXPECT_EQ(refused(dir.file()).code(), "journal");
}

TEST(journal_store, a_record_that_fails_gives_out_no_number_and_changes_nothing) {
  temporary_directory dir;
  auto j = opened(dir.file());
  must(j->record(of_sandbox("sb-1", v1::SANDBOX_STATE_RUNNING, {"a"})));

  auto foreign = of_sandbox("sb-2", v1::SANDBOX_STATE_RUNNING, {"b"});
  foreign.mutable_events(0)->set_text("\xff\xfe");
  auto refusal = j->record(foreign);
  ASSERT_TRUE(std::holds_alternative<v1::Error>(refusal));
  EXPECT_EQ(std::get<v1::Error>(refusal).code(), "internal");
  EXPECT_EQ(must(j->replay()).sandboxes_size(), 1);

  // Another program in the way: the answer comes, says so, and later the same record succeeds.
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open(dir.file().c_str(), &db), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(db, "BEGIN IMMEDIATE", nullptr, nullptr, nullptr), SQLITE_OK);
  auto blocked = j->record(of_sandbox("sb-3", v1::SANDBOX_STATE_RUNNING, {"c"}));
  ASSERT_TRUE(std::holds_alternative<v1::Error>(blocked));
  EXPECT_EQ(std::get<v1::Error>(blocked).code(), "journal");
  EXPECT_TRUE(std::get<v1::Error>(blocked).retryable());
  sqlite3_exec(db, "ROLLBACK", nullptr, nullptr, nullptr);
  sqlite3_close(db);
  EXPECT_EQ(must(j->record(of_sandbox("sb-3", v1::SANDBOX_STATE_RUNNING, {"c"}))).events(0).seq(), 2u);
}

TEST(journal_store, a_full_disk_is_an_error_and_nothing_is_lost) {
  temporary_directory dir;
  auto j = opened(dir.file());
  must(j->record(of_sandbox("sb-1", v1::SANDBOX_STATE_RUNNING, {"a"})));
  // A limit on file sizes is what a full disk looks like to one process; the child keeps it from the other tests.
  auto child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    rlimit small{256 << 10, 256 << 10};
    ::setrlimit(RLIMIT_FSIZE, &small);
    auto mine = opened(dir.file());
    auto big = of_sandbox("sb-2", v1::SANDBOX_STATE_RUNNING, {"b"});
    big.mutable_upsert()->set_stop_reason(std::string(1 << 20, 'x'));
    auto r = mine->record(big);
    bool told = std::holds_alternative<v1::Error>(r) && std::get<v1::Error>(r).code() == "journal";
    auto next = mine->record(of_sandbox("sb-3", v1::SANDBOX_STATE_RUNNING, {"c"}));
    bool goes_on = std::holds_alternative<v1::JournalRecorded>(next) &&
                   std::get<v1::JournalRecorded>(next).events(0).seq() == 2;
    ::_exit(told && goes_on ? 0 : told ? 2 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(must(opened(dir.file())->replay()).sandboxes_size(), 2);
}

TEST(journal_store, what_was_answered_survives_a_kill) {
  temporary_directory dir;
  int pipe_fds[2];
  ASSERT_EQ(::pipe(pipe_fds), 0);
  auto child = ::fork();
  if (child == 0) {
    auto j = opened(dir.file());
    for (int i = 0;; ++i) {
      auto seq = must(j->record(of_sandbox("sb-" + std::to_string(i), v1::SANDBOX_STATE_RUNNING, {"a"}))).events(0).seq();
      if (::write(pipe_fds[1], &seq, sizeof seq) != sizeof seq)
        ::_exit(1);
    }
  }
  ::close(pipe_fds[1]);
  std::uint64_t answered = 0, seq = 0;
  while (answered < 50 && ::read(pipe_fds[0], &seq, sizeof seq) == sizeof seq)
    answered = seq;
  ::kill(child, SIGKILL);
  while (::read(pipe_fds[0], &seq, sizeof seq) == sizeof seq)
    answered = seq;
  ::close(pipe_fds[0]);
  ::waitpid(child, nullptr, 0);
  auto j = opened(dir.file());
  EXPECT_GE(j->last_seq(), answered);
  EXPECT_EQ(static_cast<std::uint64_t>(must(j->replay()).sandboxes_size()), j->last_seq());
}

TEST(journal_store, agrees_with_a_small_model) {
  rc::check("any order of records, restarts and pruning", [] {
    temporary_directory dir;
    journal_limits limits{.events = 10, .prune_batch = 3, .operations_per_sandbox = 100};
    auto j = opened(dir.file(), limits);
    std::map<std::string, int> sandboxes;
    std::uint64_t seq = 0;
    auto steps = *rc::gen::container<std::vector<std::pair<int, int>>>(
        rc::gen::pair(rc::gen::inRange(0, 5), rc::gen::inRange(0, 4)));
    for (auto [kind, which] : steps) {
      auto id = "sb-" + std::to_string(which);
      v1::JournalRecord r;
      if (kind <= 2) {
        r = of_sandbox(id, static_cast<v1::SandboxState>(1 + kind), std::vector<std::string>(kind, "e"));
        sandboxes[id] = 1 + kind;
        seq += kind;
      } else if (kind == 3) {
        r.set_remove_sandbox_id(id);
        r.add_events()->set_type("sandbox.removed");
        sandboxes.erase(id);
        ++seq;
      } else {
        j.reset();
        j = opened(dir.file(), limits);
        continue;
      }
      must(j->record(r));
      RC_ASSERT(j->last_seq() == seq);
    }
    std::map<std::string, int> found;
    auto all = must(j->replay());
    for (const auto& s : all.sandboxes())
      found[s.id()] = s.state();
    RC_ASSERT(found == sandboxes);
    auto kept = numbers(must(j->events(from(1))));
    RC_ASSERT(kept.size() >= std::min<std::uint64_t>(seq, 10));
    for (std::size_t i = 0; i < kept.size(); ++i)
      RC_ASSERT(kept[i] == seq - kept.size() + 1 + i);
  });
}

} // namespace
} // namespace caisson
