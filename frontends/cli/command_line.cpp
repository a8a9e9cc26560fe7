#include "frontends/cli/command_line.hpp"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>

#include <algorithm>
#include <exception>

#include "frontends/cli/arguments.hpp"
#include "frontends/cli/config_commands.hpp"
#include "frontends/cli/output.hpp"
#include "frontends/grpc/door_error.hpp"
#include "messages/validate.hpp"

namespace caisson::cli {
namespace {

// The same three on the program and on every verb, so that they may stand on either side.
void add_global_options(CLI::App& app, global_options& g) {
  auto add = [&](const char* name, auto&& make) {
    if (app.get_option_no_throw(name) == nullptr)
      make();
  };
  add("--state-dir", [&] {
    app.add_option("--state-dir", g.state_dir, "Where sandboxes are remembered")->group("Everywhere")->type_name("DIR");
  });
  add("--run-dir", [&] {
    app.add_option("--run-dir", g.run_dir, "Where sockets are made; on a tmpfs")->group("Everywhere")->type_name("DIR");
  });
  add("--json", [&] {
    app.add_flag("--json", g.json, "Results as JSON on stdout, an error as one JSON object on stderr")
        ->group("Everywhere");
  });
  for (auto* verb : app.get_subcommands([](CLI::App*) { return true; }))
    add_global_options(*verb, g);
}

std::string usage_text(const CLI::App& app, const CLI::ParseError& e, const split_arguments& arguments) {
  std::vector<std::string> verbs;
  for (const auto* verb : app.get_subcommands([](const CLI::App*) { return true; }))
    verbs.push_back(verb->get_name());
  if (app.get_subcommands().empty()) {
    for (std::size_t i = 0; i < arguments.own.size(); ++i) {
      const auto& word = arguments.own[i];
      if (word == "--state-dir" || word == "--run-dir") {
        ++i;
        continue;
      }
      if (!word.starts_with("-") && std::find(verbs.begin(), verbs.end(), word) == verbs.end()) {
        auto meant = nearest_word(word, verbs);
        return "\"" + escape_guest_text(word, 60) + "\" is no command" +
               (meant.empty() ? std::string{"; caisson --help lists them"} : "; did you mean \"" + meant + "\"?");
      }
    }
  }
  std::string text = e.what();
  for (auto& c : text)
    if (c == '\n')
      c = ' ';
  std::string verb = app.get_subcommands().empty() ? "" : " " + app.get_subcommands().front()->get_name();
  if (e.get_name() == "ExtrasError")
    text += "; options of the command to be run stand after --";
  return escape_guest_text(text) + " (caisson" + verb + " --help says what is expected)";
}

} // namespace

void fail(std::string_view row_name, std::string text) {
  throw failed{door::make_error(row_name, std::move(text))};
}

int run(int argc, const char* const* argv) {
  command_context context;
  auto arguments = split(argc, argv);
  context.command = arguments.command;

  CLI::App app{"Keeps secure containers: sandboxes that are lightweight virtual machines, resized while they run.",
               "caisson"};
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string{"caisson "} + CAISSON_VERSION);
  add_run_verbs(app, context);
  add_sandbox_verbs(app, context);
  add_resize_verb(app, context);
  add_events_verb(app, context);
  add_check_verb(app, context);
  add_backends_verb(app, context);
  add_config_commands(app);
  add_firmware_commands(app, context);
  add_global_options(app, context.global);
  app.footer(
      "Exit status: the command's own; 126, 127 and 128+n as a shell gives them; 125 where the engine could not do\n"
      "it; 2 for usage and configuration. Sizes are written like 1536M or 2GiB (powers of 1024).");

  // CLI11 takes them from the back.
  std::vector<std::string> reversed{arguments.own.rbegin(), arguments.own.rend()};
  bool json = std::find(arguments.own.begin(), arguments.own.end(), "--json") != arguments.own.end();
  try {
    app.parse(std::move(reversed));
    if (!context.command.empty() && !context.action)
      fail("invalid_argument", "-- CMD belongs to run and exec; this command takes none");
    return context.action ? context.action() : 0;
  } catch (const CLI::Success& e) { // help, version
    return app.exit(e);
  } catch (const CLI::RuntimeError& e) {
    return e.get_exit_code();
  } catch (const CLI::ParseError& e) {
    print_error(door::make_error("invalid_argument", usage_text(app, e, arguments)), json);
    return 2;
  } catch (const failed& f) {
    print_error(f.error, json);
    return f.error.exit_code() > 0 ? f.error.exit_code() : 125;
  } catch (const std::exception& e) {
    print_error(door::make_error("internal", e.what()), json);
    return 125;
  }
}

} // namespace caisson::cli
