// The command line on a sandbox of Cloud Hypervisor: the real programs, the real backend, and in the VMM's place its
// API double with a model guest, so that it runs on any machine. One sandbox; the engine is killed in the middle of its
// life.

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>

#include "tests/system/engine_home.hpp"

namespace caisson::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint64_t gib = std::uint64_t{1} << 30;

class cloud_hypervisor_cli : public ::testing::Test {
protected:
  void SetUp() override {
    // The double looks whether the kernel is one and runs none; the engine wants to see that all files are there.
    const auto guest = home.directory() + "/guest";
    fs::create_directory(guest);
    for (const char* file : {"vmlinux", "Image", "initramfs.cpio"})
      std::ofstream{guest + "/" + file} << "\177ELF, of a double\n";
    std::ofstream{guest + "/manifest.json"} << R"({"format": 1, "kernel_parameters": ""})";
    std::ofstream{configuration} << "[hypervisor.clh]\npath = \"" << CAISSON_CH_DOUBLE << "\"\nguest_dir = \"" << guest
                                 << "\"\ndefault_memory = 1024\ndefault_maxmemory = 4096\ndefault_maxvcpus = 4\n"
                                    "memory_method = \"virtio-mem\"\n";
    fs::permissions(configuration, fs::perms::owner_read | fs::perms::owner_write);
  }

  void TearDown() override {
    if (listed())
      home.caisson({"rm", "a"});
  }

  bool listed() const { return home.caisson({"list", "--json"}).out.find("\"a\"") != std::string::npos; }

  json status() const {
    auto got = home.caisson({"status", "a", "--json"});
    EXPECT_EQ(got.status, 0) << got.err;
    return json::parse(got.out, nullptr, false);
  }

  /// What every side says: the VMM, the guest's word in the status, and the guest's own file.
  void expect_figures(std::uint64_t memory_bytes, int vcpus) const {
    auto s = status();
    ASSERT_EQ(s.value("state", ""), "SANDBOX_STATE_RUNNING") << s;
    const auto figure = [&](const char* key) { return std::stoull(s["memory"][key].get<std::string>()); };
    EXPECT_EQ(figure("boot_bytes"), gib);
    EXPECT_EQ(figure("boot_bytes") + figure("plugged_bytes"), memory_bytes);
    EXPECT_EQ(figure("guest_bytes"), memory_bytes);
    EXPECT_EQ(figure("target_bytes"), memory_bytes);
    EXPECT_EQ(s["memory"]["method"], "MEMORY_METHOD_VIRTIO_MEM");
    EXPECT_EQ(s["vcpus"]["online"], vcpus);
    EXPECT_EQ(s["vcpus"]["plugged"], vcpus);
    EXPECT_EQ(home.caisson({"exec", "a", "--", "nproc"}).out, std::to_string(vcpus) + "\n");
    EXPECT_EQ(guest_total(), total_at_boot + memory_bytes - gib);
  }

  /// MemTotal as the guest's own /proc/meminfo has it.
  std::uint64_t guest_total() const {
    std::istringstream meminfo{home.caisson({"exec", "a", "--", "cat", "/proc/meminfo"}).out};
    std::string key;
    std::uint64_t kib = 0;
    meminfo >> key >> kib;
    EXPECT_EQ(key, "MemTotal:");
    return kib * 1024;
  }

  void expect_converged(std::vector<std::string> words) const {
    words.insert(words.begin(), {"resize", "a"});
    words.push_back("--json");
    auto got = home.caisson(words);
    EXPECT_EQ(got.status, 0) << got.err << got.out;
    EXPECT_EQ(json::parse(got.out, nullptr, false).value("state", ""), "OPERATION_STATE_CONVERGED") << got.out;
  }

  engine_home home{"ch"};
  std::uint64_t total_at_boot = 0;
  const std::string configuration = home.directory() + "/configuration.toml";
};

TEST_F(cloud_hypervisor_cli, a_life_with_an_engine_that_is_killed_in_it) {
  auto got = home.caisson({"backends", "cloud-hypervisor", "--config", configuration});
  EXPECT_EQ(got.status, 0) << got.err;
  for (const char* part : {CAISSON_CH_DOUBLE, "Cloud Hypervisor v5", "memory by virtio-mem  yes", "memory by DIMM"})
    EXPECT_NE(got.out.find(part), std::string::npos) << part << " in " << got.out;

  got = home.caisson({"run", "--config", configuration, "--name", "a", "--detach"});
  ASSERT_EQ(got.status, 0) << got.err;
  const auto made = status();
  EXPECT_EQ(made["hypervisor"], "cloud-hypervisor");
  const auto id = made["id"].get<std::string>();
  const auto vmm = static_cast<pid_t>(std::stol(made["vmm_pid"].get<std::string>()));
  EXPECT_EQ(fs::read_symlink("/proc/" + std::to_string(vmm) + "/exe"), fs::canonical(CAISSON_CH_DOUBLE));
  total_at_boot = guest_total();
  EXPECT_GT(total_at_boot, gib / 2);
  expect_figures(gib, 1);

  expect_converged({"--memory", "2G"});
  expect_converged({"--cpus", "2"});
  expect_figures(2 * gib, 2);

  EXPECT_EQ(home.caisson({"exec", "a", "--", "sh", "-c", "exit 7"}).status, 7);
  EXPECT_EQ(home.caisson({"exec", "a", "--", "echo", "hello"}).out, "hello\n");
  EXPECT_EQ(home.caisson({"exec", "-i", "a", "--", "cat"}, "both ways\n").out, "both ways\n");
  got = home.caisson({"exec", "a", "--", "no-such-program"});
  EXPECT_EQ(got.status, 127);
  EXPECT_NE(got.err.find("no-such-program"), std::string::npos) << got.err;

  got = home.caisson({"resize", "a", "--memory", "8G"});
  EXPECT_EQ(got.status, 2);
  EXPECT_NE(got.err.find("4 GiB"), std::string::npos) << got.err;

  const auto killed = home.engine_pid();
  ASSERT_TRUE(home.end_engine(SIGKILL));
  EXPECT_TRUE(fs::exists("/proc/" + std::to_string(vmm))) << "the VM does not end with the engine";
  EXPECT_EQ(home.caisson({"exec", "a", "--", "sh", "-c", "exit 9"}).status, 9) << "a new engine, the same guest";
  EXPECT_NE(home.engine_pid(), killed);
  const auto found = status();
  EXPECT_EQ(found["id"], id);
  EXPECT_EQ(found["vmm_pid"], made["vmm_pid"]);
  expect_figures(2 * gib, 2);

  expect_converged({"--memory", "1G"});
  expect_figures(gib, 2);
  expect_converged({"--memory", "1536M", "--cpus", "1"});
  expect_figures(gib + gib / 2, 1);

  got = home.caisson({"rm", "a"});
  EXPECT_EQ(got.status, 0) << got.err;
  EXPECT_TRUE(gone(vmm, 30));
  EXPECT_FALSE(listed());
  for (const auto& file : home.run_files())
    EXPECT_EQ(file.string().find(id), std::string::npos) << file << " is left behind";
  const auto engine = home.engine_pid();
  EXPECT_TRUE(engine == 0 || gone(engine, 60)) << "it ends by itself";
  for (const auto pid : home.processes())
    EXPECT_TRUE(gone(pid, 60)) << "process " << pid << " is left behind";
  EXPECT_FALSE(fs::exists(home.run_directory() + "/engine.sock"));
}

} // namespace
} // namespace caisson::test
