#pragma once

/// The program `caisson`: arguments, verbs and exit statuses. Exit status: the command's own; 126, 127 and 128+n as a
/// shell gives them; 125 where the engine could not do it; 2 for usage and configuration.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/service.hpp"
#include "frontends/grpc/client.hpp"

namespace CLI {
class App;
}

namespace caisson::cli {

/// What stands before or after every verb.
struct global_options {
  std::string state_dir;
  std::string run_dir;
  bool json = false;
};

/// Thrown by a verb; run() shows it and exits with its exit code.
struct failed {
  v1::Error error;
};

[[noreturn]] void fail(std::string_view row_name, std::string text);

/// The value, or failed.
template <class T> T take(door::answer<T> a) {
  if (auto* e = std::get_if<v1::Error>(&a))
    throw failed{std::move(*e)};
  return std::move(std::get<T>(a));
}

class command_context {
public:
  global_options global;
  std::vector<std::string> command; ///< what stands after "--"
  std::function<int()> action;      ///< of the verb that was given

  engine::directories directories() const;      ///< failed where they cannot be used
  std::unique_ptr<door::client> engine() const; ///< connected; started where it was not
};

/// Builds the parser: one function a group of verbs.
void add_run_verbs(CLI::App& app, command_context& c);
void add_sandbox_verbs(CLI::App& app, command_context& c);
void add_resize_verb(CLI::App& app, command_context& c);
void add_events_verb(CLI::App& app, command_context& c);
void add_check_verb(CLI::App& app, command_context& c);
void add_backends_verb(CLI::App& app, command_context& c);
void add_firmware_commands(CLI::App& app, command_context& c);

/// The whole program but main(): parses, runs, shows what went wrong, gives the exit status.
int run(int argc, const char* const* argv);

} // namespace caisson::cli
