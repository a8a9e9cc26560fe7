// The whole backend process on real QEMU and libvirt, with the guest image where it has been built.

#include "tests/backends/qemu/live_driver.hpp"

namespace caisson::tests {
namespace {

TEST_F(live_driver, describes_what_this_host_can_do) {
  v1::BackendCall call;
  auto& q = *call.mutable_describe();
  q.set_architecture("x86_64");
  q.set_accelerator("auto");
  q.set_vmm_path(qemu);
  q.set_kernel_path(guest + "/vmlinux");
  q.set_initrd_path(guest + "/initramfs.cpio");
  q.set_deadline_ms(120'000);
  std::optional<v1::BackendAnswer> a;
  {
    stopwatch time{"describe"};
    a = client->ask(call, 120s);
  }
  ASSERT_TRUE(a && a->has_capabilities()) << (a ? a->ShortDebugString() : "no answer");
  const auto c = a->capabilities();
  std::cout << c.ShortDebugString() << '\n';
  EXPECT_TRUE(c.accelerator() == "kvm" || c.accelerator() == "tcg");
  EXPECT_FALSE(c.accelerator_reason().empty());
  EXPECT_TRUE(c.dimm() && c.virtio_mem());
  {
    stopwatch time{"describe again"};
    a = client->ask(call, 120s);
  }
  EXPECT_EQ(a->capabilities().accelerator(), c.accelerator());

  q.set_vmm_path("/usr/bin/there-is-no-such-qemu");
  a = client->ask(call);
  EXPECT_EQ(error_code(a), "host_missing");
  EXPECT_NE(a->error().text().find("qemu-system-x86"), std::string::npos) << a->error().text();
  if (c.accelerator() == "tcg") {
    q.set_vmm_path(qemu);
    q.set_accelerator("kvm");
    a = client->ask(call);
    EXPECT_TRUE(error_code(a) == "host_missing" || error_code(a) == "host_denied") << a->ShortDebugString();
  }
}

TEST_F(live_driver, grows_and_shrinks_by_dimms_and_leaves_nothing) {
  auto s = spec("dimm-1", v1::MEMORY_METHOD_DIMM);
  s.set_free_root_ports(2);
  s.set_bridges(2);
  auto o = create(s);
  ASSERT_EQ(o.state(), v1::VM_STATE_RUNNING) << o.ShortDebugString();
  std::cout << o.ShortDebugString() << '\n';
  EXPECT_EQ(o.boot_bytes(), 256 * mib);
  EXPECT_EQ(o.plugged_bytes(), 0u);
  EXPECT_EQ(o.plugged_vcpus(), 1u);
  EXPECT_EQ(o.max_vcpus(), 3u);
  EXPECT_GT(o.vmm_pid(), 1);
  EXPECT_EQ(o.accelerator(), "tcg");

  auto again = create(s);
  EXPECT_EQ(again.vmm_pid(), o.vmm_pid());

  agent_client agent{connect(o.channels().agent())};
  ASSERT_TRUE(agent.wait(60s, [&] { return agent.hello.has_value(); }));
  // By QEMU's ids: 000e is its bridge to conventional PCI, 000c its root port (two free ones, one before each bridge).
  auto& tree = agent.start({"sh", "-c", "cat /sys/bus/pci/devices/*/device | sort | uniq -c"});
  ASSERT_TRUE(agent.finish(tree, 30s));
  EXPECT_NE(tree.output.find("2 0x000e"), std::string::npos) << tree.output;
  EXPECT_NE(tree.output.find("4 0x000c"), std::string::npos) << tree.output;

  {
    stopwatch time{"DIMM attach"};
    o = observed(client->ask(plug("dimm-1", "m0", 256 * mib)));
  }
  ASSERT_EQ(o.dimms_size(), 1);
  EXPECT_EQ(o.dimms(0).id(), "m0");
  EXPECT_EQ(o.plugged_bytes(), 256 * mib);
  EXPECT_EQ(observed(client->ask(plug("dimm-1", "m0", 256 * mib))).dimms_size(), 1);
  EXPECT_EQ(error_code(client->ask(plug("dimm-1", "m1", 100 * mib))), "out_of_range");
  EXPECT_EQ(error_code(client->ask(plug("dimm-1", "m,1", 128 * mib))), "invalid_argument");
  EXPECT_EQ(error_code(client->ask(plug("dimm-1", "m9", 4096 * mib))), "backend_refused");

  v1::AgentRequest online;
  online.mutable_await_memory()->set_wait_ms(20'000);
  online.mutable_await_memory()->set_mem_total_at_least_bytes(400 * mib);
  auto reply = agent.ask(online, 30s);
  ASSERT_TRUE(reply);
  std::cout << reply->ShortDebugString() << '\n';

  auto unplug = step("dimm-1");
  unplug.mutable_apply_memory_step()->set_unplug_dimm_id("m0");
  {
    stopwatch time{"DIMM detach asked"};
    ASSERT_TRUE(client->ask(unplug));
  }
  {
    stopwatch time{"DIMM gone"};
    ASSERT_TRUE(client->wait_event(v1::VmEvent::KIND_DEVICE_REMOVED, 30s));
  }
  EXPECT_EQ(client->events.back().device_id(), "m0");
  EXPECT_EQ(inspect("dimm-1").plugged_bytes(), 0u);
  EXPECT_EQ(observed(client->ask(unplug)).plugged_bytes(), 0u);

  v1::BackendCall vcpus;
  vcpus.mutable_set_vcpus()->set_sandbox_id("dimm-1");
  vcpus.mutable_set_vcpus()->set_count(3);
  {
    stopwatch time{"vCPUs 1 -> 3"};
    EXPECT_EQ(observed(client->ask(vcpus)).plugged_vcpus(), 3u);
  }
  vcpus.mutable_set_vcpus()->set_count(2);
  if (inspect("dimm-1").accelerator() == "tcg") {
    EXPECT_EQ(error_code(client->ask(vcpus)), "unsupported");
  }
  vcpus.mutable_set_vcpus()->set_count(4);
  EXPECT_EQ(error_code(client->ask(vcpus)), "out_of_range");

  v1::BackendCall pause, resume;
  pause.mutable_pause()->set_sandbox_id("dimm-1");
  resume.mutable_resume()->set_sandbox_id("dimm-1");
  EXPECT_EQ(observed(client->ask(pause)).state(), v1::VM_STATE_PAUSED);
  EXPECT_EQ(observed(client->ask(pause)).state(), v1::VM_STATE_PAUSED);
  EXPECT_EQ(observed(client->ask(resume)).state(), v1::VM_STATE_RUNNING);

  auto pid = o.vmm_pid();
  {
    stopwatch time{"destroy"};
    EXPECT_EQ(observed(client->ask(destroy_call("dimm-1"))).state(), v1::VM_STATE_ABSENT);
  }
  EXPECT_FALSE(alive(pid));
  EXPECT_EQ(traces("dimm-1"), std::vector<std::string>{});
  EXPECT_EQ(inspect("dimm-1").state(), v1::VM_STATE_ABSENT);
  EXPECT_EQ(observed(client->ask(destroy_call("dimm-1"))).state(), v1::VM_STATE_ABSENT);
  EXPECT_EQ(error_code(client->ask(plug("dimm-1", "m0", 128 * mib))), "vmm_died");
}

TEST_F(live_driver, virtio_mem_follows_both_ways) {
  auto o = create(spec("vm-1", v1::MEMORY_METHOD_VIRTIO_MEM));
  ASSERT_EQ(o.state(), v1::VM_STATE_RUNNING);
  agent_client agent{connect(o.channels().agent())};
  {
    stopwatch time{"guest agent answers"};
    ASSERT_TRUE(agent.wait(60s, [&] { return agent.hello.has_value(); }));
  }
  auto request = [&](std::uint64_t bytes) {
    auto call = step("vm-1");
    call.mutable_apply_memory_step()->set_virtio_mem_requested_bytes(bytes);
    client->events.clear();
    return client->ask(call);
  };
  auto reached = [&](std::uint64_t bytes) {
    return client->wait(60s, [&] {
      return !client->events.empty() && client->events.back().kind() == v1::VmEvent::KIND_MEMORY_SIZE &&
             client->events.back().size_bytes() == bytes;
    });
  };
  {
    stopwatch time{"virtio-mem to 512 MiB"};
    EXPECT_EQ(observed(request(512 * mib)).virtio_mem_requested_bytes(), 512 * mib);
    EXPECT_TRUE(reached(512 * mib));
  }
  EXPECT_EQ(inspect("vm-1").plugged_bytes(), 512 * mib);
  {
    stopwatch time{"virtio-mem to 100 MiB"};
    observed(request(100 * mib));
    EXPECT_TRUE(reached(100 * mib));
  }
  EXPECT_EQ(inspect("vm-1").plugged_bytes(), 100 * mib);
  EXPECT_EQ(error_code(request(100 * mib + 1)), "out_of_range");
  EXPECT_EQ(error_code(request(1ull << 60)), "out_of_range");
}

} // namespace
} // namespace caisson::tests
