// A verb whose answer never came may still have happened. Whoever asks for the last known state learns of it too.

#include <gtest/gtest.h>

#include "tests/simulation/house.hpp"

namespace caisson::tests {
namespace {

using namespace std::chrono_literals;

struct lost_answer : testing::Test {
  house place{11, {}};
  engine_run run{place, 11};

  template <class T, class M> pending_answer<T> ask(M m) {
    auto a = run.sys().ask<T>(run.engine(), std::move(m));
    run.sys().run_until([&] { return a.done(); }, 400s);
    return a;
  }

  v1::SandboxState known_state() {
    v1::GetSandbox m;
    m.set_sandbox("a");
    m.set_cached(true);
    auto a = ask<v1::SandboxStatus>(m);
    return a.value() ? a->state() : v1::SANDBOX_STATE_UNSPECIFIED;
  }
};

TEST_F(lost_answer, a_pause_that_came_late_is_found) {
  v1::CreateSandbox create;
  create.set_name("a");
  create.set_hypervisor("simulated");
  ASSERT_TRUE(ask<v1::SandboxStatus>(create).value());

  auto trouble = place.world->plan();
  trouble.late = 1;
  place.world->set_plan(trouble);
  v1::PauseSandbox pause;
  pause.set_sandbox("a");
  auto paused = run.sys().ask<v1::SandboxStatus>(run.engine(), pause);
  run.sys().run_until([&] { return place.world->verbs_under_way() > 0; }, 10s);
  place.world->set_plan({});
  run.sys().run_until([&] { return paused.done(); }, 400s);
  ASSERT_FALSE(paused.value()) << "the answer did not come in time";

  run.sys().run_for(10min);
  EXPECT_EQ(known_state(), v1::SANDBOX_STATE_PAUSED);

  v1::ResumeSandbox resume;
  resume.set_sandbox("a");
  auto resumed = ask<v1::SandboxStatus>(resume);
  ASSERT_TRUE(resumed.value());
  EXPECT_EQ(resumed->state(), v1::SANDBOX_STATE_RUNNING);
}

} // namespace
} // namespace caisson::tests
