#include "config/load.hpp"

#include <algorithm>
#include <array>

#include <re2/re2.h>

#include "config/nearest.hpp"

namespace caisson::config {
namespace {

/// One key of one file, before it is known which hypervisor's table counts.
struct entry {
  const key* row;
  std::string hypervisor;  // "" outside [hypervisor.X]
  const toml_node* node;
  std::size_t file;
};

struct table_seen {
  std::string name;
  std::size_t file;
  position at;
};

struct reader {
  const sources& from;
  const load_options& options;
  std::vector<problem>& problems;
  std::vector<entry> entries;
  std::vector<table_seen> hypervisors;

  place where(std::size_t file, position at) const { return {from.files[file].path, at, {}}; }

  std::string written(std::size_t file, const toml_node& node) const {
    return text_between(from.files[file].text, node.begin, node.end);
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
    problems.push_back(make_problem(where(file, node.name_at),
                                    {full_table + '.' + node.name, node.is_table ? "" : written(file, node), what, {}, near, unknown()}));
  }

  void unknown_table(std::size_t file, const toml_node& node, const std::string& name, std::span<const std::string_view> known) {
    std::string allowed;
    for (auto each : known)
      allowed += (allowed.empty() ? "[" : ", [") + std::string{each} + ']';
    auto near = nearest(name, known);
    problems.push_back(make_problem(where(file, node.name_at), {name, node.is_table ? "" : written(file, node), node.is_table ? "unknown table" : "unknown key outside any table",
                                                            allowed, near.empty() ? near : '[' + near + ']', unknown()}));
  }

  bool needs_table(std::size_t file, const toml_node& node, const std::string& name) {
    if (node.is_table)
      return true;
    problems.push_back(make_problem(where(file, node.name_at), {name, written(file, node), "is " + std::string{node.kind} + ", not a table",
                                                            "[" + name + "]", {}, v1::CONFIG_SEVERITY_ERROR}));
    return false;
  }

  void keys(std::size_t file, const toml_node& node, table in, const std::string& full_table, const std::string& hypervisor,
            const char* subtable, table sub) {
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
        entries.push_back({row, hypervisor, &child, file});
    }
  }

  void root(std::size_t file, const toml_node& node) {
    static constexpr std::array<std::string_view, 7> top = {"hypervisor", "factory", "agent", "runtime", "proxy", "shim", "netmon"};
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
        keys(file, child, table::runtime, name, {}, nullptr, table::runtime);
      else
        keys(file, child, table::netmon, name, {}, nullptr, table::netmon);
    }
  }

  void hypervisor_tables(std::size_t file, const toml_node& node) {
    std::vector<std::string_view> known;
    for (const auto& each : known_hypervisors())
      known.push_back(each.name);
    for (const auto& child : node.children) {
      const auto full = "hypervisor." + child.name;
      const auto* row = find_key(table::hypervisor, child.name);
      if (!child.is_table && row) {
        problems.push_back(make_problem(where(file, child.name_at), {full, written(file, child), "stands in no hypervisor's table",
                                                                 {}, "[hypervisor.qemu]", v1::CONFIG_SEVERITY_ERROR}));
        continue;
      }
      if (!needs_table(file, child, full))
        continue;
      if (!find_hypervisor(child.name)) {
        std::string allowed;
        for (auto each : known)
          allowed += (allowed.empty() ? "[hypervisor." : ", [hypervisor.") + std::string{each} + ']';
        auto near = nearest(child.name, known);
        problems.push_back(make_problem(where(file, child.name_at), {full, {}, "unknown table", allowed,
                                                                 near.empty() ? near : "[hypervisor." + near + ']', unknown()}));
        continue;
      }
      hypervisors.push_back({child.name, file, child.name_at});
      keys(file, child, table::hypervisor, full, child.name, "factory", table::hypervisor_factory);
    }
  }

  void instances(std::size_t file, const toml_node& node, table in, const std::string& head, const char* subtable, table sub) {
    static constexpr std::array<std::string_view, 1> known = {"kata"};
    for (const auto& child : node.children) {
      const auto full = head + '.' + child.name;
      if (child.name != "kata") {
        auto near = nearest(child.name, known);
        problems.push_back(make_problem(where(file, child.name_at),
                                        {full, child.is_table ? "" : written(file, child),
                                         child.is_table ? "unknown table" : "unknown key outside [" + head + ".kata]", "[" + head + ".kata]",
                                         near.empty() ? near : '[' + head + ".kata]", unknown()}));
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
    if (name.empty() || name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != name.npos)
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

problem not_toml(const std::string& path, std::string_view text, const syntax_error& error, bool stopped) {
  const auto broken = read_broken_line(text, error.at);
  std::string what = error.what.find("representable in 64 bits") != error.what.npos ? std::string{"does not fit into 64 bits"}
                                                                                    : "not TOML: " + escaped(error.what, 200);
  if (stopped)
    what += "; nothing behind this line was checked";
  std::string near;
  if (!broken.row && !broken.full_key.empty()) {
    std::vector<std::string_view> names;
    for (const auto& row : all_keys())
      names.push_back(row.name);
    near = nearest(std::string_view{broken.full_key}.substr(broken.full_key.rfind('.') + 1), names);
  }
  return make_problem({path, broken.value_at.line ? broken.value_at : error.at, {}},
                      {broken.full_key, broken.written, what, broken.row ? allowed_of(*broken.row) : std::string{}, near, v1::CONFIG_SEVERITY_ERROR});
}

std::string override_of(const load_options& options, std::string_view path) {
  std::string found;
  for (const auto& [key_path, text] : options.overrides)
    if (auto* row = find_key_by_path(key_path); row && path_of(*row) == path)
      found = text;
  return found;
}

/// Which [hypervisor.X] counts. Leaves config.hypervisor and config.backend set, with a problem where it cannot be told.
void choose_hypervisor(layered& config, const reader& read, const load_options& options, std::vector<problem>& problems) {
  std::vector<table_seen> tables;
  for (const auto& each : read.hypervisors)
    if (std::none_of(tables.begin(), tables.end(), [&](const auto& known) { return known.name == each.name; }))
      tables.push_back(each);
  const entry* named = nullptr;
  for (const auto& each : read.entries)
    if (each.row->in == table::runtime && each.row->name == "hypervisor_name" &&
        std::holds_alternative<std::string>(each.node->content) && !std::get<std::string>(each.node->content).empty())
      named = &each;
  const auto has_table = [&](std::string_view name) -> const table_seen* {
    for (const auto& each : tables)
      if (each.name == name)
        return &each;
    for (const auto& each : tables)  // clh and cloud-hypervisor are one
      if (auto* known = find_hypervisor(name); known && !known->backend.empty() && known->backend == find_hypervisor(each.name)->backend)
        return &each;
    return nullptr;
  };
  auto asked = override_of(options, "runtime.hypervisor_name");
  if (asked.empty()) {
    if (auto at = options.annotations.find("io.katacontainers.config.runtime.hypervisor_name"); at != options.annotations.end())
      asked = at->second;
  }
  place where{{}, {}, "built-in"};
  if (!asked.empty()) {
    where.other = "command line";
  } else if (named) {
    asked = std::get<std::string>(named->node->content);
    where = read.where(named->file, named->node->begin);
  } else if (tables.size() > 1) {
    std::string all;
    for (const auto& each : tables)
      all += (all.empty() ? "" : ", ") + ("[hypervisor." + each.name + "] at " + to_string(read.where(each.file, each.at)));
    problems.push_back(make_problem(read.where(tables[1].file, tables[1].at),
                                    {"hypervisor." + tables[1].name, {}, "there is more than one hypervisor: " + all +
                                     "; say which counts with hypervisor_name in [runtime]", {}, {}, v1::CONFIG_SEVERITY_ERROR}));
    asked = tables[0].name;
  } else if (tables.size() == 1) {
    asked = tables[0].name;
    where = read.where(tables[0].file, tables[0].at);
  } else {
    asked = "qemu";
  }

  std::vector<std::string_view> known;
  for (const auto& each : known_hypervisors())
    known.push_back(each.name);
  const auto* found = find_hypervisor(asked);
  config.hypervisor = asked;
  if (!found) {
    auto near = nearest(asked, known);
    problems.push_back(make_problem(where, {"runtime.hypervisor_name", '"' + asked + '"', "no such hypervisor",
                                            "one of qemu, clh, cloud-hypervisor", near, v1::CONFIG_SEVERITY_ERROR}));
    config.hypervisor = tables.empty() ? "qemu" : tables[0].name;
    found = find_hypervisor(config.hypervisor);
  } else if (named && where.other.empty() && !tables.empty() && !has_table(asked)) {
    problems.push_back(make_problem(where, {"runtime.hypervisor_name", '"' + asked + '"', "there is no table [hypervisor." + asked + "]",
                                            {}, tables[0].name, v1::CONFIG_SEVERITY_ERROR}));
  }
  config.backend = found->backend;
  if (auto* table = has_table(config.hypervisor))
    config.hypervisor = table->name;
  if (config.backend.empty())
    problems.push_back(make_problem(where, {"hypervisor." + config.hypervisor, {}, "hypervisor \"" + config.hypervisor +
                                            "\" is not supported; backends: qemu, cloud-hypervisor", {}, {}, v1::CONFIG_SEVERITY_ERROR}));
}

/// A key that counts although its table is another hypervisor's: asked for on the command line, with one table to take from.
bool borrowed(const key& row) {
  return row.backends == on::both && row.unit != "path" && row.unit != "paths" && row.unit != "globs";
}

void note_treatment(const layered& config, const key& row, const setting& set, std::vector<problem>& problems) {
  if (row.what == treatment::honoured || asks_for_nothing(row, set.content))
    return;
  const bool refused = row.what == treatment::refused;
  problems.push_back(make_problem(set.where, {config.full_name(row), set.written, (refused ? "refused: " : "has no meaning here: ") + std::string{row.why},
                                              {}, {}, refused ? v1::CONFIG_SEVERITY_ERROR : v1::CONFIG_SEVERITY_WARNING}));
}

void check_expressions(const layered& config, std::vector<problem>& problems) {
  const auto& set = config.at(table::hypervisor, "enable_annotations");
  for (const auto& each : config.list(table::hypervisor, "enable_annotations")) {
    RE2::Options quiet;
    quiet.set_log_errors(false);
    quiet.set_max_mem(1 << 20);
    const RE2 expression(each, quiet);
    if (!expression.ok())
      problems.push_back(make_problem(set.where, {"hypervisor." + config.hypervisor + ".enable_annotations", '"' + each + '"',
                                                  "is no regular expression: " + escaped(expression.error()), {}, {}, v1::CONFIG_SEVERITY_ERROR}));
  }
}

} // namespace

const setting& layered::at(table in, std::string_view name) const {
  static const setting nothing;
  const auto* row = find_key(in, name);
  return row && !settings.empty() ? settings[index_of(*row)] : nothing;
}

std::int64_t layered::integer(table in, std::string_view name) const {
  auto* found = std::get_if<std::int64_t>(&at(in, name).content);
  return found ? *found : 0;
}

double layered::number(table in, std::string_view name) const {
  const auto& content = at(in, name).content;
  if (auto* whole = std::get_if<std::int64_t>(&content))
    return static_cast<double>(*whole);
  auto* found = std::get_if<double>(&content);
  return found ? *found : 0;
}

bool layered::flag(table in, std::string_view name) const {
  auto* found = std::get_if<bool>(&at(in, name).content);
  return found && *found;
}

const std::string& layered::text(table in, std::string_view name) const {
  static const std::string nothing;
  auto* found = std::get_if<std::string>(&at(in, name).content);
  return found ? *found : nothing;
}

const std::vector<std::string>& layered::list(table in, std::string_view name) const {
  static const std::vector<std::string> nothing;
  auto* found = std::get_if<std::vector<std::string>>(&at(in, name).content);
  return found ? *found : nothing;
}

std::string layered::full_name(const key& row) const {
  switch (row.in) {
    case table::hypervisor:
      return "hypervisor." + hypervisor + '.' + std::string{row.name};
    case table::hypervisor_factory:
      return "hypervisor." + hypervisor + ".factory." + std::string{row.name};
    case table::agent:
      return "agent.kata." + std::string{row.name};
    case table::mem_agent:
      return "agent.kata.mem_agent." + std::string{row.name};
    case table::proxy:
    case table::shim:
      return std::string{table_name(row.in)} + ".kata." + std::string{row.name};
    default:
      return path_of(row);
  }
}

bool take(layered& config, const key& row, value content, origin from, place where, std::string written, std::string_view kind,
          std::vector<problem>& problems) {
  if (auto wrong = check_value(row, content, kind)) {
    auto allowed = allowed_of(row);
    problems.push_back(make_problem(where, {config.full_name(row), written, wrong->what, std::move(allowed), wrong->hint, v1::CONFIG_SEVERITY_ERROR}));
    return false;
  }
  if (row.type == value_type::tables && kind == "an array" && std::holds_alternative<std::monostate>(content))
    content = std::string{"[...]"};
  auto& set = config.settings[index_of(row)];
  set.content = std::move(content);
  set.from = from;
  set.where = std::move(where);
  set.written = std::move(written);
  return true;
}

void apply_overrides(layered& config, const load_options& options, std::vector<problem>& problems) {
  for (const auto& [path, text] : options.overrides) {
    const auto* row = find_key_by_path(path);
    place where{{}, {}, "command line"};
    if (!row) {
      std::vector<std::string_view> names;
      for (const auto& each : all_keys())
        names.push_back(each.name);
      const auto dot = path.rfind('.');
      problems.push_back(make_problem(where, {path, text, "unknown key", {}, nearest(dot == path.npos ? path : path.substr(dot + 1), names),
                                              v1::CONFIG_SEVERITY_ERROR}));
      continue;
    }
    auto read = from_text(*row, text);
    if (!read) {
      problems.push_back(make_problem(where, {config.full_name(*row), text, "cannot be read", allowed_of(*row), {}, v1::CONFIG_SEVERITY_ERROR}));
      continue;
    }
    if (take(config, *row, std::move(*read), origin::command_line, where, text, "a value", problems))
      note_treatment(config, *row, config.settings[index_of(*row)], problems);
  }
}

load_result load(const sources& from, const load_options& options) {
  load_result out;
  auto& problems = out.problems;
  problems = from.problems;
  reader read{from, options, problems, {}, {}};
  std::vector<toml_document> documents;
  documents.reserve(from.files.size());
  for (std::size_t i = 0; i < from.files.size(); ++i) {
    documents.push_back(read_toml(from.files[i].text));
    for (const auto& error : documents.back().errors)
      problems.push_back(not_toml(from.files[i].path, from.files[i].text, error,
                                  !documents.back().complete && &error == &documents.back().errors.back()));
    read.root(i, documents.back().root);
  }

  auto& config = out.config;
  config.settings.resize(all_keys().size());
  choose_hypervisor(config, read, options, problems);

  // Kata's or the page's defaults: the last file that says so, then the command line.
  for (const auto& each : read.entries) {
    if (each.row->in != table::runtime || each.row->name != "dialect")
      continue;
    if (auto* text = std::get_if<std::string>(&each.node->content); text && (*text == "kata" || *text == "page"))
      config.dialect = *text;
  }
  if (auto asked = override_of(options, "runtime.dialect"); asked == "kata" || asked == "page")
    config.dialect = asked;
  const bool page = config.dialect == "page";
  const std::string built_in = "built-in (" + config.dialect + ")";
  for (const auto& row : all_keys()) {
    auto& set = config.settings[index_of(row)];
    set.content = preset_of(row, page);
    set.where.other = built_in;
  }

  const bool borrow = std::none_of(read.hypervisors.begin(), read.hypervisors.end(),
                                   [&](const auto& each) { return each.name == config.hypervisor; });
  for (const auto& each : read.entries) {
    const auto where = read.where(each.file, each.node->begin);
    const auto& row = *each.row;
    auto written = read.written(each.file, *each.node);
    if (each.hypervisor.empty() || each.hypervisor == config.hypervisor || (borrow && borrowed(row))) {
      if (take(config, row, each.node->content, each.file == 0 ? origin::file : origin::drop_in, where, std::move(written), each.node->kind,
               problems))
        continue;
    } else if (auto wrong = check_value(row, each.node->content, each.node->kind)) {
      problems.push_back(make_problem(where, {"hypervisor." + each.hypervisor + '.' + std::string{row.name}, written, wrong->what,
                                              allowed_of(row), wrong->hint, v1::CONFIG_SEVERITY_ERROR}));
    }
  }
  for (const auto& row : all_keys())
    if (const auto& set = config.settings[index_of(row)]; set.is_set())
      note_treatment(config, row, set, problems);

  check_expressions(config, problems);
  apply_annotations(config, options, problems);
  apply_overrides(config, options, problems);
  check_rules(config, problems);

  std::stable_sort(problems.begin(), problems.end(), [&](const problem& a, const problem& b) {
    const auto rank = [&](const problem& each) {
      for (std::size_t i = 0; i < from.files.size(); ++i)
        if (from.files[i].path == each.file())
          return i;
      return from.files.size();
    };
    const auto ra = rank(a), rb = rank(b);
    return ra != rb ? ra < rb : a.line() != b.line() ? a.line() < b.line() : a.column() < b.column();
  });
  return out;
}

} // namespace caisson::config
