#include "config/value.hpp"

#include <charconv>
#include <cmath>
#include <cstdio>

#include "config/nearest.hpp"

namespace caisson::config {
namespace {

constexpr std::size_t longest_text = 4096;
constexpr std::size_t longest_list = 1024;

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c < 0x20 || c == 0x7f) {
      char buffer[8];
      std::snprintf(buffer, sizeof buffer, "\\u%04x", c);
      out += buffer;
    } else {
      out += static_cast<char>(c);
    }
  }
  return out + '"';
}

std::string number_text(double v) {
  char buffer[32];
  auto [end, failed] = std::to_chars(buffer, buffer + sizeof buffer, v);
  return failed == std::errc{} ? std::string(buffer, end) : "0";
}

bool has_control(std::string_view text) {
  for (unsigned char c : text)
    if (c < 0x20 || c == 0x7f)
      return true;
  return false;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const auto at = text.find(separator);
    parts.push_back(text.substr(0, at));
    if (at == text.npos)
      return parts;
    text.remove_prefix(at + 1);
  }
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ')
    text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ')
    text.remove_suffix(1);
  return text;
}

/// An array of basic strings: ["a", "b"]. Nothing: something else.
std::optional<std::vector<std::string>> parse_array(std::string_view text) {
  std::vector<std::string> out;
  text = trimmed(text);
  if (text.size() < 2 || text.front() != '[' || text.back() != ']')
    return std::nullopt;
  text = trimmed(text.substr(1, text.size() - 2));
  while (!text.empty()) {
    if (text.front() != '"')
      return std::nullopt;
    std::string item;
    std::size_t i = 1;
    for (; i < text.size() && text[i] != '"'; ++i) {
      if (text[i] == '\\' && ++i == text.size())
        return std::nullopt;
      item += text[i];
    }
    if (i == text.size())
      return std::nullopt;
    out.push_back(std::move(item));
    text = trimmed(text.substr(i + 1));
    if (text.empty())
      break;
    if (text.front() != ',')
      return std::nullopt;
    text = trimmed(text.substr(1));
  }
  return out;
}

value preset_value(const key& row, std::string_view text) {
  if (text.empty())
    return {};
  if (row.type == value_type::text)
    return std::string{text.substr(1, text.size() - 2)};
  return from_text(row, text).value_or(value{});
}

/// "4G" where MiB were wanted -> "4096".
std::string integer_hint(const key& row, const value& v) {
  if (auto* text = std::get_if<std::string>(&v)) {
    std::int64_t plain = 0;
    auto [end, failed] = std::from_chars(text->data(), text->data() + text->size(), plain);
    std::uint64_t scaled = 0;
    if (failed == std::errc{} && end == text->data() + text->size())
      scaled = static_cast<std::uint64_t>(plain);
    else if (auto bytes = parse_size(*text); bytes && row.unit == "MiB")
      scaled = *bytes >> 20;
    else if (bytes)
      scaled = *bytes;
    const auto as_signed = static_cast<std::int64_t>(scaled);
    return as_signed >= row.low && as_signed <= row.high && scaled != 0 ? std::to_string(as_signed) : std::string{};
  }
  if (auto* number = std::get_if<double>(&v); number && *number >= 0 && *number < 9e15)
    return std::to_string(static_cast<std::int64_t>(std::ceil(*number)));
  return {};
}

} // namespace

std::string to_toml(const value& v) {
  if (auto* flag = std::get_if<bool>(&v))
    return *flag ? "true" : "false";
  if (auto* integer = std::get_if<std::int64_t>(&v))
    return std::to_string(*integer);
  if (auto* number = std::get_if<double>(&v))
    return number_text(*number);
  if (auto* text = std::get_if<std::string>(&v))
    return quoted(*text);
  if (auto* list = std::get_if<std::vector<std::string>>(&v)) {
    std::string out = "[";
    for (std::size_t i = 0; i < list->size(); ++i)
      out += (i ? ", " : "") + quoted((*list)[i]);
    return out + "]";
  }
  return {};
}

std::string escaped(std::string_view text, std::size_t most) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    if (out.size() >= most)
      return out + "...";
    const auto c = static_cast<unsigned char>(text[i]);
    std::size_t length = c < 0x80                ? 1
                         : c >= 0xc2 && c < 0xe0 ? 2
                         : c >= 0xe0 && c < 0xf0 ? 3
                         : c >= 0xf0 && c < 0xf5 ? 4
                                                 : 0;
    bool plain = length != 0 && i + length <= text.size() && c >= 0x20 && c != 0x7f;
    for (std::size_t j = 1; plain && j < length; ++j)
      plain = (static_cast<unsigned char>(text[i + j]) & 0xc0) == 0x80;
    // C1 controls and the characters that turn the direction of text around
    if (plain && length == 2 && c == 0xc2 && static_cast<unsigned char>(text[i + 1]) < 0xa0)
      plain = false;
    if (plain && length == 3 && c == 0xe2 && (text[i + 1] == '\x80' || text[i + 1] == '\x81') &&
        static_cast<unsigned char>(text[i + 2]) >= 0x8b)
      plain = false;
    if (plain) {
      out.append(text.substr(i, length));
      i += length;
    } else {
      char buffer[8];
      std::snprintf(buffer, sizeof buffer, "\\x%02x", c);
      out += buffer;
      ++i;
    }
  }
  return out;
}

std::optional<std::uint64_t> parse_size(std::string_view text) {
  std::uint64_t number = 0;
  auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failed != std::errc{} || end == text.data())
    return std::nullopt;
  auto suffix = text.substr(static_cast<std::size_t>(end - text.data()));
  int shift = 0;
  if (!suffix.empty()) {
    switch (suffix.front()) {
    case 'k':
    case 'K':
      shift = 10;
      break;
    case 'm':
    case 'M':
      shift = 20;
      break;
    case 'g':
    case 'G':
      shift = 30;
      break;
    case 't':
    case 'T':
      shift = 40;
      break;
    default:
      return std::nullopt;
    }
    suffix.remove_prefix(1);
    if (!suffix.empty() && suffix != "i" && suffix != "iB" && suffix != "B" && suffix != "b" && suffix != "ib")
      return std::nullopt;
  }
  if (number > (std::uint64_t{1} << 63) >> shift)
    return std::nullopt;
  return number << shift;
}

std::optional<value> from_text(const key& row, std::string_view text) {
  switch (row.type) {
  case value_type::boolean:
    if (text == "true" || text == "false")
      return value{text == "true"};
    return std::nullopt;
  case value_type::integer: {
    std::int64_t number = 0;
    auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (failed == std::errc{} && end == text.data() + text.size() && !text.empty())
      return value{number};
    auto bytes = parse_size(text);
    if (!bytes || row.unit != "MiB" || (*bytes & 0xfffff) != 0)
      return std::nullopt;
    return value{static_cast<std::int64_t>(*bytes >> 20)};
  }
  case value_type::number: {
    double number = 0;
    auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (failed != std::errc{} || end != text.data() + text.size() || text.empty())
      return std::nullopt;
    return value{number};
  }
  case value_type::text:
    return value{std::string{text}};
  case value_type::text_list: {
    if (auto array = parse_array(text))
      return value{std::move(*array)};
    if (!text.empty() && text.front() == '[')
      return std::nullopt;
    std::vector<std::string> out;
    for (auto part : split(text, text.find(';') == text.npos ? ' ' : ';'))
      if (part = trimmed(part); !part.empty())
        out.emplace_back(part);
    return value{std::move(out)};
  }
  case value_type::tables:
    return std::nullopt;
  }
  return std::nullopt;
}

std::optional<complaint> check_value(const key& row, const value& v, std::string_view kind) {
  const auto wrong_type = [&](std::string_view wanted, std::string hint) {
    return complaint{"is " + std::string{kind} + ", not " + std::string{wanted}, std::move(hint)};
  };
  switch (row.type) {
  case value_type::boolean: {
    if (std::holds_alternative<bool>(v))
      return std::nullopt;
    std::string hint;
    if (auto* text = std::get_if<std::string>(&v)) {
      static constexpr std::string_view words[] = {"true", "yes", "on", "1", "false", "no", "off", "0"};
      if (const auto word = nearest(*text, words); !word.empty())
        hint = word == "true" || word == "yes" || word == "on" || word == "1" ? "true" : "false";
    }
    if (auto* integer = std::get_if<std::int64_t>(&v); integer && (*integer == 0 || *integer == 1))
      hint = *integer ? "true" : "false";
    return wrong_type("a boolean", std::move(hint));
  }
  case value_type::integer: {
    auto* integer = std::get_if<std::int64_t>(&v);
    if (!integer)
      return wrong_type("an integer", integer_hint(row, v));
    if (*integer < row.low)
      return complaint{*integer < 0 && row.low == 0 ? "is negative" : "is too small", {}};
    if (*integer > row.high)
      return complaint{"is too large", {}};
    return std::nullopt;
  }
  case value_type::number: {
    double number = 0;
    if (auto* integer = std::get_if<std::int64_t>(&v))
      number = static_cast<double>(*integer);
    else if (auto* real = std::get_if<double>(&v))
      number = *real;
    else
      return wrong_type("a number", integer_hint(row, v));
    if (!std::isfinite(number))
      return complaint{"is not a finite number", {}};
    if (number < static_cast<double>(row.low))
      return complaint{"is too small", {}};
    if (number > static_cast<double>(row.high))
      return complaint{"is too large", {}};
    return std::nullopt;
  }
  case value_type::text: {
    auto* text = std::get_if<std::string>(&v);
    if (!text)
      return wrong_type("a string", row.choices.empty() && std::holds_alternative<std::int64_t>(v) ? quoted(to_toml(v))
                                                                                                   : std::string{});
    if (text->size() > longest_text)
      return complaint{"is longer than " + std::to_string(longest_text) + " bytes", {}};
    if (has_control(*text))
      return complaint{"contains a control character", {}};
    if (row.choices.empty())
      return std::nullopt;
    const auto allowed = split(row.choices, '|');
    for (auto choice : allowed)
      if (choice == *text)
        return std::nullopt;
    auto near = nearest(*text, allowed);
    return complaint{"is not a known value", near.empty() ? near : quoted(near)};
  }
  case value_type::text_list: {
    auto* list = std::get_if<std::vector<std::string>>(&v);
    if (!list && kind == "an array")
      return complaint{"has items that are no strings", {}};
    if (!list)
      return wrong_type("an array of strings",
                        std::holds_alternative<std::string>(v) ? "[" + to_toml(v) + "]" : std::string{});
    if (list->size() > longest_list)
      return complaint{"has more than " + std::to_string(longest_list) + " items", {}};
    for (const auto& item : *list)
      if (item.size() > longest_text || has_control(item))
        return complaint{"has an item that is too long or contains a control character", {}};
    return std::nullopt;
  }
  case value_type::tables:
    return std::nullopt;
  }
  return std::nullopt;
}

const value& preset_of(const key& row, bool page) {
  static const auto built = [] {
    std::vector<std::pair<value, value>> out;
    for (const auto& each : all_keys()) {
      auto kata = preset_value(each, each.preset);
      auto other = each.page_preset.empty() ? kata : preset_value(each, each.page_preset);
      out.emplace_back(std::move(kata), std::move(other));
    }
    return out;
  }();
  const auto& pair = built[index_of(row)];
  return page ? pair.second : pair.first;
}

bool asks_for_nothing(const key& row, const value& v) {
  if (row.inert == "*")
    return true;
  const auto& preset = preset_of(row, false);
  if (v == preset || std::holds_alternative<std::monostate>(v))
    return true;
  if (auto* text = std::get_if<std::string>(&v); text && text->empty())
    return true;
  if (auto* list = std::get_if<std::vector<std::string>>(&v); list && list->empty())
    return true;
  if (row.inert.empty())
    return false;
  auto written = to_toml(v);
  if (auto* text = std::get_if<std::string>(&v))
    written = *text;
  for (auto each : split(row.inert, '|'))
    if (each == written)
      return true;
  return false;
}

} // namespace caisson::config
