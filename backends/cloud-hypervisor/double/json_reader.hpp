#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace caisson::cloud_hypervisor::api_double {

using json = nlohmann::ordered_json;

/// Thrown while a request's body is read and caught where the reading starts. `placed` once the text says where.
struct json_problem {
  std::string text;
  bool placed = false;
};

/// Reads JSON from the front, one token after the other, and says what is wrong with it in the API's words and at the
/// API's line and column (bytes consumed so far).
class json_reader {
public:
  explicit json_reader(std::string_view text) : text_{text} {}

  /// The next byte that is no space; -1 at the end. Nothing is consumed but space.
  int peek();
  void advance() noexcept { ++at_; }
  [[nodiscard]] std::size_t position() const noexcept { return at_; }
  void go_back(std::size_t position) noexcept { at_ = position; }

  [[noreturn]] void fail(std::string text) const;      ///< at what was consumed
  [[noreturn]] void fail_peek(std::string text) const; ///< at the byte that is looked at
  [[nodiscard]] std::string place(std::string text) const { return placed(std::move(text), at_); }

  std::string read_string();
  json read_number();
  json read_any();
  void read_end(); ///< nothing but space follows

  /// Between the members of an object: true when a key follows (it is read, its colon is not), false at the closing brace
  /// (not consumed).
  bool next_key(bool first, std::string& key);
  void read_colon();
  /// The same for a list: false at the closing bracket (not consumed).
  bool next_element(bool first);

private:
  [[nodiscard]] std::string placed(std::string text, std::size_t at) const;
  void literal(std::string_view word);
  unsigned hex4();

  std::string_view text_;
  std::size_t at_ = 0;
  int depth_ = 128;
};

} // namespace caisson::cloud_hypervisor::api_double
