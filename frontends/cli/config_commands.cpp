#include "frontends/cli/config_commands.hpp"

#include <CLI/App.hpp>

#include <memory>
#include <string>
#include <vector>

#include "config/adapt.hpp"
#include "config/resolve.hpp"
#include "config/tell.hpp"
#include "engine/config_facts.hpp"
#include "frontends/cli/command_line.hpp"
#include "frontends/cli/output.hpp"

namespace caisson::cli {
namespace {

struct config_options {
  std::vector<std::string> files;
  std::vector<std::string> settings;    // KEY=VALUE
  std::vector<std::string> annotations; // NAME=VALUE
  std::string word;
  bool lenient = false;
  bool allow_writable = false;
};

using options_ptr = std::shared_ptr<config_options>;

/// --json may stand before or after any verb; each of them has its own option.
bool wants_json(const CLI::App* verb) {
  for (; verb; verb = verb->get_parent())
    if (const auto* option = verb->get_option_no_throw("--json"); option && option->count() > 0)
      return true;
  return false;
}

[[noreturn]] void end_with(int status) {
  throw CLI::RuntimeError(status);
}

std::pair<std::string, std::string> cut(const std::string& text, const char* option) {
  const auto equals = text.find('=');
  if (equals == text.npos || equals == 0)
    fail("invalid_argument", std::string{option} + ' ' + config::escaped(text) + ": written as KEY=VALUE");
  return {text.substr(0, equals), text.substr(equals + 1)};
}

config::load_options load_options_of(const config_options& o, const config::host_facts& host) {
  config::load_options out;
  out.hypervisors = config::hypervisor_names{host.backends};
  out.lenient = o.lenient;
  for (const auto& each : o.settings)
    out.overrides.push_back(cut(each, "--set"));
  for (const auto& each : o.annotations)
    out.annotations.insert(cut(each, "--annotation"));
  return out;
}

std::string errors_of(const std::vector<config::problem>& problems) {
  std::string out;
  for (const auto& each : problems)
    if (each.severity() == v1::CONFIG_SEVERITY_ERROR)
      out += (out.empty() ? "" : "\n") + each.text();
  return out;
}

/// The configuration, or every error on stderr and exit status 2.
config::layered load_or_end(const config::sources& from, const config::load_options& options, bool json) {
  auto loaded = config::load(from, options);
  if (!config::has_error(loaded.problems))
    return std::move(loaded.config);
  if (json)
    fail("configuration", errors_of(loaded.problems));
  write_all(2, errors_of(loaded.problems) + '\n');
  end_with(2);
}

std::string counted(std::size_t n, const std::string& word) {
  return std::to_string(n) + ' ' + word + (n == 1 ? "" : "s");
}

void check(const CLI::App* verb, const config_options& o) {
  const auto host = engine::config_facts();
  const auto options = load_options_of(o, host);
  v1::ConfigReports all;
  all.set_ok(true);
  auto files = o.files;
  if (files.empty())
    files.emplace_back();
  std::string text;
  for (const auto& file : files) {
    auto& report = *all.add_reports();
    report = config::check(config::read_sources(file, o.allow_writable, host), options, host);
    all.set_ok(all.ok() && report.ok());
    std::size_t errors = 0;
    for (const auto& each : report.problems()) {
      const bool is_error = each.severity() == v1::CONFIG_SEVERITY_ERROR;
      errors += is_error ? 1 : 0;
      const auto at = each.text().find(": ");
      text += is_error ? each.text() + '\n'
                       : each.text().substr(0, at + 2) + "warning: " + each.text().substr(at + 2) + '\n';
    }
    for (const auto& each : report.adaptations())
      text += each.where() + ": adapted: " + each.key() + " = " + (each.asked().empty() ? "not set" : each.asked()) +
              ": " + (each.used().empty() ? "nothing" : each.used()) + " is used: " + each.why() + '\n';
    const auto name = !file.empty()           ? config::escaped(file, 4096)
                      : report.path().empty() ? "built-in values"
                                              : report.path();
    text += name + ": " + (errors ? counted(errors, "error") : std::string{"no errors"}) + ", " +
            counted(static_cast<std::size_t>(report.problems_size()) - errors, "warning") + ", " +
            counted(static_cast<std::size_t>(report.adaptations_size()), "adaptation") + '\n';
  }
  if (wants_json(verb))
    print_json(all);
  else
    write_all(1, text);
  if (!all.ok())
    end_with(2);
}

void show(const CLI::App* verb, const config_options& o) {
  const auto host = engine::config_facts();
  const auto options = load_options_of(o, host);
  const auto file = o.files.empty() ? std::string{} : o.files.front();
  const auto from = config::read_sources(file, o.allow_writable, host);
  const bool json = wants_json(verb);
  const auto layered = load_or_end(from, options, json);
  const auto figures = config::adapt(layered, host);
  if (!json) {
    write_all(1, config::show(layered, figures.adaptations));
    return;
  }
  v1::ResolveConfig request;
  request.set_lenient(o.lenient);
  for (const auto& [name, value] : options.annotations)
    (*request.mutable_annotations())[name] = value;
  for (const auto& [key, value] : options.overrides) {
    auto& each = *request.add_overrides();
    each.set_key(key);
    each.set_value(value);
  }
  auto resolved = config::resolve(request, from, host);
  v1::ResolvedConfig out;
  if (resolved.config)
    out = std::move(*resolved.config);
  else
    for (const auto& each : figures.adaptations)
      *out.add_adaptations() = each;
  out.clear_values();
  for (auto& each : config::values_of(layered))
    *out.add_values() = std::move(each);
  out.set_path(from.path);
  out.set_dialect(layered.dialect);
  print_json(out);
}

void explain(const CLI::App* verb, const config_options& o) {
  v1::ConfigKeys all;
  std::string text;
  if (o.word.empty()) {
    for (const auto& row : config::all_keys()) {
      *all.add_keys() = config::describe(row);
      const auto path = config::path_of(row);
      text += path + std::string(path.size() < 44 ? 44 - path.size() : 1, ' ') + std::string{row.doc} + '\n';
    }
  } else if (const auto* row = config::find_key_by_path(o.word)) {
    if (wants_json(verb))
      return print_json(config::describe(*row));
    text = config::explain(*row);
  } else {
    std::string near;
    for (const auto& each : config::similar_keys(o.word))
      near += (near.empty() ? "; did you mean " : ", ") + each;
    fail("invalid_argument", "\"" + config::escaped(o.word) + "\" is no key of a configuration" +
                                 (near.empty() ? "; `caisson config explain` lists them" : near + "?"));
  }
  if (wants_json(verb))
    print_json(all);
  else
    write_all(1, text);
}

void diff(const CLI::App* verb, const config_options& o) {
  const auto host = engine::config_facts();
  const auto options = load_options_of(o, host);
  const bool json = wants_json(verb);
  const auto before = load_or_end(config::read_sources(o.files.at(0), o.allow_writable, host), options, json);
  const auto after = load_or_end(config::read_sources(o.files.at(1), o.allow_writable, host), options, json);
  const auto diffs = config::differences(before, after);
  if (json) {
    v1::ConfigDiffs out;
    for (const auto& each : diffs)
      *out.add_diffs() = each;
    print_json(out);
  } else {
    write_all(1, config::to_text(diffs));
  }
  if (!diffs.empty())
    end_with(1);
}

void migrate(const CLI::App* verb, const config_options& o) {
  const auto host = engine::config_facts();
  auto options = load_options_of(o, host);
  const auto from = config::read_sources(o.files.at(0), o.allow_writable, host);
  if (config::load(from, options).config.at(config::table::runtime, "dialect").from == config::origin::built_in)
    options.overrides.emplace_back("runtime.dialect", "kata");
  write_all(1, config::migrate(load_or_end(from, options, wants_json(verb))));
}

} // namespace

void add_config_commands(CLI::App& app) {
  auto* group = app.add_subcommand("config", "Check, show, explain and compare configuration files");
  group->require_subcommand(1);
  const auto add = [&](const char* name, const char* about, auto&& action, auto&& add_options) {
    auto o = std::make_shared<config_options>();
    auto* verb = group->add_subcommand(name, about);
    add_options(*verb, *o);
    verb->callback([verb, o, action] { action(verb, *o); });
  };
  const auto reading = [](CLI::App& verb, config_options& o) {
    verb.add_flag("--lenient", o.lenient, "Unknown keys and tables are warnings");
    verb.add_flag("--allow-writable", o.allow_writable, "Take files that everybody can write");
  };
  const auto layers = [](CLI::App& verb, config_options& o) {
    verb.add_option("--set", o.settings, "A value that wins over the files; may be repeated")
        ->type_name("KEY=VALUE")
        ->allow_extra_args(false);
    verb.add_option("--annotation", o.annotations, "A pod's annotation; may be repeated")
        ->type_name("NAME=VALUE")
        ->allow_extra_args(false);
  };
  add("check", "Tell everything that is wrong or was adapted; exit status 0, or 2 for errors", check,
      [&](CLI::App& verb, config_options& o) {
        verb.add_option("FILE", o.files, "Files; none: the one that would be used");
        reading(verb, o);
        layers(verb, o);
      });
  add("show", "Show every value with its origin", show, [&](CLI::App& verb, config_options& o) {
    verb.add_option("FILE,-c,--config", o.files, "The file; none: the one that would be used")->expected(0, 1);
    reading(verb, o);
    layers(verb, o);
  });
  add("explain", "Explain one key; without KEY, list all", explain, [&](CLI::App& verb, config_options& o) {
    verb.add_option("KEY", o.word, "default_memory, runtime.sizing_rule, ...");
  });
  add("diff", "Show what differs between two files; exit status 0, 1 for differences, 2 for errors", diff,
      [&](CLI::App& verb, config_options& o) {
        verb.add_option("FILES", o.files, "The two files")->required()->expected(2);
        reading(verb, o);
      });
  add(
      "schema", "Print a JSON Schema of the configuration, for editors",
      [](const CLI::App*, const config_options&) {
        write_all(1, config::json_schema(config::hypervisor_names{engine::config_facts().backends}));
      },
      [](CLI::App&, config_options&) {});
  add("migrate", "Print the same meaning in Caisson's own keys; a file that names no dialect is read as Kata's",
      migrate, [&](CLI::App& verb, config_options& o) {
        verb.add_option("FILE", o.files, "The file")->required()->expected(1);
        reading(verb, o);
      });
}

} // namespace caisson::cli
