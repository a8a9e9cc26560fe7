#include "config/toml_reader.hpp"

#include <algorithm>
#include <exception>
#include <optional>

#include <toml++/toml.h>

namespace caisson::config {
namespace {

constexpr int most_broken_lines = 50;

position at(const toml::source_position& p) {
  return {p.line, p.column};
}

std::string_view kind_of(const toml::node& node) {
  switch (node.type()) {
  case toml::node_type::table:
    return "a table";
  case toml::node_type::array:
    return "an array";
  case toml::node_type::string:
    return "a string";
  case toml::node_type::integer:
    return "an integer";
  case toml::node_type::floating_point:
    return "a fractional number";
  case toml::node_type::boolean:
    return "a boolean";
  case toml::node_type::date:
    return "a date";
  case toml::node_type::time:
    return "a time";
  case toml::node_type::date_time:
    return "a date";
  default:
    return "nothing";
  }
}

value content_of(const toml::node& node) {
  if (auto* flag = node.as_boolean())
    return flag->get();
  if (auto* integer = node.as_integer())
    return integer->get();
  if (auto* number = node.as_floating_point())
    return number->get();
  if (auto* text = node.as_string())
    return text->get();
  if (auto* array = node.as_array()) {
    std::vector<std::string> list;
    for (const auto& item : *array) {
      auto* text = item.as_string();
      if (!text)
        return {};
      list.push_back(text->get());
    }
    return list;
  }
  return {};
}

void fill(toml_node& out, const toml::table& table) {
  out.is_table = true;
  out.kind = "a table";
  out.children.reserve(table.size());
  for (const auto& [key, node] : table) {
    auto& child = out.children.emplace_back();
    child.name = key.str();
    child.name_at = at(key.source().begin);
    child.begin = at(node.source().begin);
    child.end = at(node.source().end);
    child.kind = kind_of(node);
    if (auto* inner = node.as_table())
      fill(child, *inner);
    else
      child.content = content_of(node);
  }
  std::sort(out.children.begin(), out.children.end(), [](const toml_node& a, const toml_node& b) {
    return a.name_at.line != b.name_at.line ? a.name_at.line < b.name_at.line : a.name_at.column < b.name_at.column;
  });
}

struct failure {
  position where;
  std::string what;
};

std::optional<failure> parse(std::string_view text, toml_node& root) {
  try {
    fill(root, toml::parse(text));
    return std::nullopt;
  } catch (const toml::parse_error& error) {
    return failure{at(error.source().begin), std::string{error.description()}};
  } catch (const std::exception& error) {
    return failure{{1, 1}, error.what()};
  }
}

std::vector<std::size_t> starts_of_lines(std::string_view text) {
  std::vector<std::size_t> out = {0};
  for (auto at = text.find('\n'); at != text.npos; at = text.find('\n', at + 1))
    out.push_back(at + 1);
  return out;
}

/// Start and end of a line, from 1.
std::pair<std::size_t, std::size_t> line_bounds(std::string_view text, const std::vector<std::size_t>& starts,
                                                std::uint32_t line) {
  if (line == 0 || line > starts.size())
    return {text.size(), text.size()};
  return {starts[line - 1], line < starts.size() ? starts[line] - 1 : text.size()};
}

/// A line that is left out without touching its neighbours: `key = value`. (Without its header, a table's keys would
/// fall into the table before it.)
bool stands_alone(std::string_view line) {
  const auto first = line.find_first_not_of(" \t\r");
  if (first == line.npos)
    return false;
  if (line.find("\"\"\"") != line.npos || line.find("'''") != line.npos)
    return false;
  const auto is_key_byte = [](unsigned char c) {
    return c >= 0x80 || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '"' || c == '.' || c == '\'';
  };
  return is_key_byte(static_cast<unsigned char>(line[first]));
}

} // namespace

toml_document read_toml(std::string_view text) {
  toml_document out;
  out.line_starts = starts_of_lines(text);
  auto failed = parse(text, out.root);
  if (!failed)
    return out;
  std::string copy{text};
  std::uint32_t last_line = 0;
  for (int i = 0; failed; ++i) {
    // toml++ names the line behind where a value ends with the line; the fault stands before the break.
    auto [begin, end] = line_bounds(copy, out.line_starts, failed->where.line);
    if (std::string_view{copy}.substr(begin, end - begin).find_first_not_of(" \t\r") == std::string::npos &&
        failed->where.line > 1 && failed->where.line > last_line + 1) {
      --failed->where.line;
      std::tie(begin, end) = line_bounds(copy, out.line_starts, failed->where.line);
      failed->where.column = static_cast<std::uint32_t>(end - begin + 1);
    }
    out.errors.push_back({failed->where, failed->what});
    const auto line = std::string_view{copy}.substr(begin, end - begin);
    if (i == most_broken_lines || failed->where.line <= last_line || !stands_alone(line)) {
      out.complete = false;
      out.root = {};
      return out;
    }
    last_line = failed->where.line;
    std::fill(copy.begin() + static_cast<std::ptrdiff_t>(begin), copy.begin() + static_cast<std::ptrdiff_t>(end), ' ');
    out.root = {};
    failed = parse(copy, out.root);
  }
  return out;
}

std::string text_between(std::string_view text, const std::vector<std::size_t>& line_starts, position begin,
                         position end) {
  constexpr std::size_t most = 200;
  if (begin.line == 0 || end.line < begin.line)
    return {};
  const auto from = line_bounds(text, line_starts, begin.line).first;
  std::uint32_t line = begin.line;
  std::uint32_t column = 1;
  std::string out;
  for (std::size_t i = from; i < text.size() && out.size() < most; ++i) {
    if (line > end.line || (line == end.line && column >= end.column))
      break;
    const bool inside = line > begin.line || column >= begin.column;
    if (text[i] == '\n') {
      ++line;
      column = 1;
      if (inside)
        out += ' ';
      continue;
    }
    if (inside)
      out += text[i];
    // a column is a character: count the byte that begins the next one
    if (i + 1 >= text.size() || (static_cast<unsigned char>(text[i + 1]) & 0xc0) != 0x80)
      ++column;
  }
  while (!out.empty() && (out.back() == ' ' || out.back() == '\r'))
    out.pop_back();
  return out;
}

} // namespace caisson::config
