// The end of a VMM, expected or not, and what a later engine finds (driver_test.cpp has the verbs).

#include "tests/backends/cloud_hypervisor/driver_rig.hpp"

namespace caisson::cloud_hypervisor {
namespace {

constexpr auto* orderly_end = "guest shut down, or somebody asked the VMM to end (SIGTERM)";

// ---- the end of a VMM ----

TEST_F(driver_rig, a_vmm_that_is_killed_is_told_and_takes_nothing_with_it) {
  auto made = create(spec());
  ::kill(static_cast<pid_t>(made.vmm_pid()), SIGKILL);
  auto told = news->await(v1::VmEvent::KIND_VMM_DIED);
  EXPECT_NE(told.text().find("signal 9"), std::string::npos) << told.text();
  auto seen = inspect();
  EXPECT_EQ(seen.state(), v1::VM_STATE_STOPPED);
  EXPECT_EQ(seen.stop_reason(), told.text());
  EXPECT_EQ(ask(vcpus_call(2)).error().code(), "vmm_died");
  EXPECT_EQ(destroy().state(), v1::VM_STATE_ABSENT);
  EXPECT_FALSE(fs::exists(top + "/s/a"));
}

TEST_F(driver_rig, one_that_dies_of_its_own_seccomp_filter_is_told_apart) {
  auto made = create(spec());
  ::kill(static_cast<pid_t>(made.vmm_pid()), SIGSYS);
  EXPECT_NE(news->await(v1::VmEvent::KIND_VMM_DIED).text().find("seccomp"), std::string::npos);
}

TEST_F(driver_rig, a_guest_that_powers_off_is_no_death) {
  faults("guest_poweroff_ms=50");
  create(spec());
  EXPECT_EQ(news->await(v1::VmEvent::KIND_GUEST_STOPPED).text(), orderly_end);
  EXPECT_EQ(inspect().state(), v1::VM_STATE_STOPPED);
  EXPECT_EQ(news->count(v1::VmEvent::KIND_VMM_DIED), 0u);
}

// Its events and its exit status are those of a guest's power-off; what cannot be told apart is not told as one of the
// two.
TEST_F(driver_rig, a_vmm_that_somebody_asks_to_end_is_no_death_and_is_not_laid_to_the_guest_alone) {
  const auto made = create(spec());
  ::kill(static_cast<pid_t>(made.vmm_pid()), SIGTERM);
  EXPECT_EQ(news->await(v1::VmEvent::KIND_GUEST_STOPPED).text(), orderly_end);
  EXPECT_EQ(inspect().stop_reason(), orderly_end);
  EXPECT_EQ(news->count(v1::VmEvent::KIND_VMM_DIED), 0u);
}

TEST_F(driver_rig, a_guest_that_panics_has_ended) {
  faults("guest_panic_ms=50");
  auto made = create(spec());
  EXPECT_EQ(news->await(v1::VmEvent::KIND_GUEST_PANICKED).text(), "guest panicked");
  EXPECT_EQ(inspect().state(), v1::VM_STATE_STOPPED);
  EXPECT_TRUE(process_is_gone(made));
}

TEST_F(driver_rig, a_guest_that_resets_itself_has_ended) {
  faults("guest_reset_ms=50");
  create(spec());
  EXPECT_NE(news->await(v1::VmEvent::KIND_GUEST_STOPPED).text().find("reset"), std::string::npos);
  EXPECT_EQ(inspect().state(), v1::VM_STATE_STOPPED);
}

TEST_F(driver_rig, a_vmm_that_dies_inside_a_verb_answers_it) {
  faults("crash=vm.resize");
  create(spec());
  auto answer = ask(virtio_call(128 * mib));
  EXPECT_EQ(answer.error().code(), "vmm_died") << answer.error().text();
  EXPECT_NE(answer.error().text().find("exited with status 1"), std::string::npos) << answer.error().text();
  news->await(v1::VmEvent::KIND_VMM_DIED);
}

// As above, at the other verbs: the request is on its way when the VMM ends, or falls silent over it.
TEST_F(driver_rig, a_vmm_that_dies_or_hangs_inside_any_verb_answers_it) {
  const auto resume = [this] {
    good(ask(pause_call(true)));
    return pause_call(false, 1'000);
  };
  const auto detach = [this] {
    good(ask(attach_call("data")));
    auto c = detach_call("data");
    c.mutable_detach()->set_deadline_ms(1'000);
    return c;
  };
  const auto attach = [this] {
    auto c = attach_call("data");
    c.mutable_attach()->set_deadline_ms(1'000);
    return c;
  };
  const auto vcpus = [] {
    auto c = vcpus_call(2);
    c.mutable_set_vcpus()->set_deadline_ms(1'000);
    return c;
  };
  const std::vector<std::pair<std::string, std::function<v1::BackendCall()>>> verbs{
      {"vm.resize", vcpus},        {"vm.add-disk", attach}, {"vm.remove-device", detach},
      {"vm.pause", [] { return pause_call(true, 1'000); }}, {"vm.resume", resume}};
  for (const auto& [endpoint, call] : verbs)
    for (const char* fault : {"crash=", "hang="}) {
      SCOPED_TRACE(fault + endpoint);
      faults(fault + endpoint);
      const auto made = create(spec());
      const auto answer = ask(call());
      // A short deadline may be over, on a busy machine, before the process's end is seen.
      EXPECT_TRUE(answer.error().code() == "outcome_unknown" ||
                  (answer.error().code() == "vmm_died" && std::string_view{fault} == "crash="))
          << answer.error().code() << ": " << answer.error().text();
      EXPECT_EQ(destroy().state(), v1::VM_STATE_ABSENT);
      EXPECT_TRUE(process_is_gone(made));
    }
}

TEST_F(driver_rig, a_vmm_starts_with_one_arena_and_without_backtraces) {
  ::setenv("RUST_BACKTRACE", "1", 1);
  const auto made = create(spec());
  ::unsetenv("RUST_BACKTRACE");
  std::ifstream in{"/proc/" + std::to_string(made.vmm_pid()) + "/environ"};
  const std::string environment{std::istreambuf_iterator<char>{in}, {}};
  EXPECT_NE(environment.find("GLIBC_TUNABLES=glibc.malloc.arena_max=1"), std::string::npos);
  EXPECT_EQ(environment.find("RUST_BACKTRACE"), std::string::npos);
}

TEST_F(driver_rig, a_vmm_makes_its_sockets_and_files_for_its_user_alone) {
  const auto ours = ::umask(0); // of an embedding program that does not care
  const auto program = top + "/vmm";
  std::ofstream{program} << "#!/bin/sh\numask >" << top << "/umask\nexec " << double_program() << " \"$@\"\n";
  fs::permissions(program, fs::perms::owner_all);
  auto s = spec();
  s.set_vmm_path(program);
  create(s);
  ::umask(ours);
  std::string mask;
  std::ifstream{top + "/umask"} >> mask;
  EXPECT_EQ(mask, "0077");
  const auto names = names_in(top + "/s/a");
  EXPECT_FALSE(names.empty());
  for (const auto& name : names)
    EXPECT_EQ(fs::status(top + "/s/a/" + name).permissions() & (fs::perms::group_all | fs::perms::others_all),
              fs::perms::none)
        << name;
}

TEST_F(driver_rig, one_that_dies_while_it_is_asked_to_make_the_vm_leaves_nothing) {
  for (const char* fault : {"crash=vmm.ping", "crash=vm.create", "crash=vm.boot", "garbage=vmm.ping"}) {
    faults(fault);
    auto answer = ask(create_call(spec(), 3'000));
    EXPECT_TRUE(answer.has_error()) << fault;
    EXPECT_EQ(inspect().state(), v1::VM_STATE_ABSENT) << fault << ": " << answer.error().text();
    EXPECT_EQ(names_in(top + "/ch"), std::vector<std::string>{}) << fault;
    EXPECT_EQ(names_in(top + "/s/a"), std::vector<std::string>{}) << fault;
  }
}

TEST_F(driver_rig, one_that_hangs_while_it_is_asked_to_make_the_vm_is_ended_in_the_end) {
  for (const char* fault : {"hang=vmm.ping", "hang=vm.create", "hang=vm.boot"}) {
    SCOPED_TRACE(fault);
    faults(fault);
    const auto answer = ask(create_call(spec(), 1'500));
    // Over before the deadline and taken back, or at the deadline and unknown until it is destroyed.
    EXPECT_TRUE(answer.error().code() == "backend_refused" || answer.error().code() == "outcome_unknown")
        << answer.error().code() << ": " << answer.error().text();
    EXPECT_EQ(good(ask(destroy_call("a", 1'000))).state(), v1::VM_STATE_ABSENT);
    EXPECT_TRUE(list().empty());
    EXPECT_EQ(names_in(top + "/ch"), std::vector<std::string>{});
    EXPECT_EQ(names_in(top + "/s/a"), std::vector<std::string>{});
    fs::create_directories(top + "/s/a");
  }
}

TEST_F(driver_rig, one_that_is_held_by_a_signal_answers_nothing_and_is_ended_all_the_same) {
  auto made = create(spec());
  ::kill(static_cast<pid_t>(made.vmm_pid()), SIGSTOP);
  await_stop(made);
  auto seen = inspect();
  EXPECT_NE(seen.stale_reason().find("SIGCONT"), std::string::npos) << seen.stale_reason();
  EXPECT_EQ(seen.boot_bytes(), 512 * mib);
  EXPECT_EQ(ask(virtio_call(128 * mib)).error().code(), "backend_refused");
  EXPECT_EQ(destroy().state(), v1::VM_STATE_ABSENT);
  EXPECT_TRUE(process_is_gone(made));
}

TEST_F(driver_rig, one_that_hangs_is_late_not_dead_and_destroy_kills_it) {
  faults("hang=vm.resize");
  auto made = create(spec());
  v1::BackendCall step = virtio_call(128 * mib);
  step.mutable_apply_memory_step()->set_deadline_ms(700);
  EXPECT_EQ(ask(step).error().code(), "outcome_unknown");
  auto seen = inspect("a", 700);
  EXPECT_FALSE(seen.stale_reason().empty());
  EXPECT_EQ(seen.state(), v1::VM_STATE_RUNNING);
  EXPECT_EQ(news->count(v1::VmEvent::KIND_VMM_DIED), 0u);
  EXPECT_EQ(good(ask(destroy_call("a", 1'000))).state(), v1::VM_STATE_ABSENT);
  EXPECT_TRUE(process_is_gone(made));
}

TEST_F(driver_rig, one_that_ends_before_its_last_answer_is_out_has_ended_well) {
  faults("exit_before_reply=vmm.shutdown");
  create(spec());
  EXPECT_EQ(destroy().state(), v1::VM_STATE_ABSENT);
}

TEST_F(driver_rig, one_that_hangs_at_its_end_is_killed) {
  faults("hang=vmm.shutdown");
  auto made = create(spec());
  EXPECT_EQ(good(ask(destroy_call("a", 2'000))).state(), v1::VM_STATE_ABSENT);
  EXPECT_TRUE(process_is_gone(made));
}

// A look is no reason to lose a VM: what is odd once is asked again or told as stale, and the truth is read afterwards.
TEST_F(driver_rig, odd_replies_to_a_look_are_survived) {
  for (const char* fault : {"slow=vm.info", "partial=vm.info:2", "garbage=vm.info:2"}) {
    SCOPED_TRACE(fault);
    faults(fault);
    const auto made = create(spec());
    EXPECT_EQ(made.state(), v1::VM_STATE_RUNNING);
    const auto odd = inspect();
    EXPECT_EQ(odd.state(), v1::VM_STATE_RUNNING) << odd.ShortDebugString();
    const auto seen = until([](const auto& s) { return s.stale_reason().empty(); });
    EXPECT_EQ(seen.state(), v1::VM_STATE_RUNNING);
    EXPECT_EQ(seen.vmm_pid(), made.vmm_pid());
    EXPECT_EQ(seen.boot_bytes(), 512 * mib);
    EXPECT_EQ(news->count(v1::VmEvent::KIND_VMM_DIED), 0u);
    EXPECT_EQ(destroy().state(), v1::VM_STATE_ABSENT);
    fs::create_directories(top + "/s/a");
  }
}

TEST_F(driver_rig, odd_replies_to_a_verb_leave_it_unknown_and_the_truth_is_read_afterwards) {
  for (const auto& [fault, said] : {std::pair{"partial=vm.resize:1", "inspect tells"},
                                    std::pair{"garbage=vm.resize:1", "it is no HTTP reply"}}) {
    SCOPED_TRACE(fault);
    faults(fault);
    create(spec());
    const auto answer = ask(virtio_call(128 * mib));
    EXPECT_EQ(answer.error().code(), "outcome_unknown") << answer.error().text();
    EXPECT_NE(answer.error().text().find(said), std::string::npos) << answer.error().text();
    // It was done, though, and only its reply was odd.
    EXPECT_EQ(until([](const auto& s) { return s.plugged_bytes() == 128 * mib; }).virtio_mem_requested_bytes(),
              128 * mib);
    EXPECT_EQ(good(ask(virtio_call(128 * mib))).virtio_mem_requested_bytes(), 128 * mib);
    EXPECT_EQ(destroy().state(), v1::VM_STATE_ABSENT);
    fs::create_directories(top + "/s/a");
  }
}

TEST_F(driver_rig, a_vmm_that_has_no_connection_free_makes_no_vm_and_leaves_nothing) {
  faults("full=1");
  const auto answer = ask(create_call(spec(), 3'000));
  EXPECT_EQ(answer.error().code(), "backend_refused") << answer.error().text();
  EXPECT_EQ(inspect().state(), v1::VM_STATE_ABSENT);
  EXPECT_TRUE(list().empty());
  EXPECT_EQ(names_in(top + "/s/a"), std::vector<std::string>{});
}

TEST_F(driver_rig, events_that_are_lost_do_not_matter_in_the_end) {
  faults("events_lost=1");
  create(spec());
  good(ask(attach_call("data")));
  good(ask(detach_call("data")));
  until([](const auto& s) { return s.devices_size() == 0; });
  EXPECT_EQ(news->await(v1::VmEvent::KIND_DEVICE_REMOVED).device_id(), "data");
}

// ---- a later engine ----

TEST_F(driver_rig, a_later_engine_finds_the_vm_and_what_happened_meanwhile) {
  auto made = create(spec());
  good(ask(virtio_call(512 * mib)));
  good(ask(vcpus_call(2)));
  drop_driver();
  new_driver();
  EXPECT_EQ(list(), std::vector<std::string>{"a"});
  auto seen = until([](const auto& s) { return s.plugged_bytes() == 512 * mib; });
  EXPECT_EQ(seen.vmm_pid(), made.vmm_pid());
  EXPECT_EQ(seen.plugged_vcpus(), 2u);
  EXPECT_EQ(seen.channels().agent(), made.channels().agent());
  EXPECT_EQ(create(spec()).vmm_pid(), made.vmm_pid()) << "the same creation again is this VM";

  drop_driver();
  ::kill(static_cast<pid_t>(made.vmm_pid()), SIGKILL);
  await_end(made);
  new_driver();
  seen = inspect();
  EXPECT_EQ(seen.state(), v1::VM_STATE_STOPPED);
  EXPECT_EQ(seen.stop_reason().rfind("vmm died", 0), 0u) << seen.stop_reason();
}

TEST_F(driver_rig, a_later_engine_knows_a_guest_that_shut_down_by_itself) {
  faults("guest_poweroff_ms=300");
  auto made = create(spec());
  drop_driver();
  await_end(made);
  new_driver();
  EXPECT_EQ(inspect().stop_reason(), orderly_end);
}

TEST_F(driver_rig, a_vmm_that_was_started_but_not_yet_written_down_is_found) {
  auto made = create(spec());
  drop_driver();
  records store{top + "/ch"};
  auto all = store.all();
  ASSERT_EQ(all.size(), 1u);
  all[0].pid = 0;
  all[0].start_ticks = 0;
  all[0].booted = false;
  ASSERT_EQ(store.save(all[0]), "");
  new_driver();
  EXPECT_EQ(list(), std::vector<std::string>{"a"});
  EXPECT_EQ(destroy().state(), v1::VM_STATE_ABSENT);
  EXPECT_TRUE(process_is_gone(made));
}

TEST_F(driver_rig, what_an_engines_end_interrupts_is_answered) {
  faults("boot_delay_ms=30000");
  new_driver();
  auto booting = begin(create_call(spec()));
  inspect("a", 100);
  at->end();
  EXPECT_EQ(booting.get().error().code(), "backend_lost");
  at.reset();
}

} // namespace
} // namespace caisson::cloud_hypervisor
