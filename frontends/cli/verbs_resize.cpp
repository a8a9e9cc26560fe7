// resize, and the operations that it makes.

#include <CLI/App.hpp>

#include "frontends/cli/arguments.hpp"
#include "frontends/cli/command_line.hpp"
#include "frontends/cli/output.hpp"
#include "frontends/cli/progress.hpp"
#include "frontends/cli/show.hpp"

namespace caisson::cli {
namespace {

struct resize_options {
  std::string sandbox, memory, cpus, deadline;
  bool dry_run = false, no_wait = false;
};

// 0 where asked, plugged and guest agree; else the figures are shown and the reason is the error.
int show_end(const command_context& c, const v1::Operation& o) {
  if (c.global.json)
    print_json(o);
  else
    write_all(1, show_operation(o));
  if (o.state() == v1::OPERATION_STATE_CONVERGED)
    return 0;
  if (o.has_error() && !o.error().code().empty())
    throw failed{o.error()};
  fail(o.state() == v1::OPERATION_STATE_CANCELLED ? "cancelled" : "guest_refused",
       "resize " + o.id() + " has not reached what was asked: " + show_operation_line(o));
}

int resize_verb(const command_context& c, const resize_options& r) {
  if (r.memory.empty() && r.cpus.empty())
    fail("invalid_argument", "resize: no target is given; give --memory SIZE or auto, --cpus N or both");
  v1::ResizeSandbox request;
  request.set_sandbox(r.sandbox);
  request.set_dry_run(r.dry_run);
  if (r.memory == "auto")
    request.set_autosize(true);
  else if (!r.memory.empty())
    request.set_memory_bytes(size_argument("--memory", r.memory));
  if (!r.cpus.empty()) {
    const auto milli = cpus_milli_argument("--cpus", r.cpus);
    if (milli % 1000 == 0)
      request.set_vcpus(milli / 1000);
    else
      request.set_vcpus_milli(milli);
  }
  if (!r.deadline.empty()) {
    const auto ms = number_argument("--deadline-ms", r.deadline);
    if (ms == 0 || ms > UINT32_MAX)
      fail("invalid_argument", "--deadline-ms: " + r.deadline + " is not between 1 and 4294967295");
    request.set_deadline_ms(static_cast<std::uint32_t>(ms));
  }
  auto engine = c.engine();
  progress shown{"resizing " + r.sandbox, c.global.json};
  auto operation = take(engine->resize(request));
  if (r.dry_run || r.no_wait) {
    shown.end();
    if (c.global.json)
      print_json(operation);
    else
      write_all(1, r.dry_run ? show_plan(operation) : operation.id() + "\n");
    return 0;
  }
  // The operation has its own deadline in the engine; every wait is short, so that progress is seen.
  while (operation.state() == v1::OPERATION_STATE_RUNNING) {
    v1::WaitOperation wait;
    wait.set_operation_id(operation.id());
    wait.set_sandbox(operation.sandbox_id());
    wait.set_wait_ms(1000);
    operation = take(engine->wait_operation(wait));
    shown.say("resizing " + r.sandbox + ": " + show_operation_line(operation));
  }
  shown.end();
  return show_end(c, operation);
}

int operation_verb(const command_context& c, const std::string& id, bool cancel) {
  auto engine = c.engine();
  v1::Operation operation;
  if (cancel) {
    v1::CancelOperation request;
    request.set_operation_id(id);
    operation = take(engine->cancel_operation(request));
  } else {
    v1::GetOperation request;
    request.set_operation_id(id);
    operation = take(engine->get_operation(request));
  }
  if (c.global.json)
    print_json(operation);
  else
    write_all(1, show_operation(operation));
  return 0;
}

} // namespace

void add_resize_verb(CLI::App& app, command_context& c) {
  auto r = std::make_shared<resize_options>();
  auto* verb = app.add_subcommand("resize", "Give a running sandbox more or less memory and processors");
  verb->add_option("SANDBOX", r->sandbox, "Id or name")->required();
  verb->add_option("-m,--memory", r->memory,
                    "What boot and plugged memory are to be together; auto: what the load needs, as [runtime.caisson] "
                    "memory_autosize_* say")
      ->type_name("SIZE|auto");
  verb->add_option("--cpus", r->cpus, "How many processors are to be online; 1.5 is two and a quota")->type_name("N");
  verb->add_option("--deadline-ms", r->deadline, "How long it may take; then it ends where it is, and says so")
      ->type_name("MS");
  verb->add_flag("--dry-run", r->dry_run, "Show the plan, change nothing");
  verb->add_flag("--no-wait", r->no_wait, "Print the operation's id and return; status and events tell its end");
  verb->callback([&c, r] { c.action = [&c, r] { return resize_verb(c, *r); }; });

  auto id = std::make_shared<std::string>();
  auto cancel = std::make_shared<bool>(false);
  verb = app.add_subcommand("operation", "Read a resize again by its id");
  verb->add_option("ID", *id, "As resize --no-wait printed it")->required();
  verb->add_flag("--cancel", *cancel, "Stop it where it is");
  verb->callback([&c, id, cancel] { c.action = [&c, id, cancel] { return operation_verb(c, *id, *cancel); }; });
}

} // namespace caisson::cli
