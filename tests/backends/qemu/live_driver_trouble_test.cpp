// The same where something dies, stalls or is not as it should be.

#include "tests/backends/qemu/live_driver.hpp"

namespace caisson::tests {
namespace {

TEST_F(live_driver, survives_being_killed) {
  auto o = create(spec("kill-1", v1::MEMORY_METHOD_DIMM));
  client->kill9();
  {
    stopwatch time{"reopen to first inspect"};
    open();
    auto found = inspect("kill-1");
    EXPECT_EQ(found.state(), v1::VM_STATE_RUNNING);
    EXPECT_EQ(found.vmm_pid(), o.vmm_pid());
    EXPECT_EQ(found.vmm_start_ticks(), o.vmm_start_ticks());
  }
  v1::BackendCall list;
  list.mutable_list();
  auto a = client->ask(list);
  ASSERT_TRUE(a && a->has_list());
  EXPECT_EQ(a->list().sandbox_ids_size(), 1);
  EXPECT_EQ(observed(client->ask(plug("kill-1", "m0", 128 * mib))).plugged_bytes(), 128 * mib);
  {
    stopwatch time{"destroy after reopening"};
    observed(client->ask(destroy_call("kill-1")));
  }
  EXPECT_FALSE(alive(o.vmm_pid()));
  EXPECT_EQ(traces("kill-1"), std::vector<std::string>{});
}

TEST_F(live_driver, a_silent_vmm_is_seen_and_destroyed) {
  auto o = create(spec("stop-1", v1::MEMORY_METHOD_DIMM));
  auto pid = static_cast<pid_t>(o.vmm_pid());
  ASSERT_GT(pid, 1);
  ::kill(pid, SIGSTOP);
  auto seen = inspect("stop-1");
  EXPECT_EQ(seen.vmm_pid(), pid);
  EXPECT_EQ(seen.boot_bytes(), 256 * mib);
  EXPECT_NE(seen.stale_reason(), "");
  EXPECT_EQ(error_code(client->ask(plug("stop-1", "m0", 128 * mib))), "backend_refused");
  {
    stopwatch time{"destroy of a stopped VMM"};
    EXPECT_EQ(observed(client->ask(destroy_call("stop-1"), 20s)).state(), v1::VM_STATE_ABSENT);
  }
  EXPECT_FALSE(alive(pid));
  EXPECT_EQ(traces("stop-1"), std::vector<std::string>{});
}

TEST_F(live_driver, tells_when_the_vmm_is_killed) {
  auto o = create(spec("died-1", v1::MEMORY_METHOD_VIRTIO_MEM));
  ASSERT_GT(o.vmm_pid(), 1);
  ::kill(static_cast<pid_t>(o.vmm_pid()), SIGKILL);
  ASSERT_TRUE(client->wait_event(v1::VmEvent::KIND_VMM_DIED, 20s));
  EXPECT_NE(client->events.back().text().find("signal 9"), std::string::npos) << client->events.back().text();
  auto seen = inspect("died-1");
  EXPECT_EQ(seen.state(), v1::VM_STATE_STOPPED);
  EXPECT_NE(seen.stop_reason().find("vmm died"), std::string::npos);
  EXPECT_EQ(error_code(client->ask(plug("died-1", "m0", 128 * mib))), "vmm_died");
  observed(client->ask(destroy_call("died-1")));
  EXPECT_EQ(traces("died-1"), std::vector<std::string>{});
}

TEST_F(live_driver, carries_commas_and_quotes_in_paths) {
  auto s = spec("odd-1", v1::MEMORY_METHOD_DIMM);
  auto odd = directory + "/run/a,b 'c\" <&>";
  fs::create_directories(odd);
  fs::copy_file(guest + "/vmlinux", odd + "/vm,linux=\"1\"");
  s.set_kernel_path(odd + "/vm,linux=\"1\"");
  s.set_run_directory(odd + "/odd-1");
  s.set_kernel_command_line(kernel_parameters() + " caisson.odd=\"a,b'<&>\"");
  auto o = create(s);
  ASSERT_EQ(o.state(), v1::VM_STATE_RUNNING);
  agent_client agent{connect(o.channels().agent())};
  ASSERT_TRUE(agent.wait(60s, [&] { return agent.hello.has_value(); }));
  auto& line = agent.start({"cat", "/proc/cmdline"});
  ASSERT_TRUE(agent.finish(line, 30s));
  EXPECT_NE(line.output.find("caisson.odd=\"a,b'<&>\""), std::string::npos) << line.output;
}

TEST_F(live_driver, works_on_a_running_libvirt) {
  auto* uri = std::getenv("CAISSON_TEST_LIBVIRT_URI");
  if (!uri)
    GTEST_SKIP() << "CAISSON_TEST_LIBVIRT_URI names no running libvirt (qemu+unix:///system?socket=PATH)";
  auto s = spec("daemon-1", v1::MEMORY_METHOD_DIMM);
  s.set_libvirt_uri(uri);
  auto o = create(s);
  ASSERT_EQ(o.state(), v1::VM_STATE_RUNNING);
  agent_client agent{connect(o.channels().agent())};
  ASSERT_TRUE(agent.wait(60s, [&] { return agent.hello.has_value(); }));
  EXPECT_EQ(observed(client->ask(plug("daemon-1", "m0", 128 * mib))).plugged_bytes(), 128 * mib);
  client->kill9();
  open();
  EXPECT_EQ(inspect("daemon-1").vmm_pid(), o.vmm_pid());
  EXPECT_EQ(inspect("daemon-1").plugged_bytes(), 128 * mib);
  {
    stopwatch time{"destroy"};
    EXPECT_EQ(observed(client->ask(destroy_call("daemon-1"))).state(), v1::VM_STATE_ABSENT);
  }
  EXPECT_EQ(traces("daemon-1"), std::vector<std::string>{});
}

TEST_F(live_driver, a_create_that_fails_leaves_nothing) {
  auto s = spec("bad-1", v1::MEMORY_METHOD_DIMM);
  auto run = s.run_directory();
  fs::create_directories(run);
  s.set_machine_type("no-such-machine");
  v1::BackendCall call;
  *call.mutable_create()->mutable_spec() = s;
  auto a = client->ask(call);
  ASSERT_TRUE(a && a->has_error());
  EXPECT_NE(a->error().text().find("no-such-machine"), std::string::npos) << a->error().text();
  EXPECT_EQ(traces("bad-1"), std::vector<std::string>{run});
  EXPECT_TRUE(fs::is_empty(run));
  s.set_kernel_path("/no/such/kernel");
  s.set_machine_type("");
  *call.mutable_create()->mutable_spec() = s;
  EXPECT_EQ(error_code(client->ask(call)), "host_missing");
  EXPECT_EQ(inspect("bad-1").state(), v1::VM_STATE_ABSENT);
}

TEST_F(live_driver, a_vmm_stopped_in_the_middle_of_its_creation_ends_in_bounded_time) {
  auto s = spec("stall-1", v1::MEMORY_METHOD_DIMM);
  fs::create_directories(s.run_directory());
  made.push_back("stall-1");
  v1::BackendCall call;
  *call.mutable_create()->mutable_spec() = s;
  call.mutable_create()->set_deadline_ms(3'000);
  auto creating = client->send(call);
  auto stopped = [&] {
    for (const auto& entry : fs::directory_iterator{"/proc"}) {
      std::ifstream in{entry.path() / "cmdline"};
      std::string line{std::istreambuf_iterator<char>{in}, {}};
      if (line.find("guest=caisson-stall-1,") != line.npos)
        return ::kill(std::stoi(entry.path().filename()), SIGSTOP) == 0;
    }
    return false;
  };
  auto until = clock::now() + 10s;
  while (!stopped() && clock::now() < until)
    ::poll(nullptr, 0, 2);
  // It may have been quicker than we are; then there is nothing to see here but the destroy.
  auto created = client->wait_answer(creating, 10s);
  ASSERT_TRUE(created);
  std::cout << (created->has_error() ? created->error().text() : "created before it was stopped") << '\n';
  {
    stopwatch time{"destroy of a VMM stopped while it was made"};
    EXPECT_EQ(observed(client->ask(destroy_call("stall-1"), 20s)).state(), v1::VM_STATE_ABSENT);
  }
  EXPECT_FALSE(stopped());
  for (const auto& left : traces("stall-1"))
    EXPECT_TRUE(left == s.run_directory() && fs::is_empty(left)) << left;
}

TEST_F(live_driver, destroy_answers_what_is_pending) {
  auto s = spec("race-1", v1::MEMORY_METHOD_DIMM);
  fs::create_directories(s.run_directory());
  made.push_back("race-1");
  v1::BackendCall call;
  *call.mutable_create()->mutable_spec() = s;
  auto creating = client->send(call);
  auto destroying = client->send(destroy_call("race-1"));
  auto created = client->wait_answer(creating, 30s);
  auto destroyed = client->wait_answer(destroying, 60s);
  EXPECT_EQ(error_code(created), "vmm_died");
  EXPECT_EQ(observed(destroyed).state(), v1::VM_STATE_ABSENT);
  EXPECT_EQ(inspect("race-1").state(), v1::VM_STATE_ABSENT);
  // Where the create had not even begun, nobody but the owner knows its run directory.
  for (const auto& left : traces("race-1"))
    EXPECT_TRUE(left == s.run_directory() && fs::is_empty(left)) << left;
}

} // namespace
} // namespace caisson::tests
