// The backend's verbs against a VMM that is there, late, silent, or dies: what the contract promises
// (backends/backend.hpp) holds whatever the VMM does.

#include "tests/backends/cloud_hypervisor/driver_rig.hpp"

namespace caisson::cloud_hypervisor {
namespace {

using namespace std::chrono_literals;

TEST_F(driver_rig, makes_a_vm_that_runs_and_leaves_nothing_of_it) {
  auto seen = create(spec());
  EXPECT_EQ(seen.state(), v1::VM_STATE_RUNNING);
  EXPECT_EQ(seen.boot_bytes(), 512 * mib);
  EXPECT_EQ(seen.plugged_bytes(), 0u);
  EXPECT_EQ(seen.plugged_vcpus(), 1u);
  EXPECT_EQ(seen.max_vcpus(), 4u);
  EXPECT_GT(seen.vmm_pid(), 0);
  EXPECT_EQ(seen.vmm_version().rfind("Cloud Hypervisor v", 0), 0u) << seen.vmm_version();
  EXPECT_EQ(seen.channels().agent(), "hybrid-vsock:" + top + "/s/a/vsock.sock:1024");
  EXPECT_EQ(seen.channels().console(), "unix:" + top + "/s/a/console.sock");
  EXPECT_EQ(list(), std::vector<std::string>{"a"});

  auto gone = destroy();
  EXPECT_EQ(gone.state(), v1::VM_STATE_ABSENT);
  EXPECT_TRUE(process_is_gone(seen));
  EXPECT_FALSE(fs::exists(top + "/s/a"));
  EXPECT_TRUE(list().empty());
  EXPECT_EQ(names_in(top + "/ch"), std::vector<std::string>{});
  EXPECT_EQ(destroy().state(), v1::VM_STATE_ABSENT) << "twice is fine";
  EXPECT_EQ(news->count(v1::VmEvent::KIND_VMM_DIED), 0u) << "a destroy is no news";
}

TEST_F(driver_rig, a_vm_that_nobody_made_is_absent_and_takes_no_verb) {
  EXPECT_EQ(inspect("never").state(), v1::VM_STATE_ABSENT);
  EXPECT_EQ(ask(vcpus_call(2)).error().code(), "vmm_died");
  EXPECT_EQ(ask(pause_call(true)).error().code(), "vmm_died");
}

TEST_F(driver_rig, the_same_creation_twice_is_one_vm_and_another_one_is_refused) {
  auto first = create(spec());
  auto second = create(spec());
  EXPECT_EQ(first.vmm_pid(), second.vmm_pid());
  auto other = spec();
  other.set_boot_vcpus(2);
  EXPECT_EQ(ask(create_call(other)).error().code(), "already_exists");
  EXPECT_EQ(inspect().state(), v1::VM_STATE_RUNNING);
}

TEST_F(driver_rig, a_creation_that_cannot_work_says_why_and_leaves_nothing) {
  auto no_kernel = spec();
  no_kernel.set_kernel_path(top + "/missing");
  auto answer = ask(create_call(no_kernel));
  EXPECT_EQ(answer.error().code(), "host_missing");
  EXPECT_NE(answer.error().text().find("/missing"), std::string::npos) << answer.error().text();

  auto no_program = spec();
  no_program.set_vmm_path(top + "/no-such-vmm");
  EXPECT_NE(ask(create_call(no_program)).error().text().find("`path`"), std::string::npos);

  auto silent_program = spec();
  silent_program.set_vmm_path("/bin/false");
  answer = ask(create_call(silent_program));
  EXPECT_EQ(answer.error().code(), "backend_refused");
  EXPECT_NE(answer.error().text().find("exited with status 1"), std::string::npos) << answer.error().text();

  auto no_listener = spec();
  auto* share = no_listener.add_shares();
  share->set_id("data");
  share->set_socket_path(top + "/virtiofs.sock");
  answer = ask(create_call(no_listener));
  EXPECT_EQ(answer.error().code(), "host_missing");
  EXPECT_NE(answer.error().text().find("virtiofs.sock"), std::string::npos) << answer.error().text();

  EXPECT_TRUE(list().empty());
  EXPECT_EQ(names_in(top + "/ch"), std::vector<std::string>{});
  EXPECT_EQ(names_in(top + "/s/a"), std::vector<std::string>{});
  EXPECT_EQ(create(spec()).state(), v1::VM_STATE_RUNNING) << "the name is free";
}

TEST_F(driver_rig, a_creation_that_waits_behind_one_that_fails_is_done) {
  new_driver();
  auto wrong = spec();
  wrong.set_kernel_path(top + "/missing");
  auto first = begin(create_call(wrong));
  auto second = begin(create_call(spec()));
  EXPECT_EQ(first.get().error().code(), "host_missing");
  EXPECT_EQ(good(second.get()).state(), v1::VM_STATE_RUNNING);
  EXPECT_EQ(list(), std::vector<std::string>{"a"});
}

TEST_F(driver_rig, sockets_that_a_crash_has_left_are_in_nobodys_way) {
  const auto s = spec();
  for (const auto& path :
       {api_socket(s.run_directory()), vsock_socket(s.run_directory()), console_socket(s.run_directory())}) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ASSERT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    ::close(fd);
  }
  EXPECT_EQ(create(s).state(), v1::VM_STATE_RUNNING);
  faults("stale_socket=1");
  EXPECT_EQ(destroy().state(), v1::VM_STATE_ABSENT);
  EXPECT_EQ(create(spec()).state(), v1::VM_STATE_RUNNING);
}

TEST_F(driver_rig, an_interface_needs_a_tap_that_is_there) {
  auto s = spec();
  auto* net = s.add_nets();
  net->set_id("eth0");
  net->set_tap_name("no-such-tap0");
  auto answer = ask(create_call(s));
  EXPECT_EQ(answer.error().code(), "host_missing");
  EXPECT_NE(answer.error().text().find("no-such-tap0"), std::string::npos) << answer.error().text();
}

TEST_F(driver_rig, a_share_with_a_daemon_is_taken_and_its_daemon_is_not_disturbed_before) {
  const auto path = top + "/virtiofs.sock";
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  ASSERT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(fd, 4), 0);
  EXPECT_EQ(socket_problem(path), "");
  pollfd asked{fd, POLLIN, 0};
  EXPECT_EQ(::poll(&asked, 1, 0), 0) << "a look is no connection: a daemon serves one and ends";
  ::close(fd);
  EXPECT_NE(socket_problem(path).find("nobody listens"), std::string::npos);
  EXPECT_NE(socket_problem(path + "x").find("no such socket"), std::string::npos);
}

TEST_F(driver_rig, a_boot_that_fails_half_way_leaves_nothing) {
  faults("boot_fails=1");
  auto answer = ask(create_call(spec()));
  EXPECT_EQ(answer.error().code(), "backend_refused") << answer.error().text();
  EXPECT_TRUE(list().empty());
  EXPECT_EQ(names_in(top + "/s/a"), std::vector<std::string>{});
  EXPECT_EQ(inspect().state(), v1::VM_STATE_ABSENT);
}

TEST_F(driver_rig, an_inspect_during_a_slow_boot_is_answered_and_a_ping_that_waits_is_no_death) {
  faults("boot_delay_ms=1500");
  new_driver();
  auto booting = begin(create_call(spec()));
  auto seen = inspect("a", 600);
  EXPECT_NE(seen.state(), v1::VM_STATE_STOPPED);
  auto made = good(booting.get());
  EXPECT_EQ(made.state(), v1::VM_STATE_RUNNING);
  EXPECT_EQ(news->count(v1::VmEvent::KIND_VMM_DIED), 0u);
}

TEST_F(driver_rig, a_boot_beyond_its_deadline_is_unknown_and_destroy_ends_it) {
  faults("boot_delay_ms=30000");
  auto answer = ask(create_call(spec(), 800));
  EXPECT_EQ(answer.error().code(), "outcome_unknown") << answer.error().text();
  EXPECT_EQ(list(), std::vector<std::string>{"a"});
  EXPECT_EQ(destroy().state(), v1::VM_STATE_ABSENT);
}

TEST_F(driver_rig, a_destroy_during_the_boot_answers_the_creation) {
  faults("boot_delay_ms=30000");
  new_driver();
  auto booting = begin(create_call(spec()));
  EXPECT_EQ(destroy().state(), v1::VM_STATE_ABSENT);
  EXPECT_EQ(booting.get().error().code(), "vmm_died");
  EXPECT_EQ(names_in(top + "/ch"), std::vector<std::string>{});
}

TEST_F(driver_rig, a_boot_whose_reply_is_lost_is_read_back) {
  faults("drop_reply=vm.boot");
  EXPECT_EQ(create(spec()).state(), v1::VM_STATE_RUNNING);
}

// ---- memory ----

TEST_F(driver_rig, virtio_mem_grows_and_shrinks_and_tells_its_size) {
  create(spec());
  auto seen = good(ask(virtio_call(1024 * mib)));
  EXPECT_EQ(seen.virtio_mem_requested_bytes(), 1024 * mib);
  until([](const auto& s) { return s.plugged_bytes() == 1024 * mib; });
  EXPECT_GT(news->await(v1::VmEvent::KIND_MEMORY_SIZE).size_bytes(), 0u);
  good(ask(virtio_call(1024 * mib))); // the VMM itself refuses a request that is the same
  good(ask(virtio_call(128 * mib)));
  until([](const auto& s) { return s.plugged_bytes() == 128 * mib; });
  good(ask(virtio_call(0)));
  auto end = until([](const auto& s) { return s.plugged_bytes() == 0; });
  EXPECT_EQ(end.virtio_mem_requested_bytes(), 0u);
  EXPECT_EQ(ask(virtio_call(8 * gib)).error().code(), "backend_refused");
  EXPECT_EQ(ask(dimm_call("d", 128 * mib)).error().code(), "unsupported");
}

TEST_F(driver_rig, virtio_mem_without_a_driver_in_the_guest_stays_at_nothing) {
  faults("virtio_mem=no_driver");
  create(spec());
  auto seen = good(ask(virtio_call(256 * mib)));
  EXPECT_EQ(seen.virtio_mem_requested_bytes(), 256 * mib);
  EXPECT_EQ(inspect().plugged_bytes(), 0u);
}

TEST_F(driver_rig, a_lost_reply_is_unknown_and_the_next_look_tells_the_truth) {
  faults("drop_reply=vm.resize:1");
  create(spec());
  auto answer = ask(virtio_call(256 * mib));
  EXPECT_EQ(answer.error().code(), "outcome_unknown") << answer.error().text();
  EXPECT_EQ(inspect().virtio_mem_requested_bytes(), 256 * mib);
  good(ask(virtio_call(256 * mib))); // done already: a success, and nothing is sent
}

class with_dimms : public driver_rig {
protected:
  v1::VmSpec dimm_spec() {
    auto s = spec();
    s.set_memory_method(v1::MEMORY_METHOD_DIMM);
    return s;
  }
};

TEST_F(with_dimms, eight_are_plugged_and_never_a_ninth) {
  create(dimm_spec());
  for (int n = 1; n <= 8; ++n) {
    auto seen = good(ask(dimm_call("dimm-" + std::to_string(n), 128 * mib)));
    EXPECT_EQ(seen.plugged_bytes(), static_cast<std::uint64_t>(n) * 128 * mib);
    EXPECT_EQ(seen.dimms_size(), n);
  }
  EXPECT_EQ(good(ask(dimm_call("dimm-3", 128 * mib))).dimms_size(), 8) << "one that is there is a success";
  auto ninth = ask(dimm_call("dimm-9", 128 * mib));
  EXPECT_EQ(ninth.error().code(), "backend_refused");
  EXPECT_NE(ninth.error().text().find("8 times"), std::string::npos) << ninth.error().text();
  EXPECT_EQ(inspect().plugged_bytes(), 1024 * mib);
}

TEST_F(with_dimms, none_leaves_and_none_is_lied_about) {
  create(dimm_spec());
  good(ask(dimm_call("d", 256 * mib)));
  v1::BackendCall unplug;
  unplug.mutable_apply_memory_step()->set_sandbox_id("a");
  unplug.mutable_apply_memory_step()->set_unplug_dimm_id("d");
  auto answer = ask(unplug);
  EXPECT_EQ(answer.error().code(), "unsupported");
  EXPECT_NE(answer.error().text().find("virtio-mem can"), std::string::npos) << answer.error().text();
  EXPECT_EQ(inspect().plugged_bytes(), 256 * mib);
  EXPECT_EQ(ask(dimm_call("odd", 100 * mib)).error().code(), "backend_refused");
  EXPECT_EQ(ask(dimm_call("huge", 64 * gib)).error().code(), "backend_refused");
}

TEST_F(with_dimms, none_goes_beyond_the_maximum) {
  create(dimm_spec()); // 512 MiB at boot, 4 GiB at most
  EXPECT_EQ(ask(dimm_call("more", 3712 * mib)).error().code(), "backend_refused");
  good(ask(dimm_call("d", 128 * mib)));
  EXPECT_EQ(ask(dimm_call("more", 3584 * mib)).error().code(), "backend_refused");
  auto beyond_64_bits = ask(dimm_call("wraps", 0 - 128 * mib));
  EXPECT_EQ(beyond_64_bits.error().code(), "backend_refused");
  EXPECT_NE(beyond_64_bits.error().text().find("maximum of 4096 MiB"), std::string::npos)
      << beyond_64_bits.error().text();
  EXPECT_EQ(inspect().plugged_bytes(), 128 * mib);
  EXPECT_EQ(good(ask(dimm_call("rest", 3456 * mib))).plugged_bytes(), 3584 * mib);
}

TEST_F(with_dimms, one_whose_reply_is_lost_is_found_by_the_next_look) {
  faults("drop_reply=vm.resize:1");
  create(dimm_spec());
  EXPECT_EQ(ask(dimm_call("d", 256 * mib)).error().code(), "outcome_unknown");
  auto seen = inspect();
  EXPECT_EQ(seen.plugged_bytes(), 256 * mib);
  ASSERT_EQ(seen.dimms_size(), 1);
  EXPECT_EQ(seen.dimms(0).id(), "d");
  EXPECT_EQ(good(ask(dimm_call("d", 256 * mib))).plugged_bytes(), 256 * mib);
}

TEST_F(with_dimms, one_that_the_host_has_no_memory_for_is_refused) {
  faults("mmap_fails=1");
  create(dimm_spec());
  EXPECT_EQ(ask(dimm_call("d", 256 * mib)).error().code(), "backend_refused");
  EXPECT_EQ(inspect().plugged_bytes(), 0u);
}

TEST_F(with_dimms, a_later_engine_knows_them) {
  auto made = create(dimm_spec());
  good(ask(dimm_call("d", 256 * mib)));
  new_driver();
  auto seen = inspect();
  EXPECT_EQ(seen.state(), v1::VM_STATE_RUNNING);
  EXPECT_EQ(seen.vmm_pid(), made.vmm_pid());
  EXPECT_EQ(seen.plugged_bytes(), 256 * mib);
  ASSERT_EQ(seen.dimms_size(), 1);
  EXPECT_EQ(good(ask(dimm_call("d", 256 * mib))).plugged_bytes(), 256 * mib);
  EXPECT_EQ(good(ask(dimm_call("e", 128 * mib))).plugged_bytes(), 384 * mib);
}

// ---- vCPUs ----

TEST_F(driver_rig, vcpus_come_and_go) {
  create(spec());
  EXPECT_EQ(good(ask(vcpus_call(3))).plugged_vcpus(), 3u);
  EXPECT_EQ(good(ask(vcpus_call(3))).plugged_vcpus(), 3u);
  good(ask(vcpus_call(1)));
  until([](const auto& s) { return s.plugged_vcpus() == 1; });
  EXPECT_EQ(ask(vcpus_call(5)).error().code(), "backend_refused");
  EXPECT_EQ(ask(vcpus_call(0)).error().code(), "backend_refused");
}

TEST_F(driver_rig, vcpus_that_the_guest_keeps_are_still_counted) {
  faults("guest_ack=never");
  create(spec());
  EXPECT_EQ(good(ask(vcpus_call(3))).plugged_vcpus(), 3u);
  EXPECT_EQ(good(ask(vcpus_call(1))).plugged_vcpus(), 3u) << "asked for is not gone";
  EXPECT_EQ(good(ask(vcpus_call(1))).plugged_vcpus(), 3u);
  EXPECT_EQ(inspect().plugged_vcpus(), 3u);
  for (std::uint32_t other : {2u, 3u, 4u}) {
    auto answer = ask(vcpus_call(other));
    EXPECT_EQ(answer.error().code(), "backend_refused") << other;
    EXPECT_NE(answer.error().text().find("has not let go"), std::string::npos) << answer.error().text();
  }
  new_driver();
  EXPECT_EQ(inspect().plugged_vcpus(), 3u) << "also by a later engine";
}

// ---- pause, devices ----

TEST_F(driver_rig, pauses_and_goes_on_each_as_often_as_asked) {
  create(spec());
  EXPECT_EQ(good(ask(pause_call(true))).state(), v1::VM_STATE_PAUSED);
  EXPECT_EQ(good(ask(pause_call(true))).state(), v1::VM_STATE_PAUSED);
  EXPECT_EQ(good(ask(pause_call(false))).state(), v1::VM_STATE_RUNNING);
  EXPECT_EQ(good(ask(pause_call(false))).state(), v1::VM_STATE_RUNNING);
}

TEST_F(driver_rig, disks_come_and_go) {
  create(spec());
  auto seen = good(ask(attach_call("data")));
  ASSERT_EQ(seen.devices_size(), 1);
  EXPECT_EQ(seen.devices(0).id(), "data");
  EXPECT_EQ(seen.devices(0).kind(), "disk");
  EXPECT_FALSE(seen.devices(0).address().empty());
  EXPECT_EQ(good(ask(attach_call("data"))).devices_size(), 1);
  good(ask(detach_call("data")));
  EXPECT_EQ(news->await(v1::VmEvent::KIND_DEVICE_REMOVED).device_id(), "data");
  EXPECT_EQ(inspect().devices_size(), 0);
  EXPECT_EQ(good(ask(detach_call("data"))).devices_size(), 0);
  EXPECT_EQ(news->count(v1::VmEvent::KIND_DEVICE_REMOVED), 1u);
}

TEST_F(driver_rig, a_device_is_asked_to_leave_when_the_guest_has_taken_it_up) {
  faults("early_removal=hangs,guest_ack_ms=300");
  create(spec());
  good(ask(attach_call("data")));
  good(ask(detach_call("data")));
  EXPECT_EQ(news->await(v1::VmEvent::KIND_DEVICE_REMOVED).device_id(), "data");
  EXPECT_EQ(inspect().stale_reason(), "") << "the VMM answers";
}

TEST_F(driver_rig, a_device_that_the_guest_never_takes_up_is_asked_to_leave_all_the_same) {
  faults("guest=none");
  create(spec());
  good(ask(attach_call("data")));
  auto seen = good(ask(detach_call("data")));
  ASSERT_EQ(seen.devices_size(), 1);
  EXPECT_TRUE(seen.devices(0).leaving());
}

TEST_F(driver_rig, a_disk_that_the_guest_keeps_is_leaving) {
  faults("remove_device=never");
  create(spec());
  good(ask(attach_call("data")));
  auto seen = good(ask(detach_call("data")));
  ASSERT_EQ(seen.devices_size(), 1);
  EXPECT_TRUE(seen.devices(0).leaving());
  EXPECT_TRUE(good(ask(detach_call("data"))).devices(0).leaving()) << "twice is a success";
  EXPECT_EQ(ask(attach_call("data")).error().code(), "backend_refused");
}

} // namespace
} // namespace caisson::cloud_hypervisor
