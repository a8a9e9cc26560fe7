// check: what this host can do, what is missing and which package brings it.

#include <CLI/App.hpp>

#include <nlohmann/json.hpp>

#include <filesystem>

#include "config/load.hpp"
#include "config/resolve.hpp"
#include "engine/config_facts.hpp"
#include "frontends/cli/command_line.hpp"
#include "frontends/cli/host_checks.hpp"
#include "frontends/cli/output.hpp"
#include "frontends/cli/progress.hpp"
#include "frontends/cli/show.hpp"
#include "frontends/grpc/door_error.hpp"
#include "messages/validate.hpp"

namespace caisson::cli {
namespace {

using door::answer;

// The slow one: the first on a host boots our guest for a moment to see whether KVM serves.
answer<v1::Capabilities> ask_engine(const command_context& c, const std::string& config) {
  progress shown{"asking the hypervisor what it can do; the first time this takes up to a minute", c.global.json};
  v1::DescribeHost request;
  if (!config.empty())
    request.set_config_path(std::filesystem::absolute(config).string());
  try {
    return c.engine()->describe(request);
  } catch (const failed& f) {
    return f.error;
  }
}

int check_verb(const command_context& c, const std::string& config) {
  engine::options options;
  options.state_directory = c.global.state_dir;
  options.run_directory = c.global.run_dir;
  // A faulty file is told by the engine below, with every error.
  const auto host = engine::config_facts();
  config::load_options reading;
  reading.hypervisors = config::hypervisor_names{host.backends};
  const auto backend = config::load(config::read_sources(config, false, host), reading).config.backend;
  auto checks = check_host(options, c.directories(), host, backend);
  bool ready = true;
  std::string missing;
  auto json = nlohmann::json::array();
  for (const auto& check : checks) {
    if (!check.found && check.required) {
      ready = false;
      missing += (missing.empty() ? "" : ", ") + check.name;
    }
    auto text = escape_guest_text(check.text);
    json.push_back({{"name", check.name},
                    {"found", check.found},
                    {"required", check.required},
                    {"text", text},
                    {"mend", check.mend}});
    if (c.global.json)
      continue;
    write_all(1, std::string{check.found      ? "ok      "
                             : check.required ? "MISSING "
                                              : "without "} +
                     check.name + std::string(22 - std::min<std::size_t>(check.name.size(), 21), ' ') + text + "\n");
    if (!check.found && !check.mend.empty())
      write_all(1, std::string(30, ' ') + check.mend + "\n");
  }
  nlohmann::json report{{"checks", json}};
  std::optional<v1::Error> failure;
  if (ready) {
    auto asked = ask_engine(c, config);
    if (auto* e = std::get_if<v1::Error>(&asked)) {
      ready = false;
      failure = std::move(*e);
    } else {
      const auto& p = std::get<v1::Capabilities>(asked);
      report["capabilities"] = nlohmann::json::parse(to_json(p));
      if (!c.global.json)
        write_all(1, "ok      hypervisor\n" + show_capabilities(p, "        "));
    }
  }
  report["ready"] = ready;
  if (c.global.json)
    write_all(1, report.dump(2) + "\n");
  if (failure)
    throw failed{std::move(*failure)};
  if (!ready)
    fail("host_missing", "check: this host cannot run sandboxes yet; missing: " + missing);
  if (!c.global.json)
    write_all(1, "sandboxes can run here\n");
  return 0;
}

} // namespace

void add_check_verb(CLI::App& app, command_context& c) {
  auto config = std::make_shared<std::string>();
  auto* verb = app.add_subcommand("check", "Tell what this host can do, what is missing and which package brings it");
  verb->add_option("-c,--config", *config, "Ask for a sandbox of this configuration.toml")->type_name("FILE");
  verb->callback([&c, config] { c.action = [&c, config] { return check_verb(c, *config); }; });
}

} // namespace caisson::cli
