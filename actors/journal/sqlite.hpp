#pragma once

/// The little of SQLite that the journal needs, with owners for its handles. Failures are thrown as sqlite_failure and end
/// in store.cpp.

#include <sqlite3.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>

namespace caisson {

struct sqlite_failure : std::runtime_error {
  sqlite_failure(int c, const std::string& text) : std::runtime_error(text), code(c) {}
  int code;  ///< extended result code
};

class sqlite_statement {
public:
  sqlite_statement() = default;
  sqlite_statement(sqlite3* db, std::string_view sql);

  sqlite_statement& bind(int at, std::uint64_t value);
  sqlite_statement& bind(int at, std::string_view text);
  sqlite_statement& bind_bytes(int at, std::string_view bytes);

  /// True: a row is there. False: done, and the statement is ready to be used again.
  bool step();
  void run();  ///< steps to the end
  void reset() noexcept;

  std::uint64_t number(int column) const;
  std::string_view bytes(int column) const;  ///< until the next step

private:
  struct finalizer {
    void operator()(sqlite3_stmt* s) const noexcept { sqlite3_finalize(s); }
  };
  std::unique_ptr<sqlite3_stmt, finalizer> statement_;
};

class sqlite_database {
public:
  explicit sqlite_database(const std::string& path);
  void run(const char* sql);
  std::uint64_t number(std::string_view sql);   ///< first column of the first row; 0 where there is none
  std::string text(std::string_view sql);
  sqlite3* get() const noexcept { return db_.get(); }
  bool in_transaction() const noexcept { return sqlite3_get_autocommit(db_.get()) == 0; }

private:
  struct closer {
    void operator()(sqlite3* db) const noexcept { sqlite3_close_v2(db); }
  };
  std::unique_ptr<sqlite3, closer> db_;
};

} // namespace caisson
