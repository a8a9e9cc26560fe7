// run, exec, console: what has to do with processes in a guest.

#include <unistd.h>

#include <CLI/App.hpp>

#include <cstdlib>
#include <filesystem>

#include "frontends/cli/arguments.hpp"
#include "frontends/cli/command_line.hpp"
#include "frontends/cli/guest_build.hpp"
#include "frontends/cli/output.hpp"
#include "frontends/cli/progress.hpp"
#include "frontends/cli/session.hpp"
#include "frontends/cli/terminal.hpp"
#include "messages/validate.hpp"

namespace caisson::cli {
namespace {

struct process_options {
  bool interactive = false;
  bool terminal = false;
  std::vector<std::string> environment;
  std::string working_directory;
};

struct run_options {
  std::string config, name, memory, cpus, memory_method, hypervisor, architecture;
  std::vector<std::string> annotations, words;
  bool detach = false;
  bool no_guest_build = false;
  process_options process;
};

struct exec_options {
  std::string sandbox;
  std::vector<std::string> words;
  process_options process;
};

void add_process_options(CLI::App& verb, process_options& p, const char* interactive) {
  verb.add_flag("-i,--interactive", p.interactive, interactive);
  verb.add_flag("-t,--terminal,--tty", p.terminal, "Give CMD a terminal");
  verb.add_option("-e,--env", p.environment, "Set NAME=VALUE for CMD; may be given again")
      ->type_name("NAME=VALUE")
      ->allow_extra_args(false);
  verb.add_option("-w,--workdir", p.working_directory, "CMD's working directory")->type_name("DIR");
}

// Words after "--", or those after the last positional where there is no "--".
std::vector<std::string> command_of(const command_context& c, const std::vector<std::string>& words) {
  if (!words.empty() && !c.command.empty())
    fail("invalid_argument", "the words \"" + escape_guest_text(words.front(), 60) +
                                 "\" and what follows -- are both a command; put all of it after --");
  return words.empty() ? c.command : words;
}

v1::ExecStart start_of(const std::vector<std::string>& command, const process_options& p) {
  v1::ExecStart start;
  for (const auto& word : command)
    start.add_argv(word);
  for (const auto& e : p.environment) {
    if (e.find('=') == std::string::npos || e.front() == '=')
      fail("invalid_argument", "--env: \"" + escape_guest_text(e, 60) + "\" is not NAME=VALUE");
    start.add_environment(e);
  }
  start.set_working_directory(p.working_directory);
  if (!p.terminal)
    return start;
  start.set_terminal(true);
  if (auto size = terminal_size()) {
    start.set_rows(size->first);
    start.set_columns(size->second);
  }
  if (const char* term = std::getenv("TERM"); term && *term)
    start.add_environment(std::string{"TERM="} + term);
  return start;
}

v1::CreateSandbox create_of(const run_options& o) {
  v1::CreateSandbox create;
  create.set_name(o.name);
  create.set_hypervisor(o.hypervisor);
  create.set_architecture(o.architecture);
  if (!o.config.empty())
    create.set_config_path(std::filesystem::absolute(o.config).string());
  if (!o.memory.empty())
    create.set_memory_bytes(size_argument("--memory", o.memory));
  if (!o.cpus.empty())
    create.set_vcpus(cpus_argument("--cpus", o.cpus));
  if (o.memory_method == "dimm")
    create.set_memory_method(v1::MEMORY_METHOD_DIMM);
  else if (o.memory_method == "virtio-mem")
    create.set_memory_method(v1::MEMORY_METHOD_VIRTIO_MEM);
  else if (!o.memory_method.empty() && o.memory_method != "auto")
    fail("invalid_argument",
         "--memory-method: \"" + escape_guest_text(o.memory_method, 60) + "\" is none; it is auto, dimm or virtio-mem");
  for (const auto& a : o.annotations) {
    auto at = a.find('=');
    if (at == std::string::npos || at == 0)
      fail("invalid_argument", "--annotation: \"" + escape_guest_text(a, 60) + "\" is not KEY=VALUE");
    (*create.mutable_annotations())[a.substr(0, at)] = a.substr(at + 1);
  }
  return create;
}

int run_detached(const command_context& c, const v1::CreateSandbox& create) {
  auto engine = c.engine();
  progress shown{"booting the sandbox", c.global.json};
  auto made = take(engine->create(create));
  shown.end();
  if (c.global.json)
    print_json(made);
  else
    write_all(1, made.name() + "\n");
  return 0;
}

int run_verb(const command_context& c, const run_options& o) {
  auto command = command_of(c, o.words);
  auto create = create_of(o);
  if (o.detach && !command.empty())
    fail("invalid_argument",
         "run: --detach starts a sandbox without a command; give either --detach (and then caisson exec "
         "NAME -- CMD), or -- CMD without --detach");
  if (o.detach)
    return with_guest(c, create, !o.no_guest_build, [&] { return run_detached(c, create); });
  if (command.empty())
    fail("invalid_argument",
         "run: what is the sandbox to do? Give a command (caisson run -- cat /proc/meminfo: the sandbox "
         "goes when it ends), or --detach for a sandbox that stays");
  v1::ExecRequest request;
  *request.mutable_start() = start_of(command, o.process);
  *request.mutable_create() = create;
  return with_guest(c, create, !o.no_guest_build, [&] {
    return run_session(c, request, {.stdin_attached = true, .terminal = o.process.terminal, .owns_sandbox = true});
  });
}

int exec_verb(const command_context& c, const exec_options& o) {
  auto command = command_of(c, o.words);
  if (command.empty())
    fail("invalid_argument",
         "exec: the command is missing; give it after --, like caisson exec " + o.sandbox + " -- nproc");
  v1::ExecRequest request;
  request.set_sandbox(o.sandbox);
  *request.mutable_start() = start_of(command, o.process);
  return run_session(c, std::move(request),
                     {.stdin_attached = o.process.interactive, .terminal = o.process.terminal, .owns_sandbox = false});
}

int console_verb(const command_context& c, const std::string& sandbox) {
  v1::ConsoleRequest request;
  request.set_sandbox(sandbox);
  auto console = take(c.engine()->console(request));
  if (c.global.json) {
    print_json(console);
    return 0;
  }
  auto text = console.text();
  if (!text.empty() && text.back() != '\n')
    text += '\n';
  write_all(1, text);
  return 0;
}

} // namespace

void add_run_verbs(CLI::App& app, command_context& c) {
  auto run = std::make_shared<run_options>();
  auto* verb =
      app.add_subcommand("run", "Boot a sandbox; run CMD in it and remove it when CMD ends, or leave it (--detach)");
  verb->add_option("-c,--config", run->config, "The configuration.toml to take")->type_name("FILE");
  verb->add_option("-n,--name", run->name, "Its name; one is picked where none is given")->type_name("NAME");
  verb->add_flag("-d,--detach", run->detach, "Return once its agent has answered; it runs until stop or rm");
  verb->add_option("-m,--memory", run->memory, "Memory at boot instead of the configuration's")->type_name("SIZE");
  verb->add_option("--cpus", run->cpus, "Processors at boot instead of the configuration's")->type_name("N");
  verb->add_option("--memory-method", run->memory_method, "auto, dimm or virtio-mem")->type_name("METHOD");
  verb->add_option("--hypervisor", run->hypervisor, "Instead of the configuration's")->type_name("NAME");
  verb->add_option("--arch", run->architecture, "Of the guest: x86_64 or aarch64, instead of the configuration's")
      ->type_name("ARCH");
  verb->add_flag("--no-guest-build", run->no_guest_build, "Where there is no guest of that architecture, do not make it");
  verb->add_option("--annotation", run->annotations, "An io.katacontainers.config.* annotation; may be given again")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  add_process_options(*verb, run->process, "Nothing more: CMD always has this program's standard input");
  verb->add_option("CMD", run->words, "The command, after --");
  verb->callback([&c, run] { c.action = [&c, run] { return run_verb(c, *run); }; });

  auto exec = std::make_shared<exec_options>();
  verb = app.add_subcommand("exec", "Run CMD in a running sandbox");
  verb->add_option("SANDBOX", exec->sandbox, "Id or name")->required();
  add_process_options(*verb, exec->process, "Pass this program's standard input on to CMD");
  verb->add_option("CMD", exec->words, "The command, after --");
  verb->callback([&c, exec] { c.action = [&c, exec] { return exec_verb(c, *exec); }; });

  auto sandbox = std::make_shared<std::string>();
  verb = app.add_subcommand("console", "Show what the guest's console has said (the last of it)");
  verb->add_option("SANDBOX", *sandbox, "Id or name")->required();
  verb->callback([&c, sandbox] { c.action = [&c, sandbox] { return console_verb(c, *sandbox); }; });
}

} // namespace caisson::cli
