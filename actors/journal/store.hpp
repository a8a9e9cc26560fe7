#pragma once

/// What must survive the process, in one SQLite file: sandboxes, operations, events. Plain code without actors.
///
/// A record that is answered is on the disk: WAL with synchronous=FULL, one fsync a transaction. NORMAL would survive the
/// death of the process, but after a power failure an answered stop, removal or resize could be undone and an event number
/// given out twice; a sandbox's whole life has about a dozen records, so the fsync costs little.

#include <cstdint>
#include <memory>
#include <string>
#include <variant>

#include "messages/error.pb.h"
#include "messages/sandbox.pb.h"

namespace caisson {

struct journal_limits {
  std::uint64_t events = 100'000;              ///< the newest that are kept; at least 1
  std::uint64_t prune_batch = 1'000;           ///< so many above the limit before old ones are taken out together
  std::uint64_t operations_per_sandbox = 1'000; ///< the newest that are kept of a living sandbox
};

/// Thread safe. May block on the disk. Every failure is an error of code `journal` that names the file and the mend, and
/// leaves the file as it was before the call.
class journal_store {
public:
  template <class T> using outcome = std::variant<T, v1::Error>;

  virtual ~journal_store() = default;

  /// One transaction. Numbers the events: each seq is the last one plus 1, over restarts too. A record that fails gives
  /// out no number. Removing a sandbox removes its operations; its events stay.
  virtual outcome<v1::JournalRecorded> record(const v1::JournalRecord& what) = 0;

  /// Sandboxes by creation time, operations by start time.
  virtual outcome<v1::JournalContents> replay() = 0;

  /// Events with seq >= from_seq, in order, at most `limit` (0: 1 000; never more than 10 000). The first one may be later
  /// than from_seq: the older ones have been taken out.
  virtual outcome<v1::EventBatch> events(const v1::EventsFrom& from) = 0;

  /// Number of the newest event that was ever recorded; 0: none.
  virtual std::uint64_t last_seq() const = 0;

  virtual const std::string& path() const = 0;
};

using journal_store_ptr = std::shared_ptr<journal_store>;

/// Opens or makes the file (mode 0600). Its directory is there and locked by the caller. ":memory:" keeps all in memory
/// for as long as the object lives: a simulation hands the same object to the engine that follows a killed one.
/// Errors (`journal`): the file cannot be opened or read, is no journal, is damaged, or was written by a newer version.
std::variant<journal_store_ptr, v1::Error> open_journal_store(const std::string& path, journal_limits limits = {});

} // namespace caisson
