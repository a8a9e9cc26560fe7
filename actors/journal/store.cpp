#include "actors/journal/store.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <mutex>

#include <fmt/format.h>

#include "actors/journal/sqlite.hpp"
#include "messages/error.hpp"

namespace caisson {
namespace {

constexpr std::uint64_t schema_version = 1;
constexpr std::uint64_t application_id = 0x43414953;  // "CAIS", seen by file(1)
constexpr std::uintmax_t checked_at_open_bytes = 32u << 20;  // larger files are checked as they are read
constexpr std::uint32_t default_page = 1'000;
constexpr std::uint32_t largest_page = 10'000;

constexpr const char* schema = R"(
  CREATE TABLE sandboxes(id TEXT PRIMARY KEY, name TEXT NOT NULL, created_unix_ms INTEGER NOT NULL, record BLOB NOT NULL);
  CREATE TABLE operations(id TEXT PRIMARY KEY, sandbox_id TEXT NOT NULL, started_unix_ms INTEGER NOT NULL,
                          record BLOB NOT NULL);
  CREATE INDEX operations_of_sandbox ON operations(sandbox_id, started_unix_ms);
  CREATE TABLE events(seq INTEGER PRIMARY KEY, record BLOB NOT NULL);
)";

/// A row that is there but is not what this program wrote.
struct damaged_row : std::runtime_error {
  using std::runtime_error::runtime_error;
};

v1::Error damaged(const std::string& path, std::string_view how) {
  return error_message(
      ec::journal,
      fmt::format("the journal {} is damaged ({}). Restore a copy of it, or save what can be read with "
                  "`sqlite3 '{}' .recover`, or move it and its -wal file away and start anew: sandboxes that still run "
                  "are then ended, since nobody knows them",
                  path, how, path));
}

v1::Error describe(const std::string& path, const sqlite_failure& why, std::string_view doing) {
  auto say = [&](std::string_view what, std::string_view mend) {
    return error_message(ec::journal, fmt::format("cannot {} in the journal {}: {} ({}). {}", doing, path, what,
                                                  why.what(), mend));
  };
  switch (why.code & 0xff) {
  case SQLITE_FULL: return say("the disk is full", "Free space on its file system and ask again");
  case SQLITE_READONLY:
    return say("it cannot be written", "Mount its file system writable, and let the file belong to the engine's user");
  case SQLITE_BUSY:
  case SQLITE_LOCKED: return say("another program holds it locked", "End that program (a running sqlite3?) and ask again");
  case SQLITE_CANTOPEN:
  case SQLITE_PERM:
  case SQLITE_AUTH:
    return say("it cannot be opened", "It must be a plain file of the engine's user, in a directory that he can write");
  case SQLITE_CORRUPT:
  case SQLITE_NOTADB: return damaged(path, why.what());
  case SQLITE_NOMEM: return say("there is no memory left", "Free memory on this host and ask again");
  default:
    return say("the disk did not do it", "Look at the kernel's log and at the health of the disk below it");
  }
}

template <class T> T parsed(std::string_view bytes, std::string_view what) {
  T message;
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    throw damaged_row{fmt::format("{} cannot be read", what)};
  return message;
}

/// A record that could not be read again (a text that is no UTF-8) would lock everybody out at the next start.
struct unreadable_record : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class T> std::string readable_bytes(const T& message, std::string_view what) {
  auto bytes = message.SerializeAsString();
  if (T again; !again.ParseFromString(bytes))
    throw unreadable_record{fmt::format("{} is not recorded: a text in it is not UTF-8. Whoever takes foreign text escapes "
                                        "it first; this is a fault of the program",
                                        what)};
  return bytes;
}

class sqlite_journal final : public journal_store {
public:
  sqlite_journal(const std::string& path, journal_limits limits) : path_(path), limits_(limits), db_(path) {
    limits_.events = std::max<std::uint64_t>(limits_.events, 1);
  }

  /// Everything that may fail but needs the object: refuse, make or take the schema.
  void prepare(bool check) {
    db_.run("PRAGMA journal_mode=WAL");
    db_.run("PRAGMA synchronous=FULL; PRAGMA journal_size_limit=16777216; PRAGMA foreign_keys=OFF");
    auto version = db_.number("PRAGMA user_version");
    if (version > schema_version)
      throw newer_schema{version};
    if (version == 0) {
      if (db_.number("SELECT count(*) FROM sqlite_schema") != 0)
        throw damaged_row{"it is a SQLite file of something else"};
      db_.run("BEGIN IMMEDIATE");
      db_.run(schema);
      db_.run(fmt::format("PRAGMA application_id={}; PRAGMA user_version={}", application_id, schema_version).c_str());
      db_.run("COMMIT");
    } else if (check) {
      if (auto verdict = db_.text("PRAGMA quick_check(1)"); verdict != "ok")
        throw damaged_row{verdict};
    }
    auto* db = db_.get();
    put_sandbox_ = {db, "INSERT INTO sandboxes(id, name, created_unix_ms, record) VALUES(?1, ?2, ?3, ?4) ON CONFLICT(id) "
                        "DO UPDATE SET name=?2, created_unix_ms=?3, record=?4"};
    drop_sandbox_ = {db, "DELETE FROM sandboxes WHERE id=?1"};
    put_operation_ = {db, "INSERT INTO operations(id, sandbox_id, started_unix_ms, record) VALUES(?1, ?2, ?3, ?4) "
                          "ON CONFLICT(id) DO UPDATE SET sandbox_id=?2, started_unix_ms=?3, record=?4"};
    trim_operations_ = {db, "DELETE FROM operations WHERE rowid IN (SELECT rowid FROM operations WHERE sandbox_id=?1 "
                            "ORDER BY started_unix_ms DESC, rowid DESC LIMIT -1 OFFSET ?2)"};
    drop_operations_ = {db, "DELETE FROM operations WHERE sandbox_id=?1"};
    put_event_ = {db, "INSERT INTO events(seq, record) VALUES(?1, ?2)"};
    drop_events_ = {db, "DELETE FROM events WHERE seq<=?1"};
    all_sandboxes_ = {db, "SELECT record, id FROM sandboxes ORDER BY created_unix_ms, rowid"};
    all_operations_ = {db, "SELECT record, id FROM operations ORDER BY started_unix_ms, rowid"};
    some_events_ = {db, "SELECT record, seq FROM events WHERE seq>=?1 ORDER BY seq LIMIT ?2"};
    last_seq_ = db_.number("SELECT max(seq) FROM events");
    first_seq_ = db_.number("SELECT min(seq) FROM events");
  }

  struct newer_schema {
    std::uint64_t version;
  };

  outcome<v1::JournalRecorded> record(const v1::JournalRecord& what) override {
    std::lock_guard hold{mutex_};
    return guarded<v1::JournalRecorded>("record", [&] { return record_locked(what); });
  }

  outcome<v1::JournalContents> replay() override {
    std::lock_guard hold{mutex_};
    return guarded<v1::JournalContents>("read the sandboxes", [&] {
      v1::JournalContents all;
      all_sandboxes_.reset();
      while (all_sandboxes_.step())
        *all.add_sandboxes() = parsed<v1::SandboxRecord>(
            all_sandboxes_.bytes(0), fmt::format("the record of sandbox {}", all_sandboxes_.bytes(1)));
      all_operations_.reset();
      while (all_operations_.step())
        *all.add_operations() = parsed<v1::Operation>(
            all_operations_.bytes(0), fmt::format("the record of operation {}", all_operations_.bytes(1)));
      all.set_last_seq(last_seq_);
      return all;
    });
  }

  outcome<v1::EventBatch> events(const v1::EventsFrom& from) override {
    std::lock_guard hold{mutex_};
    return guarded<v1::EventBatch>("read events", [&] {
      v1::EventBatch batch;
      auto limit = from.limit() == 0 ? default_page : std::min(from.limit(), largest_page);
      if (from.from_seq() > last_seq_)  // also keeps numbers that SQLite would take for negative ones away from it
        return batch;
      some_events_.reset();
      some_events_.bind(1, from.from_seq()).bind(2, limit);
      while (some_events_.step())
        *batch.add_events() =
            parsed<v1::Event>(some_events_.bytes(0), fmt::format("event {}", some_events_.number(1)));
      return batch;
    });
  }

  std::uint64_t last_seq() const override {
    std::lock_guard hold{mutex_};
    return last_seq_;
  }

  const std::string& path() const override { return path_; }

private:
  template <class T, class F> outcome<T> guarded(std::string_view doing, F&& f) {
    try {
      return f();
    } catch (const sqlite_failure& why) {
      roll_back();
      return describe(path_, why, doing);
    } catch (const damaged_row& why) {
      roll_back();
      return damaged(path_, why.what());
    } catch (const unreadable_record& why) {
      roll_back();
      return error_message(ec::internal, why.what());
    }
  }

  void roll_back() noexcept {
    if (db_.in_transaction())
      sqlite3_exec(db_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
  }

  v1::JournalRecorded record_locked(const v1::JournalRecord& what) {
    v1::JournalRecorded done;
    auto seq = last_seq_;
    auto first = first_seq_;
    db_.run("BEGIN IMMEDIATE");
    if (what.has_upsert()) {
      const auto& s = what.upsert();
      put_sandbox_.bind(1, s.id())
          .bind(2, s.name())
          .bind(3, static_cast<std::uint64_t>(s.created_unix_ms()))
          .bind_bytes(4, readable_bytes(s, "sandbox " + s.id()))
          .run();
    }
    if (what.has_operation()) {
      const auto& o = what.operation();
      put_operation_.bind(1, o.id())
          .bind(2, o.sandbox_id())
          .bind(3, static_cast<std::uint64_t>(o.started_unix_ms()))
          .bind_bytes(4, readable_bytes(o, "operation " + o.id()))
          .run();
      trim_operations_.bind(1, o.sandbox_id()).bind(2, limits_.operations_per_sandbox).run();
    }
    if (!what.remove_sandbox_id().empty()) {
      drop_sandbox_.bind(1, what.remove_sandbox_id()).run();
      drop_operations_.bind(1, what.remove_sandbox_id()).run();
    }
    for (const auto& e : what.events()) {
      auto* numbered = done.add_events();
      *numbered = e;
      numbered->set_seq(++seq);
      put_event_.bind(1, seq).bind_bytes(2, readable_bytes(*numbered, "event " + e.type())).run();
      if (first == 0)
        first = seq;
    }
    if (seq != 0 && seq - first + 1 > limits_.events + limits_.prune_batch) {
      drop_events_.bind(1, seq - limits_.events).run();
      first = seq - limits_.events + 1;
    }
    db_.run("COMMIT");
    last_seq_ = seq;
    first_seq_ = first;
    return done;
  }

  std::string path_;
  journal_limits limits_;
  mutable std::mutex mutex_;
  sqlite_database db_;  // before the statements: they go first
  sqlite_statement put_sandbox_, drop_sandbox_, put_operation_, trim_operations_, drop_operations_, put_event_,
      drop_events_, all_sandboxes_, all_operations_, some_events_;
  std::uint64_t last_seq_ = 0;
  std::uint64_t first_seq_ = 0;
};

/// SQLite would make the file readable by others, and follow a link that somebody else has put there.
v1::Error make_private_file(const std::string& path) {
  auto say = [&](std::string_view what) {
    return error_message(ec::journal,
                         fmt::format("cannot open the journal {}: {}. It must be a plain file of the engine's user, in a "
                                     "directory that he can write",
                                     path, what));
  };
  int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600);
  if (fd < 0)
    return say(errno == ELOOP ? "it is a symbolic link" : std::strerror(errno));
  struct stat st{};
  bool plain = ::fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
  ::close(fd);
  return plain ? v1::Error{} : say("it is not a plain file");
}

} // namespace

std::variant<journal_store_ptr, v1::Error> open_journal_store(const std::string& path, journal_limits limits) {
  const bool in_memory = path == ":memory:";
  if (!in_memory)
    if (auto why = make_private_file(path); !why.code().empty())
      return why;
  try {
    auto journal = std::make_shared<sqlite_journal>(path, limits);
    std::error_code ignored;
    journal->prepare(!in_memory && std::filesystem::file_size(path, ignored) <= checked_at_open_bytes);
    if (auto contents = journal->replay(); std::holds_alternative<v1::Error>(contents))
      return std::get<v1::Error>(std::move(contents));
    return journal;
  } catch (const sqlite_journal::newer_schema& newer) {
    return error_message(
        ec::journal,
        fmt::format("the journal {} has schema {}, this version of Caisson knows schemas up to {}: a newer version wrote "
                    "it. Use that version, or another state directory",
                    path, newer.version, schema_version));
  } catch (const sqlite_failure& why) {
    return describe(path, why, "open or read");
  } catch (const damaged_row& why) {
    return damaged(path, why.what());
  }
}

} // namespace caisson
