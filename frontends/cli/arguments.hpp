#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace caisson::cli {

struct split_arguments {
  std::vector<std::string> own;     ///< for the parser
  std::vector<std::string> command; ///< everything after the first "--", untouched
  bool dashes = false;              ///< "--" was there
};

/// Cuts at the first "--" and ties a negative number to its option ("--memory -1G"), so that the error is about the
/// number.
split_arguments split(int argc, const char* const* argv);

/// Above zero, and a size; failed{invalid_argument} with `option` named otherwise.
std::uint64_t size_argument(const std::string& option, const std::string& text);

/// 1..4096 processors.
std::uint32_t cpus_argument(const std::string& option, const std::string& text);

/// The same in thousandths: "2" is 2000, "1.5" is 1500; at least 0.01, at most three digits behind the point.
std::uint32_t cpus_milli_argument(const std::string& option, const std::string& text);

/// A number from 0 up.
std::uint64_t number_argument(const std::string& option, const std::string& text);

/// The word of `known` that was probably meant; "" where none is near.
std::string nearest_word(const std::string& word, const std::vector<std::string>& known);

} // namespace caisson::cli
