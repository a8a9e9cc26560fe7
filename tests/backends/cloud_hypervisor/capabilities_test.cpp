// What is said of Cloud Hypervisor before anything is made: each "no" names its reason and the mend.

#include <sys/fsuid.h>

#include "backends/cloud-hypervisor/capabilities.hpp"
#include "tests/backends/cloud_hypervisor/driver_rig.hpp"

namespace caisson::cloud_hypervisor {
namespace {

v1::Capabilities of(const std::string& architecture, const std::string& version, bool firmware = false) {
  return capabilities_of(architecture, *judge_version(version).facts, firmware);
}

TEST(ch_capabilities, an_x86_machine_can_all_but_take_dimms_back) {
  auto c = of("x86_64", "53.0.0");
  EXPECT_TRUE(c.dimm());
  EXPECT_EQ(c.dimm_max_slots(), 8u);
  EXPECT_FALSE(c.dimm_unplug());
  EXPECT_NE(c.dimm_why_not().find("virtio-mem can"), std::string::npos);
  EXPECT_TRUE(c.virtio_mem() && c.virtio_mem_shrink() && c.vcpu_plug() && c.vcpu_unplug());
}

TEST(ch_capabilities, arm64_plugs_no_vcpus_and_dimms_only_through_uefi) {
  auto c = of("aarch64", "53.0.0");
  EXPECT_FALSE(c.vcpu_plug() || c.vcpu_unplug());
  EXPECT_NE(c.vcpu_plug_why_not().find("ARM64"), std::string::npos);
  EXPECT_FALSE(c.dimm());
  EXPECT_NE(c.dimm_why_not().find("CLOUDHV_EFI.fd"), std::string::npos);
  EXPECT_TRUE(c.virtio_mem()) << "with direct kernel boot, too";
  EXPECT_TRUE(of("aarch64", "53.0.0", true).dimm());
}

TEST(ch_capabilities, a_version_that_hides_what_virtio_mem_has_is_not_trusted_with_it) {
  auto c = of("x86_64", "51.1.0");
  EXPECT_FALSE(c.virtio_mem());
  EXPECT_NE(c.virtio_mem_why_not().find("v52"), std::string::npos) << c.virtio_mem_why_not();
  EXPECT_TRUE(c.dimm());
}

TEST(ch_capabilities, a_version_that_keeps_vcpus_is_not_asked_to_let_them_go) {
  auto c = of("x86_64", "54.0.0-dev");
  EXPECT_TRUE(c.vcpu_plug());
  EXPECT_FALSE(c.vcpu_unplug());
  EXPECT_NE(c.vcpu_unplug_why_not().find("stays plugged"), std::string::npos);
  EXPECT_FALSE(of("x86_64", "53.0-246-gae44c2971-dirty").vcpu_unplug()) << "what comes after v53.0 becomes v54";
  EXPECT_TRUE(of("x86_64", "53.0-dirty").vcpu_unplug());
  EXPECT_TRUE(of("x86_64", "51.1-3-g0123456").vcpu_unplug()) << "a branch of fixes stays what it is";
}

TEST(ch_version, is_read_from_the_programs_first_line) {
  EXPECT_EQ(read_version("ch", "cloud-hypervisor v53.0\nMigration Protocol Versions: 1\n").version, "53.0");
  EXPECT_EQ(read_version("ch", "cloud-hypervisor v54.0-dev-12-gabc\n").wrong.code, "");
  EXPECT_EQ(read_version("ch", "cloud-hypervisor v41.0\n").wrong.code, "unsupported");
  auto other = read_version("/bin/other", "other 1.0\n");
  EXPECT_EQ(other.wrong.code, "host_missing");
  EXPECT_NE(other.wrong.text.find("/bin/other"), std::string::npos);
}

TEST_F(driver_rig, describes_the_program_that_is_named) {
  auto answer = describe(double_program());
  ASSERT_FALSE(answer.has_error()) << answer.error().text();
  EXPECT_EQ(answer.capabilities().backend(), "cloud-hypervisor");
  EXPECT_EQ(answer.capabilities().vmm_version().rfind("Cloud Hypervisor v", 0), 0u);
  EXPECT_FALSE(answer.capabilities().accelerator().empty());
}

TEST_F(driver_rig, says_what_is_missing_for_it_here) {
  auto missing = describe(top + "/cloud-hypervisor");
  EXPECT_EQ(missing.error().code(), "host_missing");
  EXPECT_NE(missing.error().text().find("`path`"), std::string::npos) << missing.error().text();
  EXPECT_EQ(describe("/bin/true").error().code(), "host_missing");
  EXPECT_EQ(describe("/bin/false").error().code(), "host_missing");

  auto other = describe(double_program(), "aarch64");
  EXPECT_EQ(other.error().code(), "unsupported");
  EXPECT_NE(other.error().text().find("this host is x86_64"), std::string::npos) << other.error().text();
  EXPECT_EQ(describe(double_program(), "x86_64", top + "/none.fd").error().code(), "host_missing");
}

TEST_F(driver_rig, a_real_vmm_needs_kvm_and_says_so) {
  // What answers --version as a real one does.
  const auto program = top + "/cloud-hypervisor";
  std::ofstream{program} << "#!/bin/sh\necho cloud-hypervisor v53.0\n";
  fs::permissions(program, fs::perms::owner_all);
  driver_settings settings;
  settings.kvm_device = top + "/no-kvm";
  new_driver(std::move(settings));
  auto answer = describe(program);
  EXPECT_EQ(answer.error().code(), "host_missing");
  EXPECT_NE(answer.error().text().find("/no-kvm is not there"), std::string::npos) << answer.error().text();
  EXPECT_NE(answer.error().text().find("hypervisor qemu"), std::string::npos);
}

TEST_F(driver_rig, a_kvm_that_is_another_users_is_denied_not_missing) {
  const auto program = top + "/cloud-hypervisor";
  std::ofstream{program} << "#!/bin/sh\necho cloud-hypervisor v53.0\n";
  fs::permissions(program, fs::perms::owner_all);
  driver_settings settings;
  settings.kvm_device = top + "/kvm";
  std::ofstream{settings.kvm_device};
  new_driver(settings);
  EXPECT_FALSE(describe(program).has_error()) << "and the program is known from now on";
  fs::permissions(top, fs::perms::owner_all | fs::perms::others_exec | fs::perms::group_exec);
  fs::permissions(settings.kvm_device, fs::perms::none);
  // Of the driver's thread alone; it may well be root here, whom nothing is denied.
  const auto look_as = [this](uid_t user) {
    std::promise<void> done;
    io->post([&] {
      ::setfsuid(user);
      done.set_value();
    });
    done.get_future().wait();
  };
  look_as(65'534);
  const auto answer = describe(program);
  look_as(::geteuid());
  EXPECT_EQ(answer.error().code(), "host_denied") << answer.error().text();
  EXPECT_NE(answer.error().text().find("add the user to the group kvm"), std::string::npos) << answer.error().text();
}

TEST_F(driver_rig, a_version_that_hides_what_virtio_mem_has_makes_no_vm_that_grows_by_it) {
  ::setenv("CAISSON_CH_PROFILE", "v51.1", 1);
  const auto refusal = ask(create_call(spec()));
  EXPECT_EQ(refusal.error().code(), "unsupported");
  EXPECT_NE(refusal.error().text().find(virtio_mem_problem(*judge_version("51.1.0").facts)), std::string::npos)
      << refusal.error().text();
  EXPECT_EQ(inspect().state(), v1::VM_STATE_ABSENT);
  EXPECT_EQ(names_in(top + "/s/a"), std::vector<std::string>{});
  auto fixed = spec();
  fixed.set_max_bytes(fixed.boot_bytes());
  create(fixed);
  destroy();
  auto by_dimm = spec();
  by_dimm.set_memory_method(v1::MEMORY_METHOD_DIMM);
  create(by_dimm);
  ::unsetenv("CAISSON_CH_PROFILE");
}

TEST_F(driver_rig, an_arm64_host_is_told_what_it_can) {
  driver_settings settings;
  settings.host_architecture = "aarch64";
  new_driver(std::move(settings));
  auto answer = describe(double_program(), "aarch64");
  ASSERT_FALSE(answer.has_error()) << answer.error().text();
  EXPECT_FALSE(answer.capabilities().vcpu_plug());
}

TEST_F(driver_rig, an_arm64_vm_grows_by_virtio_mem_and_refuses_what_it_cannot) {
  driver_settings settings;
  settings.host_architecture = "aarch64";
  new_driver(settings);
  faults("arch=aarch64");
  auto s = spec();
  s.set_architecture("aarch64");
  s.set_memory_method(v1::MEMORY_METHOD_DIMM);
  auto no_acpi = ask(create_call(s));
  EXPECT_EQ(no_acpi.error().code(), "unsupported") << no_acpi.error().text();
  EXPECT_NE(no_acpi.error().text().find("virtio-mem"), std::string::npos) << no_acpi.error().text();
  EXPECT_EQ(inspect().state(), v1::VM_STATE_ABSENT);
  s.set_memory_method(v1::MEMORY_METHOD_VIRTIO_MEM);
  create(s);
  auto vcpus = ask(vcpus_call(2));
  EXPECT_EQ(vcpus.error().code(), "unsupported");
  EXPECT_NE(vcpus.error().text().find("ARM64"), std::string::npos) << vcpus.error().text();
  good(ask(virtio_call(256 * mib)));
  until([](const auto& seen) { return seen.plugged_bytes() == 256 * mib; });
}

TEST_F(driver_rig, a_guest_that_takes_or_gives_only_a_part_is_told_as_it_is) {
  faults("virtio_mem_most=128,virtio_mem_floor=64");
  create(spec());
  good(ask(virtio_call(512 * mib)));
  EXPECT_EQ(until([](const auto& seen) { return seen.plugged_bytes() == 128 * mib; }).virtio_mem_requested_bytes(),
            512 * mib);
  good(ask(virtio_call(0)));
  EXPECT_EQ(until([](const auto& seen) { return seen.plugged_bytes() == 64 * mib; }).virtio_mem_requested_bytes(), 0u);
}

} // namespace
} // namespace caisson::cloud_hypervisor
