#include "config/load.hpp"

#include <algorithm>
#include <array>

#include <re2/re2.h>

#include "config/nearest.hpp"
#include "config/tables.hpp"

namespace caisson::config {
namespace {

std::string override_of(const load_options& options, std::string_view path) {
  std::string found;
  for (const auto& [key_path, text] : options.overrides)
    if (auto* row = find_key_by_path(key_path); row && path_of(*row) == path)
      found = text;
  return found;
}

/// Which [hypervisor.X] counts. Leaves config.hypervisor and config.backend set, with a problem where it cannot be
/// told.
void choose_hypervisor(layered& config, const sources& from, const file_tables& read, const load_options& options,
                       std::vector<problem>& problems) {
  const auto where_of = [&](std::size_t file, position at) { return place{from.files[file].path, at, {}}; };
  const auto& names = options.hypervisors;
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
    for (const auto& each : tables) // clh and cloud-hypervisor are one
      if (auto* known = names.find(name);
          known && !known->backend.empty() && known->backend == names.find(each.name)->backend)
        return &each;
    return nullptr;
  };
  auto asked = override_of(options, "runtime.hypervisor_name");
  bool by_pod = false;
  if (asked.empty()) {
    if (auto at = options.annotations.find("io.katacontainers.config.runtime.hypervisor_name");
        at != options.annotations.end()) {
      asked = at->second;
      by_pod = !asked.empty();
    }
  }
  place where{{}, {}, "built-in"};
  if (!asked.empty()) {
    where.other = by_pod ? "annotation io.katacontainers.config.runtime.hypervisor_name" : "command line";
  } else if (named) {
    asked = std::get<std::string>(named->node->content);
    where = where_of(named->file, named->node->begin);
  } else if (tables.size() > 1) {
    std::string all;
    for (const auto& each : tables)
      all +=
          (all.empty() ? "" : ", ") + ("[hypervisor." + each.name + "] at " + to_string(where_of(each.file, each.at)));
    problems.push_back(make_problem(
        where_of(tables[1].file, tables[1].at),
        {"hypervisor." + tables[1].name,
         {},
         "there is more than one hypervisor: " + all + "; say which counts with hypervisor_name in [runtime]",
         {},
         {},
         v1::CONFIG_SEVERITY_ERROR}));
    asked = tables[0].name;
  } else if (tables.size() == 1) {
    asked = tables[0].name;
    where = where_of(tables[0].file, tables[0].at);
  } else {
    asked = "qemu";
  }

  const auto* found = names.find(asked);
  config.hypervisor = asked;
  if (!found) {
    problems.push_back(make_problem(where, {"runtime.hypervisor_name", '"' + asked + '"', "no such hypervisor",
                                            names.allowed(), names.nearest_to(asked), v1::CONFIG_SEVERITY_ERROR}));
    config.hypervisor = tables.empty() ? "qemu" : tables[0].name;
    found = names.find(config.hypervisor);
  } else if ((by_pod || (named && where.other.empty() && !tables.empty())) && !has_table(asked)) {
    problems.push_back(make_problem(where, {"runtime.hypervisor_name",
                                            '"' + asked + '"',
                                            "there is no table [hypervisor." + asked + "]",
                                            {},
                                            tables.empty() ? std::string{} : tables[0].name,
                                            v1::CONFIG_SEVERITY_ERROR}));
  }
  config.backend = found->backend;
  if (auto* table = has_table(config.hypervisor))
    config.hypervisor = table->name;
  if (config.backend.empty())
    problems.push_back(make_problem(
        where, {"hypervisor." + config.hypervisor,
                {},
                "hypervisor \"" + config.hypervisor + "\" is not supported; backends: " + names.backends(),
                {},
                {},
                v1::CONFIG_SEVERITY_ERROR}));
}

/// A key that counts although its table is another hypervisor's: asked for on the command line, with one table to take
/// from.
bool borrowed(const key& row) {
  return row.backends == on::both && row.unit != "path" && row.unit != "paths" && row.unit != "globs";
}

void note_treatment(const layered& config, const key& row, const setting& set, std::vector<problem>& problems) {
  if (row.what == treatment::honoured || asks_for_nothing(row, set.content))
    return;
  if (config.backend.empty() && row.in == table::hypervisor)
    return; // the whole hypervisor is refused
  const bool refused = row.what == treatment::refused;
  problems.push_back(make_problem(set.where, {config.full_name(row),
                                              set.written,
                                              (refused ? "refused: " : "has no meaning here: ") + std::string{row.why},
                                              {},
                                              {},
                                              refused ? v1::CONFIG_SEVERITY_ERROR : v1::CONFIG_SEVERITY_WARNING}));
}

void check_expressions(const layered& config, std::vector<problem>& problems) {
  const auto& set = config.at(table::hypervisor, "enable_annotations");
  for (const auto& each : config.list(table::hypervisor, "enable_annotations")) {
    RE2::Options quiet;
    quiet.set_log_errors(false);
    quiet.set_max_mem(1 << 20);
    const RE2 expression(each, quiet);
    if (!expression.ok())
      problems.push_back(make_problem(set.where, {"hypervisor." + config.hypervisor + ".enable_annotations",
                                                  '"' + each + '"',
                                                  "is no regular expression: " + escaped(expression.error()),
                                                  {},
                                                  {},
                                                  v1::CONFIG_SEVERITY_ERROR}));
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

bool take(layered& config, const key& row, value content, origin from, place where, std::string written,
          std::string_view kind, std::vector<problem>& problems) {
  if (auto wrong = check_value(row, content, kind)) {
    auto allowed = allowed_of(row);
    problems.push_back(make_problem(where, {config.full_name(row), written, wrong->what, std::move(allowed),
                                            wrong->hint, v1::CONFIG_SEVERITY_ERROR}));
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
    if (path == "architecture") {
      apply_architecture(config, text, problems);
      continue;
    }
    const auto* row = find_key_by_path(path);
    place where{{}, {}, "command line"};
    if (const auto name = hypervisor_in(path); row && !name.empty() && !options.hypervisors.find(name)) {
      problems.push_back(make_problem(where, {path, text, "no such hypervisor", options.hypervisors.allowed(),
                                              options.hypervisors.nearest_to(name), v1::CONFIG_SEVERITY_ERROR}));
      continue;
    }
    if (!row) {
      std::vector<std::string_view> names;
      for (const auto& each : all_keys())
        names.push_back(each.name);
      const auto dot = path.rfind('.');
      problems.push_back(make_problem(where, {path,
                                              text,
                                              "unknown key",
                                              {},
                                              nearest(dot == path.npos ? path : path.substr(dot + 1), names),
                                              v1::CONFIG_SEVERITY_ERROR}));
      continue;
    }
    auto read = from_text(*row, text);
    if (!read) {
      problems.push_back(make_problem(
          where, {config.full_name(*row), text, "cannot be read", allowed_of(*row), {}, v1::CONFIG_SEVERITY_ERROR}));
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
  const auto read = read_tables(from, options, problems);
  const auto where_of = [&](std::size_t file, position at) { return place{from.files[file].path, at, {}}; };

  auto& config = out.config;
  config.settings.resize(all_keys().size());
  choose_hypervisor(config, from, read, options, problems);

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
    const auto where = where_of(each.file, each.node->begin);
    const auto& row = *each.row;
    auto written = text_between(from.files[each.file].text, read.documents[each.file].line_starts, each.node->begin,
                                each.node->end);
    if (each.hypervisor.empty() || each.hypervisor == config.hypervisor || (borrow && borrowed(row))) {
      if (take(config, row, each.node->content, each.file == 0 ? origin::file : origin::drop_in, where,
               std::move(written), each.node->kind, problems))
        continue;
    } else if (auto wrong = check_value(row, each.node->content, each.node->kind)) {
      problems.push_back(make_problem(where, {"hypervisor." + each.hypervisor + '.' + std::string{row.name}, written,
                                              wrong->what, allowed_of(row), wrong->hint, v1::CONFIG_SEVERITY_ERROR}));
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
