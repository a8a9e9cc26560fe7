#include "actors/journal/sqlite.hpp"

namespace caisson {
namespace {

[[noreturn]] void fail(sqlite3* db) {
  throw sqlite_failure{sqlite3_extended_errcode(db), sqlite3_errmsg(db)};
}

} // namespace

sqlite_statement::sqlite_statement(sqlite3* db, std::string_view sql) {
  sqlite3_stmt* made = nullptr;
  if (sqlite3_prepare_v3(db, sql.data(), static_cast<int>(sql.size()), SQLITE_PREPARE_PERSISTENT, &made, nullptr) !=
      SQLITE_OK)
    fail(db);
  statement_.reset(made);
}

sqlite_statement& sqlite_statement::bind(int at, std::uint64_t value) {
  if (sqlite3_bind_int64(statement_.get(), at, static_cast<sqlite3_int64>(value)) != SQLITE_OK)
    fail(sqlite3_db_handle(statement_.get()));
  return *this;
}

sqlite_statement& sqlite_statement::bind(int at, std::string_view text) {
  if (sqlite3_bind_text64(statement_.get(), at, text.data(), text.size(), SQLITE_TRANSIENT, SQLITE_UTF8) != SQLITE_OK)
    fail(sqlite3_db_handle(statement_.get()));
  return *this;
}

sqlite_statement& sqlite_statement::bind_bytes(int at, std::string_view bytes) {
  // A null pointer would bind NULL; no bytes are still a blob.
  const char* data = bytes.empty() ? "" : bytes.data();
  if (sqlite3_bind_blob64(statement_.get(), at, data, bytes.size(), SQLITE_TRANSIENT) != SQLITE_OK)
    fail(sqlite3_db_handle(statement_.get()));
  return *this;
}

bool sqlite_statement::step() {
  switch (sqlite3_step(statement_.get())) {
  case SQLITE_ROW: return true;
  case SQLITE_DONE: reset(); return false;
  default: {
    auto* db = sqlite3_db_handle(statement_.get());
    sqlite_failure failure{sqlite3_extended_errcode(db), sqlite3_errmsg(db)};
    reset();
    throw failure;
  }
  }
}

void sqlite_statement::run() {
  while (step()) {
  }
}

void sqlite_statement::reset() noexcept {
  sqlite3_reset(statement_.get());
  sqlite3_clear_bindings(statement_.get());
}

std::uint64_t sqlite_statement::number(int column) const {
  return static_cast<std::uint64_t>(sqlite3_column_int64(statement_.get(), column));
}

std::string_view sqlite_statement::bytes(int column) const {
  const auto* data = static_cast<const char*>(sqlite3_column_blob(statement_.get(), column));
  return {data ? data : "", static_cast<std::size_t>(sqlite3_column_bytes(statement_.get(), column))};
}

sqlite_database::sqlite_database(const std::string& path) {
  sqlite3* made = nullptr;
  auto rc = sqlite3_open_v2(path.c_str(), &made,
                            SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX | SQLITE_OPEN_EXRESCODE,
                            nullptr);
  db_.reset(made);
  if (rc != SQLITE_OK)
    throw sqlite_failure{rc, made ? sqlite3_errmsg(made) : sqlite3_errstr(rc)};
  sqlite3_busy_timeout(made, 2'000);
}

void sqlite_database::run(const char* sql) {
  if (sqlite3_exec(db_.get(), sql, nullptr, nullptr, nullptr) != SQLITE_OK)
    fail(db_.get());
}

std::uint64_t sqlite_database::number(std::string_view sql) {
  sqlite_statement s{db_.get(), sql};
  return s.step() ? s.number(0) : 0;
}

std::string sqlite_database::text(std::string_view sql) {
  sqlite_statement s{db_.get(), sql};
  return s.step() ? std::string{s.bytes(0)} : std::string{};
}

} // namespace caisson
