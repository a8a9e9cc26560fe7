// The engine's side against a real process that answers, is late, silent, dies, stops or breaks the rules. Whatever it
// does, whoever has asked gets an answer in bounded time.

#include <gtest/gtest.h>
#include <poll.h>

#include <caf/all.hpp>

#include <condition_variable>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <mutex>

#include "backends/host/provider.hpp"
#include "messages/error.hpp"

namespace caisson::host {
namespace {

using namespace std::chrono_literals;

// What an owner has heard; waits with a limit.
class news {
public:
  void add(const v1::VmEvent& event) {
    std::lock_guard lock{mutex_};
    events_.push_back(event);
    more_.notify_all();
  }
  bool await(v1::VmEvent::Kind kind, std::size_t count = 1) {
    std::unique_lock lock{mutex_};
    return more_.wait_for(lock, 30s, [&] { return count_of(kind) >= count; });
  }
  std::vector<v1::VmEvent> all() {
    std::lock_guard lock{mutex_};
    return events_;
  }

private:
  std::size_t count_of(v1::VmEvent::Kind kind) const {
    std::size_t n = 0;
    for (const auto& event : events_)
      n += event.kind() == kind;
    return n;
  }
  std::mutex mutex_;
  std::condition_variable more_;
  std::vector<v1::VmEvent> events_;
};

vm_listener::behavior_type listening(vm_listener::pointer, std::shared_ptr<news> to) {
  return {[to](const v1::VmEvent& event) { to->add(event); }};
}

struct sharing_config : caf::actor_system_config {
  sharing_config() { set("scheduler.policy", caf::atom("sharing")); }
};

// An answer: exactly one of the two.
template <class T> struct reply {
  T value;
  caf::error error;
  ec code() const { return code_of(error); }
  std::string text() const { return text_of(error); }
};

class backend_host : public ::testing::Test {
protected:
  void SetUp() override {
    char name[] = "/tmp/caisson-host-XXXXXX";
    directory = ::mkdtemp(name);
    where.system = &system;
    where.channels = &io;
    where.state_directory = where.run_directory = where.cache_directory = where.log_directory = directory;
    where.log = [this](std::string_view line) {
      std::lock_guard lock{log_mutex};
      logged += std::string{line} + "\n";
    };
    settings = settings_for("scripted", where);
    settings.program = SCRIPTED_BACKEND;
    settings.grace = 50ms;
    settings.sign_of_life_within = 3s;
    settings.shortest_pause = 10ms;
  }
  void TearDown() override {
    under_test.reset();
    std::filesystem::remove_all(directory);
  }

  void mode(const std::string& text) { std::ofstream{directory + "/mode"} << text; }
  int starts() const {
    std::ifstream file{directory + "/starts"};
    int n = 0;
    for (std::string line; std::getline(file, line);)
      ++n;
    return n;
  }
  std::string log_text() {
    std::lock_guard lock{log_mutex};
    return logged;
  }

  backend_actor backend_of(const std::string& sandbox, const std::shared_ptr<news>& heard = nullptr) {
    if (!under_test)
      under_test = std::make_unique<provider>(where, settings);
    return under_test->spawn(sandbox, heard ? system.spawn(listening, heard) : vm_listener{});
  }

  template <class Verb> static Verb verb_for(const std::string& sandbox, std::uint32_t deadline_ms) {
    Verb verb;
    verb.set_sandbox_id(sandbox);
    verb.set_deadline_ms(deadline_ms);
    return verb;
  }

  // Sends now, receive(handle) later: several calls pending at once.
  template <class Verb> auto send(const backend_actor& to, Verb verb) {
    return self->request(to, 60s, std::move(verb));
  }
  template <class T = v1::VmObserved, class Handle> reply<T> receive(Handle& handle) {
    reply<T> out;
    handle.receive([&](const T& value) { out.value = value; },
                   [&](caf::error& error) { out.error = std::move(error); });
    return out;
  }
  template <class T = v1::VmObserved, class Verb> reply<T> ask(const backend_actor& to, Verb verb) {
    auto handle = send(to, std::move(verb));
    return receive<T>(handle);
  }
  reply<v1::VmObserved> inspect(const backend_actor& to, const std::string& sandbox,
                                std::uint32_t deadline_ms = 20'000) {
    return ask(to, verb_for<v1::InspectVm>(sandbox, deadline_ms));
  }

  std::string directory;
  sharing_config config;
  reactor::reactor io;
  caf::actor_system system{config};
  caf::scoped_actor self{system};
  backends::environment where;
  process_settings settings;
  std::mutex log_mutex;
  std::string logged;
  std::unique_ptr<provider> under_test;
};

TEST_F(backend_host, starts_its_program_at_the_first_verb_and_answers) {
  auto a = backend_of("ok");
  EXPECT_EQ(starts(), 0);
  EXPECT_EQ(ask<v1::Capabilities>(a, v1::DescribeBackend{}).value.backend(), "scripted");
  auto seen = inspect(a, "ok");
  EXPECT_FALSE(seen.error) << seen.text();
  EXPECT_EQ(seen.value.state(), v1::VM_STATE_RUNNING);
  EXPECT_NE(seen.value.vmm_pid(), ::getpid());
  EXPECT_EQ(ask<v1::VmList>(a, v1::ListVms{}).value.sandbox_ids_size(), 1);
  EXPECT_EQ(starts(), 1) << "one process for all";
  EXPECT_NE(log_text().find("backend scripted: scripted?[31m backend"), std::string::npos) << log_text();
}

TEST_F(backend_host, errors_come_back_with_their_rows) {
  auto a = backend_of("a");
  auto refused = inspect(a, "refused");
  EXPECT_EQ(refused.code(), ec::backend_refused);
  EXPECT_EQ(refused.text(), "the script says no");
  EXPECT_EQ(to_proto(refused.error).exit_code(), row(ec::backend_refused).exit_code);
  EXPECT_EQ(inspect(a, "drops").code(), ec::internal);
  EXPECT_EQ(inspect(a, "mistaken").code(), ec::backend_refused);
}

TEST_F(backend_host, news_reach_the_owner_of_that_vm_alone) {
  auto one = std::make_shared<news>();
  auto two = std::make_shared<news>();
  auto a = backend_of("news-one", one);
  auto b = backend_of("news-two", two);
  EXPECT_FALSE(inspect(a, "news-one").error);
  EXPECT_FALSE(inspect(b, "news-two").error);
  ASSERT_TRUE(one->await(v1::VmEvent::KIND_DEVICE_REMOVED));
  ASSERT_TRUE(two->await(v1::VmEvent::KIND_DEVICE_REMOVED));
  ASSERT_EQ(one->all().size(), 1u);
  EXPECT_EQ(one->all()[0].sandbox_id(), "news-one");
  EXPECT_EQ(two->all()[0].sandbox_id(), "news-two");
}

TEST_F(backend_host, a_silent_verb_ends_at_its_deadline_and_others_go_on_beside_it) {
  auto a = backend_of("never");
  auto pending = send(a, verb_for<v1::PauseVm>("never", 400));
  EXPECT_FALSE(inspect(a, "never").error) << "inspect is taken while a verb is pending";
  EXPECT_FALSE(ask(a, verb_for<v1::DestroyVm>("never", 20'000)).error);
  auto ended = receive(pending);
  EXPECT_EQ(ended.code(), ec::outcome_unknown);
  EXPECT_NE(ended.text().find("pause of sandbox never"), std::string::npos) << ended.text();
  EXPECT_NE(ended.text().find("400 ms"), std::string::npos) << ended.text();
  // Beyond the grace: the sign of life is asked for and given, the process stays.
  EXPECT_EQ(ask(a, verb_for<v1::PauseVm>("never", 400)).code(), ec::outcome_unknown);
  EXPECT_FALSE(inspect(a, "ok").error);
  EXPECT_EQ(starts(), 1);
}

TEST_F(backend_host, a_late_answer_reaches_nobody) {
  auto a = backend_of("never");
  EXPECT_EQ(ask(a, verb_for<v1::PauseVm>("never", 100)).code(), ec::outcome_unknown);
  EXPECT_EQ(inspect(a, "release").value.vmm_version(), "release");
  EXPECT_EQ(inspect(a, "ok").value.vmm_version(), "ok");
}

TEST_F(backend_host, when_its_process_dies_every_pending_call_is_answered_and_owners_hear_of_the_next_one) {
  auto one = std::make_shared<news>();
  auto two = std::make_shared<news>();
  auto a = backend_of("never", one);
  auto b = backend_of("dies", two);
  auto first = inspect(a, "ok").value.vmm_pid();
  auto pending = send(a, verb_for<v1::PauseVm>("never", 600'000));
  EXPECT_FALSE(inspect(a, "ok").error) << "the verb has been taken";
  auto deadly = send(b, verb_for<v1::PauseVm>("dies", 600'000));
  auto ended = receive(pending);
  EXPECT_EQ(ended.code(), ec::outcome_unknown);
  EXPECT_NE(ended.text().find("exited with status 3"), std::string::npos) << ended.text();
  EXPECT_EQ(receive(deadly).code(), ec::outcome_unknown);
  EXPECT_TRUE(one->await(v1::VmEvent::KIND_BACKEND_RESTARTED)) << "without anybody asking";
  EXPECT_TRUE(two->await(v1::VmEvent::KIND_BACKEND_RESTARTED));
  EXPECT_EQ(one->all()[0].sandbox_id(), "never");
  auto second = inspect(a, "ok");
  EXPECT_FALSE(second.error) << second.text();
  EXPECT_NE(second.value.vmm_pid(), first);
  EXPECT_EQ(starts(), 2);
}

TEST_F(backend_host, a_stopped_process_is_killed_and_replaced) {
  settings.sign_of_life_within = 300ms;
  auto heard = std::make_shared<news>();
  auto a = backend_of("stops", heard);
  EXPECT_FALSE(inspect(a, "ok").error);
  auto pending = send(a, verb_for<v1::PauseVm>("stops", 300));
  auto behind_it = send(a, verb_for<v1::InspectVm>("ok", 600'000));
  EXPECT_EQ(receive(pending).code(), ec::outcome_unknown) << "at its deadline";
  EXPECT_EQ(receive(behind_it).code(), ec::outcome_unknown) << "when the process is killed, long before its deadline";
  ASSERT_TRUE(heard->await(v1::VmEvent::KIND_BACKEND_RESTARTED));
  EXPECT_NE(heard->all()[0].text().find("no sign of life"), std::string::npos) << heard->all()[0].text();
  EXPECT_FALSE(inspect(a, "ok").error);
  EXPECT_EQ(starts(), 2);
}

TEST_F(backend_host, a_driver_that_answers_nothing_is_replaced_like_a_stopped_one) {
  mode("mute");
  settings.sign_of_life_within = 300ms;
  auto heard = std::make_shared<news>();
  auto a = backend_of("never", heard);
  EXPECT_EQ(ask(a, verb_for<v1::PauseVm>("never", 200)).code(), ec::outcome_unknown);
  EXPECT_TRUE(heard->await(v1::VmEvent::KIND_BACKEND_RESTARTED));
}

TEST_F(backend_host, a_process_that_breaks_the_wires_rules_is_replaced) {
  auto heard = std::make_shared<news>();
  auto a = backend_of("breaks", heard);
  EXPECT_EQ(inspect(a, "breaks", 600'000).code(), ec::outcome_unknown);
  ASSERT_TRUE(heard->await(v1::VmEvent::KIND_BACKEND_RESTARTED));
  EXPECT_NE(heard->all()[0].text().find("1 MiB"), std::string::npos) << heard->all()[0].text();
  EXPECT_FALSE(inspect(a, "ok").error);
}

TEST_F(backend_host, a_program_that_is_not_there_is_named) {
  settings.program = directory + "/caisson-backend-none";
  auto missing = inspect(backend_of("a"), "a");
  EXPECT_EQ(missing.code(), ec::host_missing);
  EXPECT_NE(missing.text().find(settings.program), std::string::npos) << missing.text();
  EXPECT_NE(missing.text().find("install"), std::string::npos) << missing.text();
}

TEST_F(backend_host,
       a_program_that_does_not_get_ready_is_told_with_its_last_words_and_started_again_at_a_bounded_rate) {
  mode("exits");
  settings.longest_pause = 50ms;
  auto a = backend_of("a");
  for (int i = 1; i <= 3; ++i) {
    auto lost = inspect(a, "ok");
    EXPECT_EQ(lost.code(), ec::backend_lost);
    EXPECT_NE(lost.text().find("exited with status 4"), std::string::npos) << lost.text();
    EXPECT_NE(lost.text().find("cannot open the library"), std::string::npos) << lost.text();
    EXPECT_EQ(starts(), i) << "a call makes one attempt";
  }
  mode("");
  EXPECT_FALSE(inspect(a, "ok").error) << "and the next one may succeed";
}

TEST_F(backend_host, a_process_that_never_says_ready_is_given_up) {
  mode("silent");
  settings.ready_within = 300ms;
  auto a = backend_of("a");
  auto lost = inspect(a, "ok");
  EXPECT_EQ(lost.code(), ec::backend_lost);
  EXPECT_NE(lost.text().find("ready within 300 ms"), std::string::npos) << lost.text();
  auto unsent = inspect(a, "ok", 50);
  EXPECT_EQ(unsent.code(), ec::backend_lost);
}

TEST_F(backend_host, another_contract_version_is_refused) {
  mode("version");
  auto lost = inspect(backend_of("a"), "ok");
  EXPECT_EQ(lost.code(), ec::backend_lost);
  EXPECT_NE(lost.text().find("version 99"), std::string::npos) << lost.text();
}

TEST_F(backend_host, a_backend_of_the_first_contract_is_refused_with_both_versions_and_what_to_read) {
  mode("version_1");
  auto lost = inspect(backend_of("a"), "ok");
  EXPECT_EQ(lost.code(), ec::backend_lost);
  EXPECT_NE(lost.text().find("version 1"), std::string::npos) << lost.text();
  EXPECT_NE(lost.text().find("version " + std::to_string(wire_contract_version)), std::string::npos) << lost.text();
  EXPECT_NE(lost.text().find("writing-one.md"), std::string::npos) << lost.text();
}

TEST_F(backend_host, devices_cross_the_wire) {
  auto a = backend_of("ok");
  auto attach = verb_for<v1::AttachDevice>("ok", 0);
  attach.mutable_disk()->set_id("data");
  EXPECT_FALSE(ask(a, attach).error);
  EXPECT_FALSE(ask(a, verb_for<v1::DetachDevice>("ok", 0)).error);
  EXPECT_EQ(ask(backend_of("never"), verb_for<v1::DetachDevice>("never", 200)).code(), ec::outcome_unknown);
}

TEST_F(backend_host, a_request_too_large_for_the_wire_is_refused_before_it_is_sent) {
  v1::CreateVm create;
  create.mutable_spec()->set_sandbox_id("ok");
  create.mutable_spec()->set_kernel_command_line(std::string(2 << 20, 'x'));
  auto a = backend_of("ok");
  EXPECT_EQ(ask(a, create).code(), ec::invalid_argument);
  EXPECT_FALSE(inspect(a, "ok").error);
}

TEST_F(backend_host, an_actor_that_ends_answers_what_it_was_asked) {
  auto a = backend_of("never");
  EXPECT_FALSE(inspect(a, "ok").error);
  auto pending = send(a, verb_for<v1::PauseVm>("never", 600'000));
  EXPECT_FALSE(inspect(a, "ok").error) << "the verb has been taken";
  caf::anon_send_exit(a, caf::exit_reason::kill);
  EXPECT_EQ(receive(pending).code(), ec::backend_lost);
}

TEST_F(backend_host, its_end_ends_the_process_and_answers_what_is_open) {
  auto a = backend_of("never");
  auto pid = static_cast<pid_t>(inspect(a, "ok").value.vmm_pid());
  EXPECT_TRUE(std::filesystem::exists(settings.pid_file));
  auto pending = send(a, verb_for<v1::PauseVm>("never", 600'000));
  EXPECT_FALSE(inspect(a, "ok").error);
  under_test.reset();
  EXPECT_EQ(receive(pending).code(), ec::outcome_unknown);
  EXPECT_EQ(inspect(a, "ok").code(), ec::backend_lost);
  // The provider waits for the death; the reactor's thread reaps when it gets its turn.
  for (int turn = 0; turn < 500 && reactor::start_ticks_of(pid) != 0; ++turn)
    ::poll(nullptr, 0, 10);
  EXPECT_EQ(reactor::start_ticks_of(pid), 0u) << "gone and reaped";
  EXPECT_FALSE(std::filesystem::exists(settings.pid_file));
}

TEST_F(backend_host, a_stopped_process_of_a_killed_engine_is_cleared_away) {
  std::string error;
  auto stale = io.start(
      {"/bin/tail", {"-f", "/dev/null"}, {}, {}}, [](auto) {}, error);
  ASSERT_TRUE(stale) << error;
  stale->kill(SIGSTOP);
  std::ofstream{settings.pid_file} << stale->pid() << ' ' << stale->start_ticks() << '\n';
  EXPECT_FALSE(inspect(backend_of("ok"), "ok").error);
  EXPECT_TRUE(stale->await_exit(0ms));
}

TEST_F(backend_host, a_pid_that_is_another_process_by_now_is_left_alone) {
  std::string error;
  auto other = io.start(
      {"/bin/tail", {"-f", "/dev/null"}, {}, {}}, [](auto) {}, error);
  ASSERT_TRUE(other) << error;
  std::ofstream{settings.pid_file} << other->pid() << ' ' << other->start_ticks() + 1 << '\n';
  EXPECT_FALSE(inspect(backend_of("ok"), "ok").error);
  EXPECT_FALSE(other->await_exit(0ms));
  other->kill(SIGKILL);
}

TEST_F(backend_host, has_a_reactor_of_its_own_where_none_is_lent) {
  where.channels = nullptr;
  EXPECT_FALSE(inspect(backend_of("ok"), "ok").error);
}

} // namespace
} // namespace caisson::host
