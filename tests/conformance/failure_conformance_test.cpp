// What goes wrong at each verb: the VMM dies, is stopped, is destroyed meanwhile, loses its replies.

#include <poll.h>

#include <future>

#include "tests/conformance/conformance.hpp"

namespace caisson::tests {
namespace {

/// Long enough for a VMM that runs, and waited for in full where it does not.
std::uint32_t short_ms(rig& on) {
  return on.world() ? 300 : 1'500;
}

} // namespace

// One VM for all verbs: after each one that a silent VMM left open, it is as if nothing had been.
TEST_P(conformance, a_vmm_that_is_stopped_at_every_verb) {
  const std::string id = "held";
  auto b = on->backend(id, news);
  const auto vm = create(b, id);
  ASSERT_TRUE(vm) << vm.text();
  std::unique_ptr<guest_client> guest;
  ASSERT_TRUE(meet(guest, *vm.value));
  for (const auto& verb : verbs(b, id)) {
    SCOPED_TRACE(verb.name);
    if (verb.before) {
      const auto ready = verb.before();
      ASSERT_TRUE(ready) << ready.text();
    }
    on->hold(*vm.value);
    const auto answer = verb.send(short_ms(*on));
    EXPECT_TRUE(code(answer) == ec::outcome_unknown || code(answer) == ec::backend_refused)
        << "a VMM that is stopped has done nothing: " << answer.text();
    const auto blind = simple<v1::InspectVm>(b, id, short_ms(*on));
    if (blind) {
      EXPECT_FALSE(blind->stale_reason().empty()) << "old figures are told as new: " << blind.text();
    } else {
      EXPECT_EQ(code(blind), ec::outcome_unknown) << blind.text();
    }
    on->let_go(*vm.value);
    const auto seen = fresh(b, id);
    ASSERT_TRUE(seen) << seen.text();
    EXPECT_EQ(seen->stale_reason(), "");
    EXPECT_EQ(seen->vmm_pid(), vm->vmm_pid());
    // Again: whether it had taken effect late or not, it is done now.
    const auto again = verb.send(0);
    ASSERT_TRUE(again) << again.text();
    EXPECT_TRUE(verb.done(*again.value)) << again.text();
    if (verb.after) {
      const auto back = verb.after();
      ASSERT_TRUE(back) << back.text();
    }
  }
  const auto before_the_end = on->inspect(b, id);
  ASSERT_TRUE(before_the_end) << before_the_end.text();
  if (!on->world())
    on->hold(*vm.value); // a destroy needs no answer of the VMM
  const auto gone = on->destroy(b, id);
  ASSERT_TRUE(gone) << gone.text();
  EXPECT_EQ(gone->state(), v1::VM_STATE_ABSENT);
  if (vm->vmm_pid() > 0) {
    EXPECT_NE(reactor::start_ticks_of(static_cast<pid_t>(vm->vmm_pid())), vm->vmm_start_ticks());
  }
}

// The VMM fails before it has done anything, on every kind whose VMM is a program that the specification names.
TEST_P(conformance, a_vmm_that_dies_or_is_stopped_while_it_is_made) {
  const auto vmm = on->vmm_that_fails_at_start();
  if (vmm.empty() && !on->world())
    GTEST_SKIP() << GetParam().name << ": not tried, the specification does not name the program of its VMM";
  for (const std::string id : {dies_at_start, stops_at_start}) {
    const bool dies = id == dies_at_start;
    if (dies && on->world())
      continue; // it has no process that could
    SCOPED_TRACE(id);
    auto b = on->backend(id, news);
    auto m = create_message(id);
    if (on->world())
      on->hold({});
    else
      m.mutable_spec()->set_vmm_path(vmm);
    // One that dies is told as soon as it does; of one that is stopped nothing is heard.
    m.set_deadline_ms(dies ? 120'000 : short_ms(*on) * 2);
    const auto sent = std::chrono::steady_clock::now();
    const auto answer = on->ask<v1::VmObserved>(b, m);
    EXPECT_LT(std::chrono::steady_clock::now() - sent, std::chrono::milliseconds{m.deadline_ms()} + on->patience());
    if (code(answer) == ec::outcome_unknown && !dies) {
      const auto blind = simple<v1::InspectVm>(b, id, short_ms(*on));
      EXPECT_TRUE(blind || code(blind) == ec::outcome_unknown) << blind.text();
    } else {
      EXPECT_EQ(code(answer), ec::backend_refused) << answer.text();
      const auto seen = on->inspect(b, id);
      ASSERT_TRUE(seen) << seen.text();
      EXPECT_EQ(seen->state(), v1::VM_STATE_ABSENT) << "a creation that failed has left something: " << seen.text();
    }
    on->let_go({}); // what stands for one; a process stays stopped
    const auto gone = on->destroy(b, id);
    ASSERT_TRUE(gone) << gone.text();
    EXPECT_EQ(gone->state(), v1::VM_STATE_ABSENT);
    const auto ids = on->list(b);
    ASSERT_TRUE(ids) << ids.text();
    EXPECT_EQ(std::count(ids->sandbox_ids().begin(), ids->sandbox_ids().end(), id), 0) << ids.text();
    const auto another = create(b, id);
    ASSERT_TRUE(another) << "its name is free again: " << another.text();
    EXPECT_EQ(another->state(), v1::VM_STATE_RUNNING);
  }
}

TEST_P(conformance, a_vmm_that_dies_at_every_verb) {
  auto names = verbs(on->backend("none", news), "none");
  for (std::size_t i = 0; i < names.size(); ++i) {
    SCOPED_TRACE(names[i].name);
    const auto id = "dies-" + std::to_string(i);
    auto heard = std::make_shared<news_box>();
    auto b = on->backend(id, heard);
    const auto verb = verbs(b, id)[i];
    const auto vm = create(b, id);
    ASSERT_TRUE(vm) << vm.text();
    if (verb.before) {
      const auto ready = verb.before();
      ASSERT_TRUE(ready) << ready.text();
    }
    on->kill_vmm(id, *vm.value);
    const auto answer = verb.send(0);
    EXPECT_TRUE(code(answer) == ec::vmm_died || code(answer) == ec::outcome_unknown) << answer.text();
    EXPECT_TRUE(heard->await(on->patience(), v1::VmEvent::KIND_VMM_DIED));
    EXPECT_EQ(code(verb.send(0)), ec::vmm_died);
    const auto seen = on->inspect(b, id);
    ASSERT_TRUE(seen) << seen.text();
    EXPECT_TRUE(seen->state() == v1::VM_STATE_STOPPED || seen->state() == v1::VM_STATE_ABSENT) << seen.text();
    const auto gone = on->destroy(b, id);
    ASSERT_TRUE(gone) << gone.text();
    EXPECT_EQ(gone->state(), v1::VM_STATE_ABSENT);
  }
}

TEST_P(conformance, a_destroy_during_every_verb) {
  auto names = verbs(on->backend("none", news), "none");
  for (std::size_t i = 0; i < names.size(); ++i) {
    SCOPED_TRACE(names[i].name);
    const auto id = "hasty-" + std::to_string(i);
    auto b = on->backend(id, news);
    const auto verb = verbs(b, id)[i];
    const auto vm = create(b, id);
    ASSERT_TRUE(vm) << vm.text();
    if (verb.before) {
      const auto ready = verb.before();
      ASSERT_TRUE(ready) << ready.text();
    }
    auto answer = std::async(std::launch::async, [&] { return verb.send(0); });
    const auto gone = on->destroy(b, id);
    ASSERT_TRUE(gone) << gone.text();
    EXPECT_EQ(gone->state(), v1::VM_STATE_ABSENT);
    const auto answered = answer.get();
    EXPECT_TRUE(answered || code(answered) == ec::vmm_died) << answered.text();
    const auto after = on->inspect(b, id);
    ASSERT_TRUE(after) << after.text();
    EXPECT_EQ(after->state(), v1::VM_STATE_ABSENT) << "a VM came to life after its destruction";
  }
}

// The truth after an answer that never came is inspected; what took effect is seen, and doing it again is no harm.
TEST_P(conformance, a_late_verb_does_not_come_back_from_the_dead) {
  if (!on->world())
    GTEST_SKIP() << GetParam().name << ": not tried, no real VMM is late on request";
  const std::string id = "late";
  auto b = on->backend(id, news);
  ASSERT_TRUE(create(b, id));
  auto plan = on->world()->plan();
  plan.late = 1;
  plan.slow_ms = {50, 50};
  on->world()->set_plan(plan);
  EXPECT_EQ(code(vcpus(b, id, 3, 200)), ec::outcome_unknown);
  plan.late = 0;
  on->world()->set_plan(plan);
  EXPECT_GE(on->inspect(b, id)->plugged_vcpus(), 1u);
  plan.late = 1;
  on->world()->set_plan(plan);
  EXPECT_EQ(code(vcpus(b, id, 2, 200)), ec::outcome_unknown);
  plan.late = 0;
  on->world()->set_plan(plan);
  ASSERT_TRUE(on->destroy(b, id));
  EXPECT_EQ(on->world()->verbs_under_way(), 0u);
}

/// Runs over VMMs that lose or delay their replies.
struct lossy : conformance {};

TEST_P(lossy, whatever_is_answered_the_truth_is_read_back) {
  const std::string id = "lossy";
  auto b = on->backend(id, news);
  auto* world = on->world();
  const auto faulty = world ? world->plan() : backends::simulated::fault_plan{};
  if (world)
    world->set_plan(faulty.calm());
  const auto vm = create(b, id);
  ASSERT_TRUE(vm) << vm.text();
  std::unique_ptr<guest_client> guest;
  ASSERT_TRUE(meet(guest, *vm.value));
  for (const auto& verb : verbs(b, id)) {
    SCOPED_TRACE(verb.name);
    if (verb.before) {
      const auto ready = verb.before();
      if (!ready) {
        EXPECT_EQ(code(ready), ec::outcome_unknown) << ready.text();
      }
    }
    if (world)
      world->set_plan(faulty);
    const auto answer = verb.send(short_ms(*on));
    if (world)
      world->set_plan(faulty.calm());
    if (answer) {
      EXPECT_TRUE(verb.done(*answer.value)) << answer.text();
    } else {
      EXPECT_TRUE(code(answer) == ec::outcome_unknown || code(answer) == ec::backend_refused) << answer.text();
    }
    // An engine reads back, and does again what it does not find.
    auto seen = fresh(b, id);
    ASSERT_TRUE(seen) << seen.text();
    EXPECT_TRUE(seen->state() == v1::VM_STATE_RUNNING || seen->state() == v1::VM_STATE_PAUSED) << seen.text();
    for (int attempt = 0; attempt < 3 && !verb.done(*seen.value); ++attempt) {
      (void)verb.send(0);
      seen = fresh(b, id);
      ASSERT_TRUE(seen) << seen.text();
    }
    EXPECT_TRUE(verb.done(*seen.value)) << seen.text();
    if (verb.after)
      (void)verb.after();
  }
}

INSTANTIATE_TEST_SUITE_P(backends, lossy, ::testing::ValuesIn(lossy_kinds()),
                         [](const auto& of) { return of.param.name; });

} // namespace caisson::tests
