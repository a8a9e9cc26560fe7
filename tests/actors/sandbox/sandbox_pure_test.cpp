// The parts of the sandbox actor that are no actor: its states, and the way from a configuration to a VM.

#include <gtest/gtest.h>

#include "actors/sandbox/lifecycle.hpp"
#include "actors/sandbox/spec.hpp"

namespace caisson::sandbox {
namespace {

constexpr std::uint64_t mib = 1024 * 1024;

TEST(lifecycle, ends_in_removed_from_every_state_that_a_sandbox_can_stay_in) {
  using enum happening;
  EXPECT_EQ(next(v1::SANDBOX_STATE_CREATING, agent_answered), v1::SANDBOX_STATE_RUNNING);
  EXPECT_EQ(next(v1::SANDBOX_STATE_CREATING, boot_failed), v1::SANDBOX_STATE_REMOVED);
  for (auto s : {v1::SANDBOX_STATE_RUNNING, v1::SANDBOX_STATE_PAUSED, v1::SANDBOX_STATE_RECOVERING}) {
    auto stopping = next(s, stop_asked);
    ASSERT_EQ(stopping, v1::SANDBOX_STATE_STOPPING) << word(s);
    auto stopped = next(*stopping, vm_gone_as_asked);
    ASSERT_EQ(stopped, v1::SANDBOX_STATE_STOPPED);
    EXPECT_EQ(next(*stopped, removed), v1::SANDBOX_STATE_REMOVED);
    EXPECT_EQ(next(s, vm_gone_unasked), v1::SANDBOX_STATE_FAILED) << word(s);
  }
  EXPECT_EQ(next(v1::SANDBOX_STATE_FAILED, removed), v1::SANDBOX_STATE_REMOVED);
}

TEST(lifecycle, has_no_move_out_of_removed_nor_back_from_the_dead) {
  for (int w = 0; w <= static_cast<int>(happening::removed); ++w) {
    EXPECT_FALSE(next(v1::SANDBOX_STATE_REMOVED, static_cast<happening>(w)));
    for (auto dead : {v1::SANDBOX_STATE_STOPPED, v1::SANDBOX_STATE_FAILED}) {
      auto to = next(dead, static_cast<happening>(w));
      EXPECT_TRUE(!to || *to == v1::SANDBOX_STATE_REMOVED) << word(dead);
    }
  }
}

v1::SandboxRecord record() {
  v1::SandboxRecord r;
  r.set_id("0123456789ab");
  r.set_name("a");
  auto& c = *r.mutable_config()->mutable_sandbox();
  c.set_hypervisor("qemu");
  c.set_architecture("x86_64");
  c.set_boot_memory_bytes(1024 * mib);
  c.set_max_memory_bytes(4096 * mib);
  c.set_memory_slots(10);
  c.set_boot_vcpus(1);
  c.set_max_vcpus(4);
  c.set_guest(v1::GUEST_SOURCE_OWN);
  c.set_kernel_params("agent.debug=1");
  return r;
}

const guest_assets guest{"/g/vmlinux", "/g/bzImage", "/g/initramfs.cpio", "console=ttyS0 swiotlb=noforce"};

TEST(spec, takes_the_configuration_and_the_request_wins) {
  auto r = record();
  ASSERT_FALSE(build_spec(r, guest, {"/run/caisson/x"}));
  EXPECT_EQ(r.spec().boot_bytes(), 1024 * mib);
  EXPECT_EQ(r.spec().kernel_path(), "/g/vmlinux");
  EXPECT_EQ(r.spec().kernel_command_line(), "console=ttyS0 swiotlb=noforce agent.debug=1");
  EXPECT_EQ(r.spec().run_directory(), "/run/caisson/x/s/0123456789ab");
  r.mutable_request()->set_memory_bytes(512 * mib);
  r.mutable_request()->set_vcpus(2);
  ASSERT_FALSE(build_spec(r, guest, {"/run"}));
  EXPECT_EQ(r.spec().boot_bytes(), 512 * mib);
  EXPECT_EQ(r.spec().boot_vcpus(), 2u);
}

TEST(spec, boots_the_bzimage_under_firmware) {
  auto r = record();
  r.mutable_config()->mutable_sandbox()->set_firmware_path("/usr/share/OVMF/OVMF_CODE.fd");
  ASSERT_FALSE(build_spec(r, guest, {"/run"}));
  EXPECT_EQ(r.spec().kernel_path(), "/g/bzImage");
}

TEST(spec, refuses_sizes_that_cannot_be_with_the_key_to_change) {
  struct row {
    std::uint64_t boot;
    std::uint32_t vcpus;
    const char* names;
  };
  for (const auto& [boot, vcpus, names] :
       {row{64 * mib, 1, "default_memory"}, {8192 * mib, 1, "default_maxmemory"}, {1024 * mib + 1, 1, "1 MiB"},
        {1024 * mib, 9, "default_maxvcpus"}}) {
    auto r = record();
    r.mutable_request()->set_memory_bytes(boot);
    r.mutable_request()->set_vcpus(vcpus);
    auto e = build_spec(r, guest, {"/run"});
    ASSERT_TRUE(e);
    EXPECT_EQ(code_of(e), ec::out_of_range);
    EXPECT_NE(text_of(e).find(names), std::string::npos) << text_of(e);
  }
}

v1::Capabilities capabilities() {
  v1::Capabilities c;
  c.set_backend("qemu");
  c.set_dimm(true);
  c.set_virtio_mem(true);
  c.set_dimm_max_slots(256);
  c.set_max_vcpus(255);
  c.set_vcpu_plug(true);
  c.set_accelerator("tcg");
  c.set_accelerator_reason("no /dev/kvm");
  return c;
}

TEST(settle, auto_is_virtio_mem_where_it_can_and_dimm_elsewhere) {
  auto r = record();
  ASSERT_FALSE(build_spec(r, guest, {"/run"}));
  auto can = capabilities();
  ASSERT_FALSE(settle(r, can));
  EXPECT_EQ(r.spec().memory_method(), v1::MEMORY_METHOD_VIRTIO_MEM);
  EXPECT_EQ(r.spec().accelerator(), "tcg");
  EXPECT_EQ(r.accelerator_reason(), "no /dev/kvm");
  can.set_virtio_mem(false);
  ASSERT_FALSE(build_spec(r, guest, {"/run"}));
  ASSERT_FALSE(settle(r, can));
  EXPECT_EQ(r.spec().memory_method(), v1::MEMORY_METHOD_DIMM);
}

TEST(settle, refuses_a_method_that_cannot_work_with_the_backends_reason) {
  auto r = record();
  ASSERT_FALSE(build_spec(r, guest, {"/run"}));
  r.mutable_spec()->set_memory_method(v1::MEMORY_METHOD_DIMM);
  auto can = capabilities();
  can.set_dimm(false);
  can.set_dimm_why_not("no firmware is given");
  auto e = settle(r, can);
  ASSERT_EQ(code_of(e), ec::unsupported);
  EXPECT_NE(text_of(e).find("no firmware is given"), std::string::npos);
}

TEST(settle, reports_every_figure_that_the_vmm_cannot_have) {
  auto r = record();
  ASSERT_FALSE(build_spec(r, guest, {"/run"}));
  r.mutable_spec()->set_memory_method(v1::MEMORY_METHOD_DIMM);
  auto can = capabilities();
  can.set_dimm_max_slots(8);
  can.set_max_vcpus(2);
  ASSERT_FALSE(settle(r, can));
  EXPECT_EQ(r.spec().memory_slots(), 8u);
  EXPECT_EQ(r.spec().max_vcpus(), 2u);
  ASSERT_EQ(r.config().adaptations_size(), 2);
  EXPECT_EQ(r.config().adaptations(1).asked(), "10");
  EXPECT_EQ(r.config().adaptations(1).used(), "8");
}

TEST(settle, tells_of_automatic_memory_that_has_nothing_to_do) {
  for (const auto& [boot, key] : {std::pair{4096 * mib, "runtime.caisson.memory_autosize"},
                                  std::pair{2048 * mib, "runtime.caisson.memory_autosize_ceiling"}}) {
    auto r = record();
    r.mutable_config()->mutable_sandbox()->set_autosize(true);
    r.mutable_config()->mutable_sandbox()->set_autosize_ceiling_bytes(1536 * mib);
    r.mutable_request()->set_memory_bytes(boot);
    ASSERT_FALSE(build_spec(r, guest, {"/run"}));
    ASSERT_FALSE(settle(r, capabilities()));
    ASSERT_EQ(r.config().adaptations_size(), 1);
    EXPECT_EQ(r.config().adaptations(0).key(), key);
  }
}

TEST(settle, tells_of_free_page_reporting_that_the_vmm_lacks) {
  auto r = record();
  r.mutable_config()->mutable_sandbox()->set_free_page_reporting(true);
  ASSERT_FALSE(build_spec(r, guest, {"/run"}));
  ASSERT_FALSE(settle(r, capabilities()));
  EXPECT_FALSE(r.spec().free_page_reporting());
  ASSERT_EQ(r.config().adaptations_size(), 1);
  EXPECT_EQ(r.config().adaptations(0).used(), "false");
}

TEST(settle, leaves_no_room_for_vcpus_that_cannot_be_plugged) {
  auto r = record();
  ASSERT_FALSE(build_spec(r, guest, {"/run"}));
  ASSERT_GT(r.spec().max_vcpus(), r.spec().boot_vcpus());
  auto can = capabilities();
  can.set_vcpu_plug(false);
  can.set_vcpu_plug_why_not("no such slots");
  ASSERT_FALSE(settle(r, can));
  EXPECT_EQ(r.spec().max_vcpus(), r.spec().boot_vcpus());
  ASSERT_EQ(r.config().adaptations_size(), 1);
  EXPECT_NE(r.config().adaptations(0).why().find("no such slots"), std::string::npos);
}

} // namespace
} // namespace caisson::sandbox
