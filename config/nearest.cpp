#include "config/nearest.hpp"

#include <algorithm>
#include <array>

namespace caisson::config {
namespace {

constexpr std::size_t longest = 64;

char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

} // namespace

std::size_t distance(std::string_view a, std::string_view b) {
  a = a.substr(0, longest);
  b = b.substr(0, longest);
  std::array<std::array<std::size_t, longest + 1>, 3> rows{};
  auto* before = &rows[0];
  auto* last = &rows[1];
  auto* now = &rows[2];
  for (std::size_t j = 0; j <= b.size(); ++j)
    (*last)[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    (*now)[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const bool same = lower(a[i - 1]) == lower(b[j - 1]);
      auto best = std::min({(*last)[j] + 1, (*now)[j - 1] + 1, (*last)[j - 1] + (same ? 0 : 1)});
      if (i > 1 && j > 1 && lower(a[i - 1]) == lower(b[j - 2]) && lower(a[i - 2]) == lower(b[j - 1]))
        best = std::min(best, (*before)[j - 2] + 1);
      (*now)[j] = best;
    }
    auto* oldest = before;
    before = last;
    last = now;
    now = oldest;
  }
  return (*last)[b.size()];
}

std::string nearest(std::string_view word, std::span<const std::string_view> candidates) {
  std::string_view best;
  std::size_t fewest = longest;
  for (auto candidate : candidates) {
    const auto allowed = std::max<std::size_t>(1, std::min(word.size(), candidate.size()) / 3);
    const auto lengths = std::max(word.size(), candidate.size()) - std::min(word.size(), candidate.size());
    if (lengths > allowed || lengths >= fewest)
      continue; // at least so many edits
    const auto edits = distance(word, candidate);
    if (edits < fewest && edits <= allowed) {
      fewest = edits;
      best = candidate;
    }
  }
  return std::string{best};
}

} // namespace caisson::config
