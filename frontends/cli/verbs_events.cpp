// events: what has happened, from a sequence number on.

#include <CLI/App.hpp>

#include "frontends/cli/arguments.hpp"
#include "frontends/cli/command_line.hpp"
#include "frontends/cli/output.hpp"
#include "frontends/cli/show.hpp"

namespace caisson::cli {
namespace {

int events_verb(const command_context& c, const std::string& from, bool follow) {
  v1::WatchEvents request;
  request.set_follow(follow);
  // Without --from: everything that is kept, or with --follow what comes from now on.
  request.set_from_seq(from.empty() ? (follow ? 0 : 1) : number_argument("--from", from));
  auto engine = c.engine();
  auto failure = engine->watch(request, [&](const v1::Event& e) {
    return write_all(1, (c.global.json ? to_json(e, true) : show_event(e)) + "\n");
  });
  if (failure)
    throw failed{std::move(*failure)};
  return 0;
}

} // namespace

void add_events_verb(CLI::App& app, command_context& c) {
  auto from = std::make_shared<std::string>();
  auto follow = std::make_shared<bool>(false);
  auto* verb = app.add_subcommand("events", "Show what has happened (with --json one object a line)");
  verb->add_option("--from", *from, "First sequence number wanted; all that are kept where it is not given")
      ->type_name("SEQ");
  verb->add_flag("-f,--follow", *follow, "Go on with what happens from now; alone, begin with that");
  verb->callback([&c, from, follow] { c.action = [&c, from, follow] { return events_verb(c, *from, *follow); }; });
}

} // namespace caisson::cli
