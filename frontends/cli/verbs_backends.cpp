// backends: which hypervisor backends are built in, which program of each this host has, and what it can do for each
// architecture, or why nothing. Makes no VM (where KVM has never been tried on this host, the QEMU backend tries it
// once).

#include <CLI/App.hpp>
#include <nlohmann/json.hpp>

#include <filesystem>

#include "config/resolve.hpp"
#include "engine/config_facts.hpp"
#include "frontends/cli/command_line.hpp"
#include "frontends/cli/output.hpp"
#include "frontends/cli/progress.hpp"
#include "frontends/cli/show.hpp"
#include "messages/validate.hpp"

namespace caisson::cli {
namespace {

using nlohmann::json;

struct backends_options {
  std::string config;
  std::string name; ///< "": all
};

struct asked {
  std::string backend, architecture, program;
  door::answer<v1::Capabilities> told;
};

/// The program that a sandbox would get; "" where the backend has none, or the engine will say why it is missing.
std::string program_of(const std::string& backend, const std::string& architecture, const std::string& config,
                       const config::host_facts& host) {
  v1::ResolveConfig request;
  request.set_path(config);
  for (const auto& [key, value] : {std::pair{"runtime.hypervisor_name", backend}, {"architecture", architecture}}) {
    auto* o = request.add_overrides();
    o->set_key(key);
    o->set_value(value);
  }
  auto resolved = config::resolve(request, host);
  return resolved.config ? resolved.config->sandbox().vmm_path() : std::string{};
}

std::vector<asked> ask_all(const command_context& c, const backends_options& o) {
  const auto host = engine::config_facts();
  const auto config = o.config.empty() ? std::string{} : std::filesystem::absolute(o.config).string();
  progress shown{"asking the hypervisors what they can do; the first time this takes up to a minute", c.global.json};
  auto engine = c.engine();
  std::vector<asked> out;
  std::string known;
  for (const auto& line : host.backends) {
    known += (known.empty() ? "" : ", ") + line.name;
    if (!o.name.empty() && o.name != line.name)
      continue;
    auto architectures = line.architectures;
    if (architectures.empty())
      architectures.push_back(host.architecture);
    for (const auto& architecture : architectures) {
      v1::DescribeHost request;
      request.set_config_path(config);
      request.set_hypervisor(line.name);
      request.set_architecture(architecture);
      out.push_back(
          {line.name, architecture, program_of(line.name, architecture, config, host), engine->describe(request)});
    }
  }
  if (out.empty())
    fail("invalid_argument",
         "backends: there is no backend \"" + escape_guest_text(o.name, 60) + "\" in this build; there are: " + known);
  return out;
}

json to_json_row(const asked& a) {
  json out{{"architecture", a.architecture}, {"program", a.program}};
  if (const auto* e = std::get_if<v1::Error>(&a.told)) {
    out["works"] = false;
    out["error"] = {{"code", e->code()}, {"text", e->text()}};
  } else {
    out["works"] = true;
    out["capabilities"] = json::parse(to_json(std::get<v1::Capabilities>(a.told)));
  }
  return out;
}

int backends_verb(const command_context& c, const backends_options& o) {
  const auto all = ask_all(c, o);
  if (c.global.json) {
    auto list = json::array();
    for (const auto& a : all) {
      if (list.empty() || list.back()["name"] != a.backend)
        list.push_back({{"name", a.backend}, {"architectures", json::array()}});
      list.back()["architectures"].push_back(to_json_row(a));
    }
    write_all(1, json{{"backends", list}}.dump(2) + "\n");
    return 0;
  }
  for (const auto& a : all) {
    write_all(1, a.backend + ", " + a.architecture + (a.program.empty() ? "" : ": " + escape_guest_text(a.program)) +
                     "\n");
    if (const auto* e = std::get_if<v1::Error>(&a.told))
      write_all(1, "        not here: " + escape_guest_text(e->text()) + "\n");
    else
      write_all(1, show_capabilities(std::get<v1::Capabilities>(a.told), "        "));
  }
  return 0;
}

} // namespace

void add_backends_verb(CLI::App& app, command_context& c) {
  auto o = std::make_shared<backends_options>();
  auto* verb =
      app.add_subcommand("backends", "List the hypervisor backends: program, version and what each can do here, or "
                                     "why it cannot");
  verb->add_option("NAME", o->name, "This one alone");
  verb->add_option("-c,--config", o->config, "As a sandbox of this configuration.toml would have it")
      ->type_name("FILE");
  verb->callback([&c, o] { c.action = [&c, o] { return backends_verb(c, *o); }; });
}

} // namespace caisson::cli
