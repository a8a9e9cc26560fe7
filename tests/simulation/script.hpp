#pragma once

/// A random user of one house: asks an engine for this and that, kills VMMs, guests and the engine itself, waits until
/// all is quiet and compares what the engine says with what really is. Everything is drawn from one seed.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "messages/validate.hpp"
#include "actors/guest_agent/guest_link.hpp"
#include "tests/simulation/house.hpp"

namespace caisson::tests {

struct script_options {
  std::uint64_t seed = 1;
  backends::simulated::fault_plan plan;
  int actions = 40;
  int kills = 0;            ///< of the engine, at random steps
  bool accidents = true;    ///< VMMs and guests are killed too
  bool undisturbed = false; ///< the plan has no faults: what was accepted has to succeed
  bool autosize = false;    ///< some sandboxes follow their load
  std::uint64_t available_bytes = std::uint64_t{60} << 30; ///< of the host's memory
};

struct script_result {
  std::vector<std::string> problems;
  std::string trace; ///< what was asked and answered, in order; the same for the same seed
  int requests = 0, kills = 0;
  int promises_refused = 0, autosized = 0;
  int converged = 0, partly = 0, failed = 0, created = 0, refused = 0;
  std::uint64_t steps = 0;
};

/// What no request may take longer than, in the engine's own time: its longest deadline and a bit.
inline constexpr std::chrono::seconds longest_answer{660};

inline bool has_vm(v1::SandboxState s) {
  return s == v1::SANDBOX_STATE_RUNNING || s == v1::SANDBOX_STATE_PAUSED;
}

class script {
public:
  explicit script(script_options o);
  script_result run();

private:
  struct open_request {
    std::string what;
    std::chrono::nanoseconds asked, limit;
    std::function<bool()> done;
    std::function<void()> then;
  };

  /// What the user knows of one sandbox.
  struct known {
    std::string name, id;
    bool answered = false;          // its creation
    bool ending = false;            // a stop or removal was asked for
    bool removed = false;           // and a removal answered
    bool hurt = false;              // its VMM or guest was killed, or may have been by the plan
    bool follows = false;           // its load, unless it was resized
    bool disturbed = false;         // paused, cancelled or cut off while a resize may have been under way
    std::optional<bool> must_exist; // a creation that was unanswered when the engine was killed
    std::uint64_t boot_bytes = 0;
    std::string last_operation;
    std::uint64_t last_generation = 0;
    int resizes_open = 0;
    v1::Operation last; // the end of last_operation
  };

  template <class T, class... Message>
  void ask(std::string what, std::chrono::nanoseconds limit, std::function<void(const pending_answer<T>&)> then,
           Message... m);
  void act();
  void create();
  void resize(known& k);
  void await(known& k, const v1::Operation& op);
  void exec(known& k);
  void load(known& k);
  void check_budget();
  void advance();
  void kill_engine();
  void collect();
  void settle();
  void compare();
  void remove_everything();
  void check_end(known& k, const v1::Operation& op);
  known* pick(bool only_answered);
  void problem(std::string text);
  void note(std::string text);
  void require(bool holds, const std::function<std::string()>& text) {
    if (!holds)
      problem(text());
  }

  script_options options_;
  backends::simulated::dice dice_;
  house house_;
  std::unique_ptr<engine_run> run_;
  std::vector<open_request> open_;
  std::map<std::string, known> known_;
  std::vector<std::shared_ptr<guest_exec>> loads_;
  int created_ = 0;
  script_result result_;
};

template <class T, class... Message>
void script::ask(std::string what, std::chrono::nanoseconds limit, std::function<void(const pending_answer<T>&)> then,
                 Message... m) {
  ++result_.requests;
  note("ask " + what);
  auto answer = run_->sys().ask<T>(run_->engine(), std::move(m)...);
  open_.push_back({what, run_->sys().now(), limit, [answer] { return answer.done(); },
                   [this, answer, what, then] {
                     note(what + (answer.value() ? ": answered" : ": " + text_of(answer.error())));
                     if (!answer.value()) {
                       ++result_.refused;
                       result_.promises_refused += code_of(answer.error()) == ec::host_resources;
                       require(!text_of(answer.error()).empty(), [&] { return what + ": an error without a text"; });
                       require(code_of(answer.error()) != ec::internal,
                               [&] { return what + ": an internal error: " + text_of(answer.error()); });
                     }
                     if (then)
                       then(answer);
                   }});
}

} // namespace caisson::tests
