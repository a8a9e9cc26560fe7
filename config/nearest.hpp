#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

/// "Did you mean": the closest of a set of known words.
namespace caisson::config {

/// Edits (insert, delete, replace, swap of neighbours) between two words, case ignored. Words over 64 bytes are cut.
std::size_t distance(std::string_view a, std::string_view b);

/// The candidate with the fewest edits, if they are few enough for its length; else empty. Ties go to the first.
std::string nearest(std::string_view word, std::span<const std::string_view> candidates);

} // namespace caisson::config
