#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "config/keys.hpp"

/// One value of a configuration, whoever set it.
namespace caisson::config {

/// monostate: not set, or of a kind that no key takes (a date, a table, a mixed array).
using value = std::variant<std::monostate, bool, std::int64_t, double, std::string, std::vector<std::string>>;

/// The value as TOML would write it; "" for monostate.
std::string to_toml(const value& v);

/// Control characters and bad UTF-8 as \xNN, at most `most` bytes ("..." marks a cut): safe for a terminal and a log.
std::string escaped(std::string_view text, std::size_t most = 80);

/// A value that a person wrote without a type (annotation, command line), read as the row's type. MiB keys take sizes
/// (512M, 2GiB). Lists: a TOML array, or words separated by `;` where there is one, else by spaces. Nothing: not
/// readable.
std::optional<value> from_text(const key& row, std::string_view text);

/// "512M", "2GiB", "1536MiB", "1073741824" with K, M, G, T as powers of 1024, in bytes. Nothing: not a size, or over
/// 2^63.
std::optional<std::uint64_t> parse_size(std::string_view text);

/// What is wrong with a value of this row; `hint` is the value that was probably meant, as TOML.
struct complaint {
  std::string what;
  std::string hint;
};
std::optional<complaint> check_value(const key& row, const value& v, std::string_view kind);

/// True where the value asks for nothing: the preset, or one of key::inert.
bool asks_for_nothing(const key& row, const value& v);

/// The row's preset in a dialect ("kata", "page"); monostate where it has none.
const value& preset_of(const key& row, bool page);

} // namespace caisson::config
