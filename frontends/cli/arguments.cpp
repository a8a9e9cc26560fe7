#include "frontends/cli/arguments.hpp"

#include <algorithm>
#include <charconv>
#include <numeric>

#include "frontends/cli/command_line.hpp"
#include "messages/validate.hpp"

namespace caisson::cli {

split_arguments split(int argc, const char* const* argv) {
  split_arguments out;
  int i = 1;
  for (; i < argc; ++i) {
    std::string word = argv[i];
    if (word == "--") {
      out.dashes = true;
      ++i;
      break;
    }
    bool negative = word.size() > 1 && word[0] == '-' && (word[1] == '.' || (word[1] >= '0' && word[1] <= '9'));
    if (negative && !out.own.empty() && out.own.back().starts_with("--") &&
        out.own.back().find('=') == std::string::npos)
      out.own.back() += "=" + word;
    else
      out.own.push_back(std::move(word));
  }
  for (; i < argc; ++i)
    out.command.emplace_back(argv[i]);
  return out;
}

std::uint64_t size_argument(const std::string& option, const std::string& text) {
  std::string why;
  auto bytes = parse_size_bytes(text, why);
  if (!bytes)
    fail("invalid_argument", option + ": " + why);
  if (*bytes == 0)
    fail("invalid_argument",
         option + ": \"" + text + "\" is no size to ask for; it has to be above zero, like 1536M or 2GiB");
  return *bytes;
}

std::uint64_t number_argument(const std::string& option, const std::string& text) {
  std::uint64_t n = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size())
    fail("invalid_argument", option + ": \"" + escape_guest_text(text, 60) + "\" is not a whole number from 0 up");
  return n;
}

std::uint32_t cpus_milli_argument(const std::string& option, const std::string& text) {
  const auto point = text.find('.');
  if (point == std::string::npos)
    return cpus_argument(option, text) * 1000;
  auto wrong = [&](const std::string& reason) {
    fail("invalid_argument", option + ": \"" + escape_guest_text(text, 60) + "\" " + reason +
                                 "; give processors from 0.01 to 4096, like 2 or 1.5");
  };
  const auto whole = text.substr(0, point), part = text.substr(point + 1);
  const auto digits = [](const std::string& s) { return s.find_first_not_of("0123456789") == std::string::npos; };
  if (text[0] == '-')
    wrong("is negative");
  if (whole.empty() || part.empty() || !digits(whole) || !digits(part))
    wrong("is not a number");
  if (part.size() > 3)
    wrong("has more than three digits behind the point");
  if (whole.size() > 4)
    wrong("is more than any VMM takes");
  const auto milli = std::stoul(whole) * 1000 + std::stoul((part + "00").substr(0, 3));
  if (milli < 10)
    wrong("is less than a kernel shares out");
  if (milli > 4096 * 1000)
    wrong("is more than any VMM takes");
  return static_cast<std::uint32_t>(milli);
}

std::uint32_t cpus_argument(const std::string& option, const std::string& text) {
  auto wrong = [&](const std::string& reason) {
    fail("invalid_argument", option + ": \"" + escape_guest_text(text, 60) + "\" " + reason +
                                 "; give a whole number of processors from 1 to 4096");
  };
  if (!text.empty() && text[0] == '-')
    wrong("is negative");
  std::uint32_t n = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (error == std::errc::result_out_of_range)
    wrong("is more than any VMM takes");
  if (text.empty() || error != std::errc{} || end != text.data() + text.size())
    wrong("is not a whole number");
  if (n == 0)
    wrong("is no processor at all");
  if (n > 4096)
    wrong("is more than any VMM takes");
  return n;
}

std::string nearest_word(const std::string& word, const std::vector<std::string>& known) {
  std::string best;
  std::size_t least = 3; // at most two letters off
  for (const auto& k : known) {
    std::vector<std::size_t> row(k.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 1; i <= word.size(); ++i) {
      auto diagonal = row[0];
      row[0] = i;
      for (std::size_t j = 1; j <= k.size(); ++j) {
        auto above = row[j];
        row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (word[i - 1] == k[j - 1] ? 0 : 1)});
        diagonal = above;
      }
    }
    if (row.back() < least) {
      least = row.back();
      best = k;
    }
  }
  return best;
}

} // namespace caisson::cli
