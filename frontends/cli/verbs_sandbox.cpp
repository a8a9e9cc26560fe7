// status, list, stop, rm, pause, resume.

#include <CLI/App.hpp>

#include "frontends/cli/arguments.hpp"
#include "frontends/cli/command_line.hpp"
#include "frontends/cli/output.hpp"
#include "frontends/cli/progress.hpp"
#include "frontends/cli/show.hpp"

namespace caisson::cli {
namespace {

constexpr std::uint32_t longest_grace_ms = 600'000; // a stop is answered within that

int show(const command_context& c, const v1::SandboxStatus& s, const std::string& text) {
  if (c.global.json)
    print_json(s);
  else
    write_all(1, text);
  return 0;
}

int status_verb(const command_context& c, const std::string& sandbox) {
  if (sandbox.empty()) {
    auto about = take(c.engine()->status({}));
    if (c.global.json)
      print_json(about);
    else
      write_all(1, show_engine(about));
    return 0;
  }
  v1::GetSandbox request;
  request.set_sandbox(sandbox);
  progress shown{"asking sandbox " + sandbox, c.global.json};
  auto s = take(c.engine()->get(request));
  shown.end();
  return show(c, s, show_status(s));
}

int list_verb(const command_context& c) {
  auto l = take(c.engine()->list({}));
  if (c.global.json)
    print_json(l);
  else
    write_all(1, show_list(l));
  return 0;
}

int stop_verb(const command_context& c, const std::vector<std::string>& sandboxes, const std::string& grace) {
  v1::StopSandbox request;
  if (!grace.empty()) {
    const auto ms = number_argument("--grace-ms", grace);
    if (ms == 0 || ms > longest_grace_ms)
      fail("invalid_argument", "--grace-ms: " + grace + " is not between 1 and " + std::to_string(longest_grace_ms));
    request.set_grace_ms(static_cast<std::uint32_t>(ms));
  }
  auto engine = c.engine();
  for (const auto& sandbox : sandboxes) {
    request.set_sandbox(sandbox);
    progress shown{"stopping sandbox " + sandbox, c.global.json};
    auto s = take(engine->stop(request));
    shown.end();
    show(c, s, s.name() + "\n");
  }
  return 0;
}

int remove_verb(const command_context& c, const std::vector<std::string>& sandboxes, bool keep_running) {
  auto engine = c.engine();
  for (const auto& sandbox : sandboxes) {
    v1::RemoveSandbox request;
    request.set_sandbox(sandbox);
    request.set_force(!keep_running);
    progress shown{"removing sandbox " + sandbox, c.global.json};
    auto s = take(engine->remove(request));
    shown.end();
    show(c, s, s.name() + "\n");
  }
  return 0;
}

template <class Request>
int simple_verb(const command_context& c, const std::string& sandbox,
                door::answer<v1::SandboxStatus> (door::client::*call)(const Request&)) {
  Request request;
  request.set_sandbox(sandbox);
  auto engine = c.engine();
  auto s = take((engine.get()->*call)(request));
  return show(c, s, s.name() + "\n");
}

} // namespace

void add_sandbox_verbs(CLI::App& app, command_context& c) {
  auto add_one = [&](const char* name, const char* text, int (*act)(const command_context&, const std::string&)) {
    auto sandbox = std::make_shared<std::string>();
    auto* verb = app.add_subcommand(name, text);
    auto* argument = verb->add_option("SANDBOX", *sandbox, "Id or name");
    argument->required();
    verb->callback([&c, sandbox, act] { c.action = [&c, sandbox, act] { return act(c, *sandbox); }; });
    return argument;
  };
  add_one("status",
          "Show a sandbox: its state, memory, processors, and what was not done as the configuration asked; without a "
          "name the engine and what the host's memory is promised to",
          status_verb)
      ->required(false);
  auto* verb = app.add_subcommand("list", "List the sandboxes of this state directory");
  verb->callback([&c] { c.action = [&c] { return list_verb(c); }; });

  auto stopped = std::make_shared<std::vector<std::string>>();
  auto grace = std::make_shared<std::string>();
  verb = app.add_subcommand("stop", "End a sandbox's VM; its record stays");
  verb->add_option("SANDBOX", *stopped, "Ids or names")->required();
  verb->add_option("--grace-ms", *grace, "How long the guest may take to power off, at most 600000")->type_name("MS");
  verb->callback([&c, stopped, grace] { c.action = [&c, stopped, grace] { return stop_verb(c, *stopped, *grace); }; });

  auto removed = std::make_shared<std::vector<std::string>>();
  auto keep_running = std::make_shared<bool>(false);
  verb = app.add_subcommand("rm", "Remove everything of a sandbox but its logs; a running one is ended first");
  verb->add_option("SANDBOX", *removed, "Ids or names")->required();
  verb->add_flag("--only-stopped", *keep_running, "Refuse a running one");
  verb->add_flag("-f,--force")->description("Nothing more: a running one is ended anyway");
  verb->callback([&c, removed, keep_running] {
    c.action = [&c, removed, keep_running] { return remove_verb(c, *removed, *keep_running); };
  });

  add_one("pause", "Hold a sandbox's processors",
          [](const command_context& ctx, const std::string& s) { return simple_verb(ctx, s, &door::client::pause); });
  add_one("resume", "Let a paused sandbox go on",
          [](const command_context& ctx, const std::string& s) { return simple_verb(ctx, s, &door::client::resume); });
}

} // namespace caisson::cli
