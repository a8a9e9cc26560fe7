#include "config/tables.hpp"

#include <algorithm>
#include <array>

#include "config/nearest.hpp"

namespace caisson::config {
namespace {

struct table_reader {
  const sources& from;
  const load_options& options;
  std::vector<problem>& problems;
  file_tables& out;

  place where(std::size_t file, position at) const { return {from.files[file].path, at, {}}; }

  std::string written(std::size_t file, const toml_node& node) const {
    return text_between(from.files[file].text, out.documents[file].line_starts, node.begin, node.end);
  }

  v1::ConfigSeverity unknown() const {
    return options.lenient ? v1::CONFIG_SEVERITY_WARNING : v1::CONFIG_SEVERITY_ERROR;
  }

  /// All the keys of `in`, and of every other table, for a name that is not one of them.
  void unknown_key(std::size_t file, const toml_node& node, table in, const std::string& full_table) {
    std::vector<std::string_view> here;
    std::vector<std::string_view> all;
    for (const auto& row : all_keys())
      (row.in == in ? here : all).push_back(row.name);
    auto near = nearest(node.name, here);
    std::string what = "unknown key in [" + full_table + "]";
    if (node.is_table)
      what = "unknown table [" + full_table + "." + node.name + "]";
    if (near.empty()) {
      for (const auto& row : all_keys())
        if (row.name == node.name && near.empty()) {
          near = path_of(row);
          what += "; that key belongs into another table";
        }
      if (near.empty())
        near = nearest(node.name, all);
    }
    problems.push_back(make_problem(
        where(file, node.name_at),
        {full_table + '.' + node.name, node.is_table ? "" : written(file, node), what, {}, near, unknown()}));
  }

  void unknown_table(std::size_t file, const toml_node& node, const std::string& name,
                     std::span<const std::string_view> known) {
    std::string allowed;
    for (auto each : known)
      allowed += (allowed.empty() ? "[" : ", [") + std::string{each} + ']';
    auto near = nearest(name, known);
    if (!near.empty())
      near = '[' + near + ']';
    std::string what = node.is_table ? "unknown table" : "unknown key outside any table";
    if (const auto* row = find_key_by_path(name); row && !node.is_table && row->name == name)
      near = path_of(*row), what = "key outside any table";
    problems.push_back(make_problem(where(file, node.name_at),
                                    {name, node.is_table ? "" : written(file, node), what, allowed, near, unknown()}));
  }

  bool needs_table(std::size_t file, const toml_node& node, const std::string& name) {
    if (node.is_table)
      return true;
    problems.push_back(make_problem(where(file, node.name_at), {name,
                                                                written(file, node),
                                                                "is " + std::string{node.kind} + ", not a table",
                                                                "[" + name + "]",
                                                                {},
                                                                v1::CONFIG_SEVERITY_ERROR}));
    return false;
  }

  void keys(std::size_t file, const toml_node& node, table in, const std::string& full_table,
            const std::string& hypervisor, const char* subtable, table sub) {
    for (const auto& child : node.children) {
      if (subtable && child.name == subtable) {
        if (needs_table(file, child, full_table + '.' + subtable))
          keys(file, child, sub, full_table + '.' + subtable, hypervisor, nullptr, sub);
        continue;
      }
      const auto* row = find_key(in, child.name);
      if (!row)
        unknown_key(file, child, in, full_table);
      else
        out.entries.push_back({row, hypervisor, &child, file});
    }
  }

  void root(std::size_t file, const toml_node& node) {
    static constexpr std::array<std::string_view, 7> top = {"hypervisor", "factory", "agent", "runtime",
                                                            "proxy",      "shim",    "netmon"};
    for (const auto& child : node.children) {
      const auto& name = child.name;
      if (std::find(top.begin(), top.end(), name) == top.end()) {
        unknown_table(file, child, name, top);
        continue;
      }
      if (!needs_table(file, child, name))
        continue;
      if (name == "hypervisor")
        hypervisor_tables(file, child);
      else if (name == "agent")
        instances(file, child, table::agent, "agent", "mem_agent", table::mem_agent);
      else if (name == "proxy")
        instances(file, child, table::proxy, "proxy", nullptr, table::proxy);
      else if (name == "shim")
        instances(file, child, table::shim, "shim", nullptr, table::shim);
      else if (name == "factory")
        keys(file, child, table::factory, name, {}, nullptr, table::factory);
      else if (name == "runtime")
        keys(file, child, table::runtime, name, {}, "caisson", table::runtime_caisson);
      else
        keys(file, child, table::netmon, name, {}, nullptr, table::netmon);
    }
  }

  void hypervisor_tables(std::size_t file, const toml_node& node) {
    for (const auto& child : node.children) {
      const auto full = "hypervisor." + child.name;
      const auto* row = find_key(table::hypervisor, child.name);
      if (!child.is_table && row) {
        problems.push_back(make_problem(where(file, child.name_at), {full,
                                                                     written(file, child),
                                                                     "stands in no hypervisor's table",
                                                                     {},
                                                                     "[hypervisor.qemu]",
                                                                     v1::CONFIG_SEVERITY_ERROR}));
        continue;
      }
      if (!needs_table(file, child, full))
        continue;
      if (!options.hypervisors.find(child.name)) {
        const auto near = options.hypervisors.nearest_to(child.name);
        problems.push_back(make_problem(where(file, child.name_at),
                                        {full, {}, "unknown table", options.hypervisors.tables(),
                                         near.empty() ? near : "[hypervisor." + near + ']', unknown()}));
        continue;
      }
      out.hypervisors.push_back({child.name, file, child.name_at});
      keys(file, child, table::hypervisor, full, child.name, "factory", table::hypervisor_factory);
    }
  }

  void instances(std::size_t file, const toml_node& node, table in, const std::string& head, const char* subtable,
                 table sub) {
    static constexpr std::array<std::string_view, 1> known = {"kata"};
    for (const auto& child : node.children) {
      const auto full = head + '.' + child.name;
      if (child.name != "kata") {
        auto near = nearest(child.name, known);
        problems.push_back(make_problem(where(file, child.name_at),
                                        {full, child.is_table ? "" : written(file, child),
                                         child.is_table ? "unknown table" : "unknown key outside [" + head + ".kata]",
                                         "[" + head + ".kata]",
                                         near.empty() && child.is_table ? near : '[' + head + ".kata]", unknown()}));
        continue;
      }
      if (needs_table(file, child, full))
        keys(file, child, in, full, {}, subtable, sub);
    }
  }
};

/// A broken line, as far as it can be read: which key it was meant for, and what stands behind its `=`.
struct broken_line {
  std::string full_key;
  std::string written;
  const key* row = nullptr;
  position value_at;
};

std::string_view trim(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\r");
  if (first == text.npos)
    return {};
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

broken_line read_broken_line(std::string_view text, position at) {
  broken_line out;
  std::string table_text;
  std::uint32_t number = 0;
  while (number < at.line && !text.empty()) {
    ++number;
    const auto end = text.find('\n');
    const auto line = text.substr(0, end);
    text = end == text.npos ? std::string_view{} : text.substr(end + 1);
    const auto inner = trim(line);
    if (number < at.line) {
      if (inner.size() > 2 && inner.front() == '[' && inner[1] != '[')
        table_text = trim(inner.substr(1, inner.find(']') == inner.npos ? inner.npos : inner.find(']') - 1));
      continue;
    }
    const auto equals = line.find('=');
    if (equals == line.npos)
      return out;
    const auto name = trim(line.substr(0, equals));
    if (name.empty() ||
        name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != name.npos)
      return out;
    out.full_key = (table_text.empty() ? "" : table_text + '.') + std::string{name};
    out.written = trim(line.substr(equals + 1));
    out.row = find_key_by_path(out.full_key);
    const auto value_begin = line.find_first_not_of(" \t", equals + 1);
    if (value_begin != line.npos && line.substr(0, value_begin).find_first_of("\x80\xff") == line.npos)
      out.value_at = {at.line, static_cast<std::uint32_t>(value_begin + 1)};
  }
  return out;
}

/// What a value that is no TOML was probably meant to be: 4G, True, a word without quotes.
std::string meant_by(const key& row, std::string_view written) {
  if (written.empty() || written.find_first_of("\"'[]{}#") != written.npos)
    return {};
  if (row.type == value_type::boolean || row.type == value_type::integer) {
    auto wrong = check_value(row, std::string{written}, "a word");
    return wrong ? wrong->hint : std::string{};
  }
  if (row.type != value_type::text || written.find_first_of("=\\") != written.npos)
    return {};
  auto wrong = check_value(row, std::string{written}, "a word");
  return wrong ? wrong->hint : to_toml(std::string{written});
}

problem not_toml(const std::string& path, std::string_view text, const syntax_error& error, bool stopped) {
  const auto broken = read_broken_line(text, error.at);
  std::string what = error.what.find("representable in 64 bits") != error.what.npos
                         ? std::string{"does not fit into 64 bits"}
                         : "not TOML: " + escaped(error.what, 200);
  if (stopped)
    what += "; nothing behind this line was checked";
  std::string near;
  if (broken.row && error.what.find("redefine") == error.what.npos)
    near = meant_by(*broken.row, broken.written);
  if (!broken.row && !broken.full_key.empty()) {
    std::vector<std::string_view> names;
    for (const auto& row : all_keys())
      names.push_back(row.name);
    near = nearest(std::string_view{broken.full_key}.substr(broken.full_key.rfind('.') + 1), names);
  }
  return make_problem({path, broken.value_at.line ? broken.value_at : error.at, {}},
                      {broken.full_key, broken.written, what, broken.row ? allowed_of(*broken.row) : std::string{},
                       near, v1::CONFIG_SEVERITY_ERROR});
}

} // namespace

file_tables read_tables(const sources& from, const load_options& options, std::vector<problem>& problems) {
  file_tables out;
  out.documents.reserve(from.files.size());
  table_reader reader{from, options, problems, out};
  for (std::size_t i = 0; i < from.files.size(); ++i) {
    const auto& document = out.documents.emplace_back(read_toml(from.files[i].text));
    for (const auto& error : document.errors)
      problems.push_back(not_toml(from.files[i].path, from.files[i].text, error,
                                  !document.complete && &error == &document.errors.back()));
    reader.root(i, document.root);
  }
  return out;
}

} // namespace caisson::config
