// What a user of an engine notices of the host's budget and of automatic memory, one thing after another.

#include <gtest/gtest.h>

#include "actors/guest_agent/guest_link.hpp"
#include "tests/simulation/house.hpp"

namespace caisson::tests {
namespace {

using namespace std::chrono_literals;
constexpr std::uint64_t mib = 1 << 20;
constexpr std::uint64_t gib = std::uint64_t{1} << 30;
constexpr std::uint64_t overhead = 128 * mib; // of a simulated machine
constexpr std::uint64_t reserve = 256 * mib;  // the default

struct small_host : testing::Test {
  house place{7, {}};
  std::unique_ptr<engine_run> run;
  std::vector<std::shared_ptr<guest_exec>> loads;

  void start(std::uint64_t available_bytes) {
    place.available_bytes = available_bytes;
    run = std::make_unique<engine_run>(place, 7);
  }
  void kill() {
    run->kill();
    loads.clear();
    run.reset();
  }
  void TearDown() override { loads.clear(); }

  template <class T, class M> pending_answer<T> ask(M m) {
    auto a = run->sys().ask<T>(run->engine(), std::move(m));
    run->sys().run_until([&] { return a.done(); }, 400s);
    return a;
  }

  pending_answer<v1::SandboxStatus> create(const std::string& name, std::uint64_t bytes, bool follows = false) {
    v1::CreateSandbox m;
    m.set_name(name);
    m.set_hypervisor("simulated");
    m.set_memory_bytes(bytes);
    if (follows)
      m.set_config_path(autosize_config_path());
    return ask<v1::SandboxStatus>(m);
  }

  pending_answer<v1::Operation> resize(const std::string& name, std::uint64_t bytes, bool dry_run = false,
                                       bool autosize = false) {
    v1::ResizeSandbox m;
    m.set_sandbox(name);
    m.set_memory_bytes(bytes);
    m.set_dry_run(dry_run);
    m.set_autosize(autosize);
    return ask<v1::Operation>(m);
  }

  v1::SandboxStatus status(const std::string& name) {
    v1::GetSandbox m;
    m.set_sandbox(name);
    auto a = ask<v1::SandboxStatus>(m);
    return a.value() ? *a.value() : v1::SandboxStatus{};
  }

  std::uint64_t promised() {
    auto a = ask<v1::EngineStatus>(v1::GetEngine{});
    return a.value() ? a->budget().promised_bytes() : UINT64_MAX;
  }

  void remove(const std::string& name) {
    v1::RemoveSandbox m;
    m.set_sandbox(name);
    m.set_force(true);
    ask<v1::SandboxStatus>(m);
  }

  void load(const std::string& name, std::uint64_t mib_held, int seconds) {
    auto a = run->sys().ask<guest_link_ptr>(run->engine(), link_atom::value, name);
    run->sys().run_until([&] { return a.done(); }, 60s);
    ASSERT_TRUE(a.value());
    v1::ExecStart start;
    for (const auto& word : {std::string{"hold"}, std::to_string(mib_held), std::to_string(seconds)})
      start.add_argv(word);
    guest_exec_events e;
    e.on_started = [] {};
    e.on_stdout = e.on_stderr = [](std::span<const std::byte>) {};
    e.on_end = [](std::variant<v1::ExecExited, v1::Error>) {};
    loads.push_back((*a.value())->exec(start, e));
  }

  std::vector<v1::Event> events(const std::string& type) {
    v1::EventsFrom from;
    from.set_from_seq(1);
    auto all = place.journal->events(from);
    std::vector<v1::Event> some;
    for (const auto& e : std::get<v1::EventBatch>(all).events())
      if (e.type() == type)
        some.push_back(e);
    return some;
  }
};

TEST_F(small_host, a_creation_that_the_host_cannot_hold_is_refused_before_anything_is_made) {
  start(2 * gib);
  ASSERT_TRUE(create("a", gib).value());
  EXPECT_EQ(promised(), gib + overhead);
  const auto b = create("b", gib);
  ASSERT_FALSE(b.value());
  EXPECT_EQ(code_of(b.error()), ec::host_resources);
  const auto text = text_of(b.error());
  for (const auto* part : {"the creation of sandbox b needs 1152 MiB", "512 MiB more", "2 GiB available", "256 MiB back",
                           "owes 1152 MiB to 1 other sandbox"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
  EXPECT_EQ(place.world->machines().size(), 1u);
  EXPECT_EQ(place.directories.size(), 1u);
  EXPECT_EQ(promised(), gib + overhead);
  remove("a");
  EXPECT_EQ(promised(), 0u);
  EXPECT_TRUE(create("b", gib).value());
}

TEST_F(small_host, of_two_creations_at_once_one_gets_the_last_memory) {
  start(2 * gib);
  v1::CreateSandbox m;
  m.set_hypervisor("simulated");
  m.set_memory_bytes(gib);
  auto a = run->sys().ask<v1::SandboxStatus>(run->engine(), m), b = run->sys().ask<v1::SandboxStatus>(run->engine(), m);
  run->sys().run_until([&] { return a.done() && b.done(); }, 400s);
  EXPECT_NE(a.value() != nullptr, b.value() != nullptr);
  EXPECT_EQ(place.world->machines().size(), 1u);
}

TEST_F(small_host, a_growth_is_refused_before_anything_is_plugged_and_a_dry_run_tells_it) {
  start(2 * gib);
  ASSERT_TRUE(create("a", 512 * mib).value());
  const auto dry = resize("a", 3 * gib, true);
  ASSERT_TRUE(dry.value());
  ASSERT_GT(dry->plan().notes_size(), 0);
  EXPECT_NE(dry->plan().notes(dry->plan().notes_size() - 1).find("it would be refused now"), std::string::npos);
  const auto grow = resize("a", 3 * gib);
  EXPECT_EQ(code_of(grow.error()), ec::host_resources);
  EXPECT_EQ(status("a").memory().target_bytes(), 512 * mib);
  EXPECT_EQ(promised(), 512 * mib + overhead);
  EXPECT_TRUE(resize("a", 1536 * mib).value());
  run->sys().run_for(60s);
  EXPECT_EQ(promised(), 1536 * mib + overhead);
  EXPECT_TRUE(resize("a", 512 * mib).value());
  run->sys().run_for(60s);
  EXPECT_EQ(status("a").memory().promised_bytes(), 512 * mib + overhead) << "released with what was read back";
  EXPECT_EQ(promised(), 512 * mib + overhead);
}

TEST_F(small_host, both_parts_of_a_resize_that_cannot_be_are_told_at_once) {
  start(8 * gib);
  ASSERT_TRUE(create("a", 512 * mib).value());
  v1::ResizeSandbox m;
  m.set_sandbox("a");
  m.set_memory_bytes(64 * mib);
  m.set_vcpus(4000);
  const auto said = text_of(ask<v1::Operation>(m).error());
  EXPECT_NE(said.find("memory target"), std::string::npos) << said;
  EXPECT_NE(said.find("4000 vCPUs"), std::string::npos) << said;
}

TEST_F(small_host, nobody_wants_the_vcpus_of_a_cancelled_resize) {
  start(8 * gib);
  ASSERT_TRUE(create("a", 512 * mib).value());
  const auto max = status("a").vcpus().max();
  ASSERT_GT(max, 1u);
  v1::ResizeSandbox m;
  m.set_sandbox("a");
  m.set_vcpus(max);
  const auto begun = ask<v1::Operation>(m);
  ASSERT_TRUE(begun.value()) << text_of(begun.error());
  v1::CancelOperation stop;
  stop.set_operation_id(begun->id());
  const auto ended = ask<v1::Operation>(stop);
  ASSERT_TRUE(ended.value());
  EXPECT_EQ(ended->state(), v1::OPERATION_STATE_CANCELLED);
  EXPECT_LT(status("a").vcpus().online(), max);
  EXPECT_EQ(status("a").vcpus().target(), status("a").vcpus().online());
}

TEST_F(small_host, of_a_resize_that_failed_nothing_stays_wanted_or_promised) {
  start(8 * gib);
  ASSERT_TRUE(create("a", 512 * mib).value());
  const auto max = status("a").vcpus().max();
  ASSERT_GT(max, 1u);
  v1::ResizeSandbox m;
  m.set_sandbox("a");
  m.set_memory_bytes(3 * gib);
  m.set_vcpus(max);
  auto trouble = place.world->plan();
  trouble.refuse = 1; // whatever the VMM is asked for
  place.world->set_plan(trouble);
  const auto begun = ask<v1::Operation>(m);
  ASSERT_TRUE(begun.value()) << text_of(begun.error());
  v1::WaitOperation wait;
  wait.set_operation_id(begun->id());
  wait.set_wait_ms(300'000);
  const auto ended = ask<v1::Operation>(wait);
  ASSERT_TRUE(ended.value());
  ASSERT_EQ(ended->state(), v1::OPERATION_STATE_FAILED) << ended->why();
  place.world->set_plan({});
  for (const bool again : {false, true}) {
    if (again) {
      kill();
      start(8 * gib);
      run->sys().run_for(60s);
    }
    const auto now = status("a");
    EXPECT_EQ(now.memory().target_bytes(), 512 * mib);
    EXPECT_EQ(now.vcpus().target(), now.vcpus().online());
    EXPECT_EQ(now.memory().promised_bytes(), 512 * mib + overhead);
    EXPECT_EQ(promised(), 512 * mib + overhead);
  }
}

TEST_F(small_host, an_operation_hears_why_the_vmm_is_gone) {
  start(8 * gib);
  ASSERT_TRUE(create("a", 512 * mib).value());
  const auto begun = resize("a", 3 * gib);
  ASSERT_TRUE(begun.value()) << text_of(begun.error());
  place.world->kill_vmm(status("a").id(), "went over what it was promised");
  v1::WaitOperation wait;
  wait.set_operation_id(begun->id());
  wait.set_wait_ms(300'000);
  const auto ended = ask<v1::Operation>(wait);
  ASSERT_TRUE(ended.value());
  EXPECT_EQ(ended->state(), v1::OPERATION_STATE_FAILED);
  EXPECT_EQ(ended->error().code(), "vmm_died");
  EXPECT_NE(ended->error().text().find("went over what it was promised"), std::string::npos) << ended->error().text();
  EXPECT_NE(ended->why().find("went over what it was promised"), std::string::npos) << ended->why();
}

TEST_F(small_host, what_runs_keeps_its_memory_after_a_restart_even_where_the_host_has_less) {
  start(4 * gib);
  ASSERT_TRUE(create("a", gib).value());
  ASSERT_TRUE(create("b", gib).value());
  kill();
  start(gib);
  run->sys().run_for(60s);
  EXPECT_EQ(promised(), 2 * (gib + overhead));
  EXPECT_EQ(status("a").state(), v1::SANDBOX_STATE_RUNNING);
  EXPECT_EQ(code_of(create("c", 256 * mib).error()), ec::host_resources);
}

TEST_F(small_host, automatic_memory_follows_a_load_and_every_change_has_its_reason) {
  start(16 * gib);
  ASSERT_TRUE(create("a", 256 * mib, true).value());
  load("a", 1000, 20);
  run->sys().run_for(15s);
  const auto peak = status("a").memory();
  EXPECT_GE(peak.workload_bytes(), 1000 * mib) << "nobody was killed";
  EXPECT_GE(peak.boot_bytes() + peak.plugged_bytes(), 1064 * mib);
  run->sys().run_for(120s);
  EXPECT_LE(status("a").memory().plugged_bytes(), 64 * mib);
  EXPECT_LE(promised(), 320 * mib + overhead);
  EXPECT_TRUE(events("guest.oom").empty());
  const auto started = events("operation.started");
  ASSERT_GE(started.size(), 3u);
  for (const auto& e : started) {
    EXPECT_EQ(e.text().find("automatic memory: "), 0u) << e.text();
    EXPECT_EQ(e.operation().cause(), e.text());
  }
}

TEST_F(small_host, an_explicit_target_ends_automatic_memory_until_it_is_wanted_again) {
  start(16 * gib);
  ASSERT_TRUE(create("a", 256 * mib, true).value());
  EXPECT_TRUE(status("a").memory().has_autosize());
  ASSERT_TRUE(resize("a", 512 * mib).value());
  run->sys().run_for(30s);
  EXPECT_FALSE(status("a").memory().has_autosize());
  load("a", 700, 30);
  run->sys().run_for(120s);
  EXPECT_EQ(status("a").memory().plugged_bytes(), 256 * mib);
  kill();
  start(16 * gib);
  run->sys().run_for(60s);
  EXPECT_FALSE(status("a").memory().has_autosize()) << "also after a restart";
  ASSERT_TRUE(resize("a", 0, false, true).value());
  EXPECT_TRUE(status("a").memory().has_autosize());
  run->sys().run_for(120s);
  EXPECT_EQ(status("a").memory().plugged_bytes(), 0u) << "nothing needs it";
}

TEST_F(small_host, automatic_memory_that_the_host_cannot_give_is_told_once) {
  start(gib);
  ASSERT_TRUE(create("a", 256 * mib, true).value());
  load("a", 1000, 300);
  run->sys().run_for(250s);
  EXPECT_LE(promised(), gib - reserve);
  const auto refused = events("autosize.refused");
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_NE(refused[0].text().find("automatic memory of sandbox a needs"), std::string::npos) << refused[0].text();
  EXPECT_EQ(status("a").state(), v1::SANDBOX_STATE_RUNNING);
}

TEST_F(small_host, a_guest_that_cries_for_memory_moves_nobody_else_out) {
  start(3 * gib);
  ASSERT_TRUE(create("loud", 256 * mib, true).value());
  ASSERT_TRUE(create("quiet", gib).value());
  load("loud", 4000, 600);
  run->sys().run_for(400s);
  const auto loud = status("loud").memory();
  EXPECT_LE(loud.boot_bytes() + loud.plugged_bytes(), 2 * gib) << "its ceiling";
  EXPECT_LE(promised(), 3 * gib - reserve);
  EXPECT_EQ(status("quiet").memory().promised_bytes(), gib + overhead);
}

} // namespace
} // namespace caisson::tests
