#include <gtest/gtest.h>

#include "tests/config/support.hpp"

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <sys/stat.h>
#include <unistd.h>

namespace caisson::config {
namespace {

using namespace testing;

outcome resolved(const std::string& text, v1::ResolveConfig request = {}, host_facts facts = host()) {
  return resolve(request, one(text), facts);
}

std::string adaptation_of(const outcome& out, const std::string& key) {
  if (out.config)
    for (const auto& each : out.config->adaptations())
      if (each.key() == key)
        return each.asked() + " -> " + each.used() + " (" + each.why() + ") at " + each.where();
  return {};
}

TEST(resolving, nothing_at_all_gives_a_small_sandbox) {
  const auto out = resolved("");
  ASSERT_TRUE(out.config) << texts(out.problems);
  const auto& box = out.config->sandbox();
  EXPECT_EQ(box.hypervisor(), "qemu");
  EXPECT_EQ(box.machine_type(), "q35");
  EXPECT_EQ(box.vmm_path(), "/usr/bin/qemu-system-x86_64");
  EXPECT_EQ(box.boot_memory_bytes(), std::uint64_t{1} << 30);
  EXPECT_EQ(box.max_memory_bytes(), std::uint64_t{8} << 30);
  EXPECT_EQ(box.memory_slots(), 10u);
  EXPECT_EQ(box.boot_vcpus(), 1u);
  EXPECT_EQ(box.max_vcpus(), 4u);
  EXPECT_EQ(box.memory_method(), v1::MEMORY_METHOD_UNSPECIFIED);
  EXPECT_EQ(box.guest(), v1::GUEST_SOURCE_OWN);
  EXPECT_EQ(out.config->dialect(), "page");
}

TEST(resolving, the_memory_method) {
  const auto method = [](const std::string& text) {
    return resolved("[hypervisor.qemu]\n" + text).config->sandbox().memory_method();
  };
  EXPECT_EQ(method("enable_virtio_mem = true\n"), v1::MEMORY_METHOD_VIRTIO_MEM);
  EXPECT_EQ(method("enable_virtio_mem = false\n"), v1::MEMORY_METHOD_DIMM);
  EXPECT_EQ(method("enable_virtio_mem = false\nmemory_method = \"virtio-mem\"\n"), v1::MEMORY_METHOD_VIRTIO_MEM);
  EXPECT_EQ(method("enable_virtio_mem = true\nmemory_method = \"dimm\"\n"), v1::MEMORY_METHOD_DIMM);
  EXPECT_EQ(method("memory_method = \"auto\"\n"), v1::MEMORY_METHOD_UNSPECIFIED);
  EXPECT_NE(adaptation_of(resolved("[hypervisor.qemu]\nenable_virtio_mem = true\nmemory_method = \"dimm\"\n"),
                          "hypervisor.qemu.enable_virtio_mem"),
            "");
}

TEST(resolving, automatic_memory_and_the_budget) {
  constexpr std::uint64_t mib = 1 << 20;
  const auto quiet = resolved("").config->sandbox();
  EXPECT_FALSE(quiet.autosize());
  EXPECT_TRUE(quiet.free_page_reporting());
  EXPECT_EQ(quiet.overcommit_percent(), 100u);
  EXPECT_EQ(quiet.host_reserve_bytes(), 256 * mib);

  const auto out = resolved("[hypervisor.qemu]\ndefault_memory = 512\ndefault_maxmemory = 4096\n[runtime.caisson]\n"
                            "memory_autosize = true\nmemory_autosize_floor = 256\nmemory_autosize_ceiling = 2048\n"
                            "memory_autosize_step = 64\nmemory_autosize_headroom = 96\nmemory_autosize_cool_down = 5\n"
                            "host_reserve_mib = 1024\novercommit = 1.25\nfree_page_reporting = false\n");
  ASSERT_TRUE(out.config) << texts(out.problems);
  const auto& box = out.config->sandbox();
  EXPECT_TRUE(box.autosize());
  EXPECT_EQ(box.autosize_floor_bytes(), 512 * mib);
  EXPECT_EQ(box.autosize_ceiling_bytes(), 2048 * mib);
  EXPECT_EQ(box.autosize_step_bytes(), 64 * mib);
  EXPECT_EQ(box.autosize_headroom_bytes(), 96 * mib);
  EXPECT_EQ(box.autosize_cool_down_ms(), 5'000u);
  EXPECT_EQ(box.host_reserve_bytes(), 1024 * mib);
  EXPECT_EQ(box.overcommit_percent(), 125u);
  EXPECT_FALSE(box.free_page_reporting());
  EXPECT_EQ(adaptation_of(out, "runtime.caisson.memory_autosize_floor"),
            "256 -> 512 (a sandbox never has less than at boot) at c.toml:6:25");

  const auto all = resolved("[runtime.caisson]\nmemory_autosize = true\n").config->sandbox();
  EXPECT_EQ(all.autosize_floor_bytes(), all.boot_memory_bytes());
  EXPECT_EQ(all.autosize_ceiling_bytes(), all.max_memory_bytes());

  v1::ResolveConfig pod;
  (*pod.mutable_annotations())["io.katacontainers.config.runtime.memory_autosize"] = "true";
  EXPECT_TRUE(resolved("", pod).config->sandbox().autosize());
  (*pod.mutable_annotations())["io.katacontainers.config.runtime.host_reserve_mib"] = "0";
  EXPECT_FALSE(resolved("", pod).config) << "a pod does not say what the host keeps for itself";
}

TEST(resolving, both_names_of_the_root_ports) {
  EXPECT_EQ(resolved("[hypervisor.qemu]\ndefault_root_ports = 4\n").config->sandbox().root_ports(), 4u);
  EXPECT_EQ(resolved("[hypervisor.qemu]\npcie_root_port = 3\n").config->sandbox().root_ports(), 3u);
  EXPECT_EQ(resolved("[hypervisor.qemu]\npcie_root_port = 3\ndefault_root_ports = 3\n").config->sandbox().root_ports(),
            3u);
}

TEST(resolving, what_the_host_changes_is_said) {
  const auto out = resolved("[hypervisor.qemu]\npath = \"/opt/kata/bin/qemu-system-x86_64\"\ndefault_maxmemory = "
                            "999999\ndefault_maxvcpus = 240\n"
                            "default_vcpus = -1\nimage = \"/i.img\"\n[agent.kata]\nreconnect_timeout_ms = 3000\n");
  ASSERT_TRUE(out.config) << texts(out.problems);
  EXPECT_EQ(adaptation_of(out, "hypervisor.qemu.path"),
            "\"/opt/kata/bin/qemu-system-x86_64\" -> \"/usr/bin/qemu-system-x86_64\" (is not there: the host's own "
            "program) at c.toml:2:8");
  EXPECT_EQ(adaptation_of(out, "hypervisor.qemu.default_maxmemory").substr(0, 14), "999999 -> 8192");
  EXPECT_EQ(adaptation_of(out, "hypervisor.qemu.default_maxvcpus").substr(0, 8), "240 -> 4");
  EXPECT_EQ(adaptation_of(out, "hypervisor.qemu.default_vcpus").substr(0, 7), "-1 -> 4");
  EXPECT_NE(adaptation_of(out, "hypervisor.qemu.image"), "");
  EXPECT_EQ(adaptation_of(out, "agent.kata.reconnect_timeout_ms").substr(0, 13), "3000 -> 60000");
  EXPECT_EQ(out.config->sandbox().agent_connect_timeout_ms(), 60000u);
  EXPECT_EQ(resolved("[agent.kata]\nboot_timeout_ms = 5000\n").config->sandbox().agent_connect_timeout_ms(), 5000u);
  EXPECT_EQ(resolved("[agent.kata]\ndial_timeout = 90\n").config->sandbox().agent_connect_timeout_ms(), 90000u);
}

TEST(resolving, more_memory_than_the_host_has_is_an_error) {
  const auto out = resolved("[hypervisor.qemu]\ndefault_memory = 1048576\n");
  EXPECT_FALSE(out.config);
  EXPECT_NE(texts(out.problems)
                .find("c.toml:2:18: hypervisor.qemu.default_memory = 1048576: is more than this host has (8192 MiB)"),
            std::string::npos);
}

TEST(resolving, a_host_without_qemu_is_told_the_package) {
  auto facts = host();
  facts.exists = [](const std::string& path) { return path == "/dev/urandom"; };
  const auto out = resolved("", {}, facts);
  EXPECT_FALSE(out.config);
  EXPECT_NE(texts(out.problems).find("package qemu-system-x86"), std::string::npos) << texts(out.problems);
}

TEST(resolving, a_backend_without_rules_is_told_what_the_file_says) {
  auto facts = host({"/opt/toaster"});
  facts.backends.push_back({"toaster", {}});
  const auto out = resolved("[hypervisor.toaster]\npath = \"/opt/toaster\"\nmachine_type = \"q35\"\n"
                            "cpu_features = \"+crumbs\"\ndefault_memory = 512\nmemory_slots = 20\ndefault_bridges = 0\n",
                            {}, facts);
  ASSERT_TRUE(out.config) << texts(out.problems);
  const auto& box = out.config->sandbox();
  EXPECT_EQ(box.hypervisor(), "toaster");
  EXPECT_EQ(box.vmm_path(), "/opt/toaster");
  EXPECT_EQ(box.machine_type(), "q35");
  EXPECT_EQ(box.cpu_features(), "+crumbs");
  EXPECT_EQ(box.boot_memory_bytes(), std::uint64_t{512} << 20);
  EXPECT_EQ(box.memory_slots(), 20u);
  EXPECT_EQ(box.bridges(), 0u);
  for (const auto& each : out.config->adaptations())
    EXPECT_EQ(each.why().find("has no meaning"), std::string::npos) << each.key() << ": " << each.why();
  const auto unnamed = resolved("[hypervisor.toaster]\n", {}, facts);
  ASSERT_TRUE(unnamed.config) << texts(unnamed.problems);
  EXPECT_EQ(unnamed.config->sandbox().vmm_path(), "");
  EXPECT_NE(texts(resolved("[hypervisor.toaster]\npath = \"/opt/toastr\"\n", {}, facts).problems)
                .find("hypervisor.toaster.path = \"/opt/toastr\": there is no such file; did you mean /opt/toaster?"),
            std::string::npos);
  EXPECT_TRUE(check(one("[hypervisor.toaster]\n"), {}, facts).ok());
}

TEST(resolving, a_backend_that_this_build_lacks_is_refused_but_no_error_of_the_file) {
  const std::string clh = "[hypervisor.clh]\npath = \"/usr/bin/cloud-hypervisor\"\n";
  const auto out = resolved(clh);
  EXPECT_FALSE(out.config);
  EXPECT_NE(
      texts(out.problems)
          .find(
              "needs the backend cloud-hypervisor, which this build does not have; backends: qemu (x86_64), simulated"),
      std::string::npos)
      << texts(out.problems);
  EXPECT_TRUE(check(one(clh), {}, host()).ok());
  const std::string arm = "[hypervisor.qemu]\npath = \"/usr/bin/qemu-system-aarch64\"\nmachine_type = \"virt\"\n";
  EXPECT_NE(texts(resolved(arm).problems)
                .find("guests of architecture aarch64 are not supported by backend qemu in this build"),
            std::string::npos);
  EXPECT_TRUE(check(one(arm), {}, host()).ok());
}

TEST(resolving, a_key_that_another_backend_has_is_said_not_to_count) {
  auto facts = host({"/usr/bin/cloud-hypervisor"});
  facts.backends.push_back({"cloud-hypervisor", {"x86_64"}});
  const auto out =
      resolved("[hypervisor.clh]\npath = \"/usr/bin/cloud-hypervisor\"\ncpu_features = \"pmu=off\"\n", {}, facts);
  ASSERT_TRUE(out.config) << texts(out.problems);
  EXPECT_EQ(out.config->sandbox().cpu_features(), "");
  EXPECT_EQ(out.config->sandbox().vmm_path(), "/usr/bin/cloud-hypervisor");
  EXPECT_NE(adaptation_of(out, "hypervisor.clh.cpu_features").find("has no meaning with cloud-hypervisor"),
            std::string::npos);
}

TEST(resolving, firmware_in_a_directory_that_is_spelt_otherwise_is_found) {
  auto facts = host({"/usr/bin/qemu-system-aarch64", "/usr/share/AAVMF/AAVMF_CODE.fd"});
  facts.backends[0].architectures.push_back("aarch64");
  const auto out = resolved("[hypervisor.qemu]\npath = \"/usr/bin/qemu-system-aarch64\"\nmachine_type = \"virt\"\n"
                            "firmware = \"/usr/share/aavmf/AAVMF_CODE.fd\"\n",
                            {}, facts);
  ASSERT_TRUE(out.config) << texts(out.problems);
  EXPECT_EQ(out.config->sandbox().firmware_path(), "/usr/share/AAVMF/AAVMF_CODE.fd");
  EXPECT_NE(adaptation_of(out, "hypervisor.qemu.firmware"), "");
}

TEST(resolving, firmware_of_katas_own_prefix_is_found_where_the_host_has_it) {
  auto facts = host({"/usr/bin/qemu-system-aarch64", "/usr/share/AAVMF/AAVMF_CODE.fd"});
  facts.backends[0].architectures.push_back("aarch64");
  const auto out = resolved("[hypervisor.qemu]\npath = \"/opt/kata/bin/qemu-system-aarch64\"\nmachine_type = \"virt\"\n"
                            "firmware = \"/opt/kata/share/aavmf/AAVMF_CODE.fd\"\n",
                            {}, facts);
  ASSERT_TRUE(out.config) << texts(out.problems);
  EXPECT_EQ(out.config->sandbox().firmware_path(), "/usr/share/AAVMF/AAVMF_CODE.fd");
}

TEST(resolving, a_hypervisor_without_a_backend_is_refused_with_one_message) {
  const auto out = check(
      one("[hypervisor.firecracker]\npath = \"/usr/bin/firecracker\"\njailer_path = \"/j\"\nenable_iommu = true\n"), {},
      host());
  ASSERT_EQ(out.problems_size(), 1);
  EXPECT_EQ(out.problems(0).text(), "c.toml:1:13: hypervisor.firecracker: hypervisor \"firecracker\" is not supported; "
                                    "backends: qemu, simulated");
  EXPECT_EQ(out.adaptations_size(), 0);
}

TEST(resolving, limits_size_the_sandbox_by_the_rule) {
  v1::ResolveConfig request;
  request.add_limits()->set_memory_bytes(std::int64_t{3} << 30);
  const auto share = resolved("", request);
  ASSERT_TRUE(share.config) << texts(share.problems);
  EXPECT_EQ(share.config->sandbox().boot_memory_bytes(), std::uint64_t{1} << 30);
  EXPECT_EQ(share.config->sandbox().after_boot_memory_target_bytes(), std::uint64_t{3} << 30);
  const auto add = resolved("[runtime]\nsizing_rule = \"add\"\nstatic_sandbox_resource_mgmt = true\n", request);
  EXPECT_EQ(add.config->sandbox().boot_memory_bytes(), std::uint64_t{4} << 30);
  EXPECT_EQ(add.config->sandbox().after_boot_memory_target_bytes(), 0u);
}

TEST(resolving, limits_that_do_not_fit_are_refused_before_anything_starts) {
  v1::ResolveConfig request;
  request.add_limits()->set_memory_bytes(std::int64_t{5} << 30);
  const auto out = resolved("[hypervisor.qemu]\ndefault_maxmemory = 4096\n", request);
  EXPECT_FALSE(out.config);
  EXPECT_NE(texts(out.problems).find("need 5120 MiB"), std::string::npos) << texts(out.problems);
  v1::ResolveConfig cpus;
  cpus.add_limits()->set_cpu_quota_us(900000);
  cpus.mutable_limits(0)->set_cpu_period_us(100000);
  EXPECT_NE(texts(resolved("", cpus).problems).find("need 10 vCPUs"), std::string::npos);
}

TEST(resolving, says_where_every_value_comes_from) {
  const auto out = resolved("[hypervisor.qemu]\nmemory_slots = 4\n");
  ASSERT_TRUE(out.config);
  bool slots = false, memory = false;
  for (const auto& each : out.config->values()) {
    slots = slots ||
            (each.key() == "hypervisor.qemu.memory_slots" && each.value() == "4" && each.origin() == "c.toml:2:16");
    memory = memory || (each.key() == "hypervisor.qemu.default_memory" && each.value() == "1024" &&
                        each.origin() == "built-in (page)");
  }
  EXPECT_TRUE(slots);
  EXPECT_TRUE(memory);
}

struct on_disk : ::testing::Test {
  std::filesystem::path root;
  void SetUp() override {
    auto pattern = (std::filesystem::temp_directory_path() / "caisson-config-XXXXXX").string();
    root = ::mkdtemp(pattern.data());
  }
  void TearDown() override { std::filesystem::remove_all(root); }
  std::string write(const std::string& name, const std::string& text) {
    const auto path = root / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
    return path.string();
  }
};

TEST_F(on_disk, drop_ins_lie_beside_the_resolved_file) {
  write("real/configuration.toml", "[hypervisor.qemu]\ndefault_memory = 512\n");
  write("real/config.d/20-b.toml", "[hypervisor.qemu]\ndefault_memory = 700\n");
  write("real/config.d/10-a.toml", "[hypervisor.qemu]\ndefault_memory = 600\n");
  write("real/config.d/README.bak", "[hypervisor.qemu]\ndefault_memory = 900\n");
  std::filesystem::create_symlink(root / "real/configuration.toml", root / "link.toml");
  const auto from = read_sources((root / "link.toml").string(), false, read_host_facts());
  ASSERT_EQ(from.files.size(), 3u);
  EXPECT_EQ(from.path, (root / "real/configuration.toml").string());
  const auto out = load(from, {});
  EXPECT_EQ(value_of(out.config, "hypervisor.default_memory"), "700");
  EXPECT_EQ(errors(out.problems), 0);
  EXPECT_NE(texts(out.problems).find("README.bak:1:1: is not applied: only config.d/*.toml is"), std::string::npos)
      << texts(out.problems);
}

TEST_F(on_disk, a_file_that_everybody_can_write_is_refused_unless_told) {
  const auto path = write("c.toml", "");
  ::chmod(path.c_str(), 0666);
  EXPECT_NE(
      texts(read_sources(path, false, read_host_facts()).problems).find("can be written by everybody (mode 0666)"),
      std::string::npos);
  EXPECT_EQ(errors(read_sources(path, true, read_host_facts()).problems), 0);
  ::chmod(path.c_str(), 0644);
  ::chmod(root.c_str(), 0777);
  EXPECT_NE(texts(read_sources(path, false, read_host_facts()).problems).find("its directory"), std::string::npos);
  ::chmod(root.c_str(), 01777);
  EXPECT_EQ(errors(read_sources(path, false, read_host_facts()).problems), 0);
}

TEST_F(on_disk, what_is_no_file_is_said) {
  const auto near = write("configuration.toml", "");
  const auto said = texts(read_sources((root / "configuraton.toml").string(), false, read_host_facts()).problems);
  EXPECT_NE(said.find("cannot be read: No such file or directory; did you mean " + near + "?"), std::string::npos)
      << said;
  EXPECT_NE(texts(read_sources(root.string(), false, read_host_facts()).problems).find("is no regular file"),
            std::string::npos);
  ASSERT_EQ(::mkfifo((root / "fifo").c_str(), 0600), 0);
  EXPECT_NE(texts(read_sources((root / "fifo").string(), false, read_host_facts()).problems).find("is no regular file"),
            std::string::npos);
  const auto big = write("big.toml", std::string(2 << 20, '#'));
  EXPECT_NE(texts(read_sources(big, false, read_host_facts()).problems).find("is larger than 1 MiB"),
            std::string::npos);
}

TEST_F(on_disk, the_search_order_takes_the_first_that_exists) {
  auto facts = read_host_facts();
  facts.search_paths = {(root / "no.toml").string(), write("a.toml", "[hypervisor.qemu]\nmemory_slots = 3\n"),
                        write("b.toml", "")};
  const auto from = read_sources("", false, facts);
  EXPECT_EQ(value_of(load(from, {}).config, "hypervisor.memory_slots"), "3");
}

TEST(nearest_existing_path, follows_case_and_typos) {
  const auto facts = host({"/usr/share/AAVMF/AAVMF_CODE.fd"});
  EXPECT_EQ(nearest_path(facts, "/usr/share/aavmf/AAVMF_CODE.fd"), "/usr/share/AAVMF/AAVMF_CODE.fd");
  EXPECT_EQ(nearest_path(facts, "/usr/share/AAVMF/AAVMF_COD.fd"), "/usr/share/AAVMF/AAVMF_CODE.fd");
  EXPECT_EQ(nearest_path(facts, "/completely/elsewhere"), "");
}

} // namespace
} // namespace caisson::config
