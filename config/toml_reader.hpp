#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "config/value.hpp"

/// The border to toml++: text in, a plain tree with places out. Nothing of toml++ is seen behind this file.
namespace caisson::config {

/// Line and column from 1, columns in characters. line 0: nowhere.
struct position {
  std::uint32_t line = 0;
  std::uint32_t column = 0;
};

struct toml_node {
  std::string name;      ///< the key; "" for the root
  position name_at;      ///< of the key
  position begin;        ///< of the value
  position end;          ///< behind the value
  std::string_view kind; ///< "a string", "an integer", "a number", "a boolean", "an array", "a table", "a date", ...
  value content;         ///< where the kind is one that keys take
  bool is_table = false;
  std::vector<toml_node> children; ///< of a table, in the order of the file
};

struct syntax_error {
  position at;
  std::string what;
};

struct toml_document {
  toml_node root;
  std::vector<std::size_t> line_starts; ///< offset of each line, the first at [0]
  std::vector<syntax_error> errors;     ///< lines that are no TOML; they were left out of the tree
  bool complete = true;                 ///< false: reading stopped at the last error
};

/// Never throws. A line that is no TOML is reported and left out, so that the rest of the file is checked too.
toml_document read_toml(std::string_view text);

/// The text between two places of `text`, line breaks as spaces. `line_starts` are the document's.
std::string text_between(std::string_view text, const std::vector<std::size_t>& line_starts, position begin,
                         position end);

} // namespace caisson::config
