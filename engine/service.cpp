// The composition root: builds the actors of one state directory, owns their threads, and is the one handler table
// behind every door.

#include "engine/service.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>

#include "actors/budget/budget_keeper.hpp"
#include "actors/config/config.hpp"
#include "actors/engine/engine.hpp"
#include "actors/events/events.hpp"
#include "actors/host/host.hpp"
#include "actors/journal/journal.hpp"
#include "backends/backend.hpp"
#include "engine/config_facts.hpp"
#include "engine/directories.hpp"
#include "engine/door_actor.hpp"
#include "engine/event_feed.hpp"
#include "engine/exec_bridge.hpp"
#include "messages/validate.hpp"
#include "reactor/file_watch.hpp"
#include "reactor/reactor.hpp"

#ifndef CAISSON_VERSION
#error "CAISSON_VERSION comes from the build"
#endif

namespace caisson::engine {
namespace {

using std::chrono::milliseconds;

// Every request of a door ends: the engine's own deadlines are shorter and say more.
constexpr milliseconds door_deadline{3'700'000};

std::int64_t now_unix_ms() {
  return std::chrono::duration_cast<milliseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::uint64_t random_number() {
  static thread_local std::mt19937_64 generator{[] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device()};
    return std::mt19937_64{seed};
  }()};
  return generator();
}

std::string host_boot_id() {
  std::ifstream in{"/proc/sys/kernel/random/boot_id"};
  std::string id;
  std::getline(in, id);
  return id;
}

// Answers once; where it is dropped unanswered (the engine ends), the door hears that.
template <class T> class answer {
public:
  explicit answer(done<T> then) : then_{std::move(then)} {}
  ~answer() { give(error_message(ec::not_running, "the engine is ending; ask the next one")); }
  answer(const answer&) = delete;
  answer& operator=(const answer&) = delete;
  void give(outcome<T> value) {
    if (auto then = std::exchange(then_, {}))
      then(std::move(value));
  }

private:
  done<T> then_;
};

struct actor_config : caf::actor_system_config {
  explicit actor_config(std::uint32_t workers) {
    // No polling when idle, and the lowest latency from foreign threads.
    set("scheduler.policy", caf::atom("sharing"));
    set("scheduler.max-threads", static_cast<std::size_t>(std::max(1u, workers)));
  }
};

class service_impl final : public service {
public:
  service_impl(options o, directories where, directory_lock lock, journal_store_ptr store, v1::JournalContents found)
      : options_{std::move(o)}, where_{std::move(where)}, lock_{std::move(lock)}, store_{std::move(store)},
        reactor_{options_.log}, actor_config_{options_.worker_threads}, system_{actor_config_} {
    start(std::move(found));
  }

  ~service_impl() override {
    for (auto& actor : {caf::actor_cast<caf::actor>(door_), caf::actor_cast<caf::actor>(engine_),
                        caf::actor_cast<caf::actor>(config_), caf::actor_cast<caf::actor>(events_),
                        caf::actor_cast<caf::actor>(budget_),
                        caf::actor_cast<caf::actor>(host_), caf::actor_cast<caf::actor>(journal_)})
      caf::anon_send_exit(actor, caf::exit_reason::user_shutdown);
    system_.await_all_actors_done();
    providers_.clear();
    if (sandboxes_ == 0)
      clear_run_directory();
  }

  void create(v1::CreateSandbox m, done<v1::SandboxStatus> then) override { checked(std::move(m), std::move(then)); }
  void get(v1::GetSandbox m, done<v1::SandboxStatus> then) override { selected(std::move(m), std::move(then)); }
  void list(v1::ListSandboxes m, done<v1::SandboxList> then) override { ask(std::move(then), std::move(m)); }
  void stop(v1::StopSandbox m, done<v1::SandboxStatus> then) override { selected(std::move(m), std::move(then)); }
  void remove(v1::RemoveSandbox m, done<v1::SandboxStatus> then) override { selected(std::move(m), std::move(then)); }
  void pause(v1::PauseSandbox m, done<v1::SandboxStatus> then) override { selected(std::move(m), std::move(then)); }
  void resume(v1::ResumeSandbox m, done<v1::SandboxStatus> then) override { selected(std::move(m), std::move(then)); }
  void resize(v1::ResizeSandbox m, done<v1::Operation> then) override { checked(std::move(m), std::move(then)); }
  void get_operation(v1::GetOperation m, done<v1::Operation> then) override {
    operation(std::move(m), std::move(then));
  }
  void wait_operation(v1::WaitOperation m, done<v1::Operation> then) override {
    operation(std::move(m), std::move(then));
  }
  void cancel_operation(v1::CancelOperation m, done<v1::Operation> then) override {
    operation(std::move(m), std::move(then));
  }
  void status(v1::GetEngine m, done<v1::EngineStatus> then) override {
    ask<v1::EngineStatus>(
        [this, then = std::move(then)](outcome<v1::EngineStatus> about) {
          if (auto* s = std::get_if<v1::EngineStatus>(&about))
            s->set_last_event_seq(store_->last_seq());
          then(std::move(about));
        },
        std::move(m));
  }

  void describe(v1::DescribeHost m, done<v1::Capabilities> then) override { ask(std::move(then), std::move(m)); }

  void console(v1::ConsoleRequest m, done<v1::ConsoleText> then) override {
    if (auto why = validate_selector(m.sandbox()))
      return then(to_proto(why));
    ask<std::string>(
        [then = std::move(then)](outcome<std::string> text) {
          if (auto* why = std::get_if<v1::Error>(&text))
            return then(std::move(*why));
          v1::ConsoleText reply;
          reply.set_text(std::get<std::string>(std::move(text)));
          then(std::move(reply));
        },
        console_atom::value, m.sandbox());
  }

  std::shared_ptr<exec_session> exec(v1::ExecRequest m, exec_events events) override {
    auto bridge = std::make_shared<exec_bridge>(std::move(events));
    auto session = session_of(bridge);
    if (auto why = check_exec(m)) {
      reactor_.post([bridge, e = to_proto(why)] { bridge->fail(e); });
      return session;
    }
    ask<guest_link_ptr>(
        [bridge, start = m.start()](outcome<guest_link_ptr> link) {
          if (auto* why = std::get_if<v1::Error>(&link))
            bridge->fail(*why);
          else
            bridge->start(*std::get<guest_link_ptr>(link), start);
        },
        link_atom::value, m.sandbox());
    return session;
  }

  std::unique_ptr<event_subscription> watch(v1::WatchEvents m, std::function<void(const v1::Event&)> on_event,
                                            std::function<void()> on_caught_up) override {
    auto feed = std::make_shared<event_feed>(reactor_, std::move(on_event));
    v1::EventsFrom from;
    from.set_from_seq(m.from_seq());
    event_sink_ptr sink = feed->sink();
    ask<v1::Empty>(
        [feed, caught_up = std::move(on_caught_up)](outcome<v1::Empty>) {
          if (caught_up)
            feed->after_delivery(caught_up);
        },
        from, sink);
    return feed->subscription(
        [door = door_, engine = engine_, sink] { caf::anon_send(engine, unsub_atom::value, sink); });
  }

  std::uint32_t sandbox_count() const override { return sandboxes_; }

private:
  static caf::error check_exec(const v1::ExecRequest& m) {
    if (auto why = validate_selector(m.sandbox()))
      return why;
    if (m.start().argv_size() == 0 || m.start().argv(0).empty())
      return make_error(ec::invalid_argument, "exec: no command is given; write it behind --");
    std::size_t bytes = 0;
    for (const auto* list : {&m.start().argv(), &m.start().environment()})
      for (const auto& s : *list) {
        bytes += s.size() + 1;
        if (s.find('\0') != std::string::npos)
          return make_error(ec::invalid_argument, "exec: an argument or environment variable has a NUL byte in it");
      }
    constexpr std::size_t most_bytes = 56 * 1024; // one control frame of the guest's channel
    if (bytes > most_bytes)
      return make_error(
          ec::out_of_range,
          fmt::format("exec: arguments and environment come to {} bytes; at most {} are taken", bytes, most_bytes));
    return {};
  }

  template <class Reply, class... Parts> void ask(done<Reply> then, Parts... parts) {
    auto give = std::make_shared<answer<Reply>>(std::move(then));
    auto work = std::make_shared<std::function<void(door_self)>>([give, engine = engine_, parts...](door_self self) {
      self->request(engine, door_deadline, parts...)
          .then([give](const Reply& reply) { give->give(reply); },
                [give](const caf::error& why) { give->give(to_proto(why)); });
    });
    caf::anon_send(door_, door_work{std::move(work)});
  }

  template <class Message, class Reply> void checked(Message m, done<Reply> then) {
    if (auto why = validate(m))
      return then(to_proto(why));
    ask(std::move(then), std::move(m));
  }

  template <class Message, class Reply> void selected(Message m, done<Reply> then) {
    if (auto why = validate_selector(m.sandbox()))
      return then(to_proto(why));
    ask(std::move(then), std::move(m));
  }

  template <class Message> void operation(Message m, done<v1::Operation> then) {
    if (auto why = validate_name(m.operation_id(), "operation"))
      return then(to_proto(why));
    if (!m.sandbox().empty())
      if (auto why = validate_selector(m.sandbox()))
        return then(to_proto(why));
    ask(std::move(then), std::move(m));
  }

  // Nothing runs any more: what backends keep on the tmpfs goes, while the state directory is still locked. The door's socket
  // and the starters' lock are their owners'.
  void clear_run_directory() const {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator{where_.run, ignored})
      if (entry.is_directory(ignored) && !entry.is_symlink(ignored))
        std::filesystem::remove_all(entry.path(), ignored);
  }

  void log(std::string_view line) const {
    if (options_.log)
      options_.log(line);
  }

  backends::provider* provider(const std::string& name, std::string& why) {
    if (auto at = providers_.find(name); at != providers_.end())
      return at->second.get();
    const auto* line = backends::find(name);
    if (!line) {
      std::string known;
      for (const auto& e : backends::registry())
        known += (known.empty() ? "" : ", ") + std::string{e.name};
      why = fmt::format("hypervisor \"{}\" is not supported; backends: {}", escape_guest_text(name, 60), known);
      return nullptr;
    }
    backends::environment lent;
    lent.system = &system_;
    lent.channels = &reactor_;
    lent.state_directory = where_.state;
    lent.run_directory = where_.run;
    lent.cache_directory = where_.cache;
    lent.log_directory = where_.logs;
    lent.program_directory = where_.programs;
    lent.log = [this](std::string_view text) { log(text); };
    auto& made = providers_[name] = line->make(lent);
    return made.get();
  }

  caf::error guest(const std::string& architecture, const std::string& directory, sandbox::guest_assets& into) const {
    auto search = options_;
    if (!directory.empty())
      search.guest_directory = directory;
    auto found = find_guest(architecture, search, where_);
    if (auto* why = std::get_if<v1::Error>(&found))
      return make_error(*why);
    auto& g = std::get<guest_files>(found);
    into = {g.kernel_path, g.bzimage_path, g.initrd_path, g.command_line};
    return {};
  }

  void start(v1::JournalContents found) {
    journal_ = system_.spawn<caf::detached>(journal, store_);
    host_ = system_.spawn<caf::detached>(host_worker);
    budget::settings budget_set;
    budget_set.host = host_;
    budget_ = system_.spawn(budget::budget_keeper, budget_set);
    events_settings event_settings;
    event_settings.last_seq = found.last_seq();
    events_ = system_.spawn(events, journal_, event_settings);
    config_settings config_set;
    config_set.host = config_facts();
    config_set.journal = journal_;
    config_set.events = events_;
    config_set.now_unix_ms = now_unix_ms;
    config_set.watch = [this](const std::string& name, std::vector<std::string> directories, std::function<void()> changed) {
      watches_[name] = std::make_unique<reactor::file_watch>(reactor_, std::move(directories), std::move(changed));
    };
    config_ = system_.spawn(config_keeper, std::move(config_set));

    engine_settings set;
    set.sandbox.journal = journal_;
    set.sandbox.events = events_;
    set.sandbox.host = host_;
    set.sandbox.budget = budget_;
    set.sandbox.random = random_number;
    set.sandbox.now_unix_ms = now_unix_ms;
    set.sandbox.host_boot_id = host_boot_id();
    set.sandbox.log_directory = where_.logs;
    set.config = config_;
    set.provider = [this](const std::string& name, std::string& why) { return provider(name, why); };
    set.guest = [this](const std::string& arch, const std::string& dir, sandbox::guest_assets& into) {
      return guest(arch, dir, into);
    };
    set.count_changed = [this](std::size_t n) { sandboxes_ = static_cast<std::uint32_t>(n); };
    set.about.set_version(CAISSON_VERSION);
    set.about.set_state_directory(where_.state);
    set.about.set_run_directory(where_.run);
    set.about.set_pid(::getpid());
    set.about.set_started_unix_ms(now_unix_ms());
    engine_ = system_.spawn(caisson::engine_keeper, std::move(set), std::move(found));
    door_ = system_.spawn(door_actor_body);
  }

  options options_;
  directories where_;
  directory_lock lock_;
  journal_store_ptr store_;
  std::atomic<std::uint32_t> sandboxes_{0};
  reactor::reactor reactor_;
  actor_config actor_config_;
  caf::actor_system system_;
  std::map<std::string, std::unique_ptr<reactor::file_watch>> watches_;    // touched by the config actor alone
  std::map<std::string, std::unique_ptr<backends::provider>> providers_; // touched by the engine actor alone
  journal_actor journal_;
  host_actor host_;
  budget_actor budget_;
  events_actor events_;
  config_actor config_;
  engine_actor engine_;
  caf::actor door_;
};

} // namespace

outcome<std::unique_ptr<service>> open(options o) {
  v1::Error error;
  auto where = prepare_directories(o, &error);
  if (!error.code().empty())
    return error;
  auto lock = lock_directory(where.state, where.run);
  if (auto* why = std::get_if<v1::Error>(&lock))
    return *why;
  auto store = open_journal_store(where.state + "/journal.sqlite");
  if (auto* why = std::get_if<v1::Error>(&store))
    return *why;
  auto& opened = std::get<journal_store_ptr>(store);
  auto found = opened->replay();
  if (auto* why = std::get_if<v1::Error>(&found))
    return *why;
  return std::unique_ptr<service>{std::make_unique<service_impl>(std::move(o), std::move(where),
                                                                 std::get<directory_lock>(std::move(lock)), opened,
                                                                 std::get<v1::JournalContents>(std::move(found)))};
}

} // namespace caisson::engine
