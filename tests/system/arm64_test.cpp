// ARM64 sandboxes on a real QEMU, from the command line: QEMU's virt machine, Debian's kernel, the cross-compiled
// agent. And, since it is the other user of firmware, an x86_64 one started by UEFI.

#include <gtest/gtest.h>

#include <unistd.h>

#include <nlohmann/json.hpp>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>

#include "tests/system/engine_home.hpp"

namespace caisson::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint64_t mib = 1 << 20;
constexpr int boot_s = 240; // always emulated, beside other work
constexpr const char* firmware_code = "/usr/share/AAVMF/AAVMF_CODE.fd";

class arm64 : public ::testing::Test {
protected:
  static void SetUpTestSuite() {
    home = std::make_unique<engine_home>("arm64");
    directory = home->directory();
  }

  static void TearDownTestSuite() { home.reset(); }

  void SetUp() override {
    for (const char* file : {"Image", "initramfs.cpio", "manifest.json"})
      if (!fs::exists(fs::path{CAISSON_ARM64_GUEST} / file))
        GTEST_SKIP() << "there is no ARM64 guest (" << CAISSON_ARM64_GUEST << '/' << file
                     << "): build the target guest_image_aarch64";
    if (::access("/usr/bin/qemu-system-aarch64", X_OK) != 0)
      GTEST_SKIP() << "/usr/bin/qemu-system-aarch64 is not there: install the package qemu-system-arm";
  }

  void TearDown() override {
    if (!sandbox.empty())
      caisson({"rm", "--force", sandbox}, 60);
  }

  static program_result caisson(std::vector<std::string> more, int at_most_s = 120) {
    return home->caisson(std::move(more), {}, at_most_s);
  }

  /// A configuration of 512 MiB that may grow to 2 GiB.
  static std::string configuration(const std::string& more) {
    auto path = directory + "/configuration.toml";
    std::ofstream{path} << "[hypervisor.qemu]\ndefault_memory = 512\ndefault_maxmemory = 2048\n" << more;
    return path;
  }

  program_result boot(const std::string& name, const std::string& more, std::vector<std::string> words = {}) {
    sandbox = name;
    words.insert(words.begin(), {"run", "--config", configuration(more), "--name", name, "--detach"});
    return caisson(std::move(words), boot_s);
  }

  json status() const {
    auto got = caisson({"status", sandbox, "--json"});
    EXPECT_EQ(got.status, 0) << got.err;
    return json::parse(got.out, nullptr, false);
  }

  static std::uint64_t figure(const json& s, const char* key) {
    return std::stoull(s["memory"][key].get<std::string>());
  }

  std::string in_guest(std::vector<std::string> words) const {
    words.insert(words.begin(), {"exec", sandbox, "--"});
    auto got = caisson(std::move(words));
    EXPECT_EQ(got.status, 0) << got.err;
    return got.out;
  }

  std::uint64_t mem_total() const {
    auto text = in_guest({"awk", "/MemTotal/ {print $2}", "/proc/meminfo"});
    return text.empty() ? 0 : std::stoull(text) * 1024;
  }

  void grows_and_shrinks() {
    auto before = mem_total();
    auto got = caisson({"resize", sandbox, "--memory", "1536M"});
    EXPECT_EQ(got.status, 0) << got.err << got.out;
    auto s = status();
    EXPECT_EQ(figure(s, "plugged_bytes"), 1024 * mib);
    EXPECT_GT(mem_total(), before + 960 * mib);
    got = caisson({"resize", sandbox, "--memory", "640M"});
    EXPECT_EQ(got.status, 0) << got.err << got.out;
    EXPECT_EQ(figure(status(), "plugged_bytes"), 128 * mib);
    EXPECT_LT(mem_total(), before + 192 * mib);
  }

  /// The variable stores that the run directory of the engine holds.
  static std::vector<std::string> stores() {
    std::vector<std::string> out;
    for (auto& file : home->run_files())
      if (file.filename() == "firmware-variables.fd")
        out.push_back(std::move(file));
    return out;
  }

  void expect_processors(int online, unsigned milli, const std::string& cpu_max) const {
    auto v = status()["vcpus"];
    EXPECT_EQ(v["online"], online);
    EXPECT_EQ(v["plugged"], 2) << "the virt machine takes none out: one that the guest has off stays plugged";
    EXPECT_EQ(v["target_milli"], milli);
    EXPECT_EQ(in_guest({"nproc"}), std::to_string(online) + "\n");
    EXPECT_EQ(in_guest({"cat", "/sys/fs/cgroup/workload/cpu.max"}), cpu_max + "\n");
  }

  void processors_go_offline_and_come_back() {
    const char* whole = "max 100000";
    expect_processors(2, 2000, whole);
    EXPECT_EQ(caisson({"resize", sandbox, "--cpus", "1"}).status, 0);
    expect_processors(1, 1000, whole);
    EXPECT_EQ(in_guest({"cat", "/sys/devices/system/cpu/offline"}), "1\n");
    EXPECT_EQ(caisson({"resize", sandbox, "--cpus", "2"}).status, 0);
    expect_processors(2, 2000, whole);
    EXPECT_EQ(caisson({"resize", sandbox, "--cpus", "1.5"}).status, 0);
    expect_processors(2, 1500, "150000 100000");
    auto refused = caisson({"resize", sandbox, "--cpus", "4"});
    EXPECT_EQ(refused.status, 2) << refused.err;
    for (const char* part : {"at most 2", "cannot plug more", "default_vcpus"})
      EXPECT_NE(refused.err.find(part), std::string::npos) << part << " in " << refused.err;
    expect_processors(2, 1500, "150000 100000");
  }

  std::string sandbox;
  static std::unique_ptr<engine_home> home;
  static std::string directory;
};

std::unique_ptr<engine_home> arm64::home;
std::string arm64::directory;

class arm64_firmware : public arm64 {
protected:
  void SetUp() override {
    arm64::SetUp();
    if (!IsSkipped() && !fs::exists(firmware_code))
      GTEST_SKIP() << firmware_code << " is not there: install the package qemu-efi-aarch64";
  }

  static std::string dimms() {
    return "machine_type = \"virt\"\nmemory_method = \"dimm\"\nfirmware = \"" + std::string{firmware_code} + "\"\n";
  }
};

TEST_F(arm64, runs_and_is_resized_without_firmware) {
  auto made = boot("a", "default_vcpus = 2\ndefault_maxvcpus = 4\n", {"--arch", "aarch64"});
  ASSERT_EQ(made.status, 0) << made.err;
  EXPECT_EQ(in_guest({"uname", "-m"}), "aarch64\n");
  auto s = status();
  EXPECT_EQ(s["architecture"], "aarch64");
  EXPECT_EQ(s["vcpus"]["max"], 2) << "the virt machine plugs no vCPUs, so that there is no room for more";
  EXPECT_EQ(s["guest_features"]["free_page_reporting"], true);
  EXPECT_TRUE(stores().empty());
  grows_and_shrinks();
  processors_go_offline_and_come_back();
}

TEST_F(arm64, dimms_without_firmware_are_refused_before_boot) {
  auto by_file = boot("b", "machine_type = \"virt\"\nmemory_method = \"dimm\"\n");
  auto by_option = boot("b", "", {"--arch", "aarch64", "--memory-method", "dimm"});
  for (const auto& made : {by_file, by_option}) {
    EXPECT_NE(made.status, 0);
    for (const char* part : {"firmware", "/usr/share/AAVMF/AAVMF_CODE.fd", "qemu-efi-aarch64", "virtio"})
      EXPECT_NE(made.err.find(part), made.err.npos) << part << " in " << made.err;
  }
  EXPECT_EQ(caisson({"list", "--json"}).out.find("\"b\""), std::string::npos) << "nothing is left of it";
}

TEST_F(arm64, a_wrong_firmware_is_refused_before_boot) {
  auto small = directory + "/small.fd";
  std::ofstream{small} << std::string(8192, 'x');
  auto made = boot("c", "firmware = \"" + small + "\"\n", {"--arch", "aarch64"});
  EXPECT_NE(made.status, 0);
  EXPECT_NE(made.err.find("exactly 64 MiB"), made.err.npos) << made.err;
  EXPECT_NE(made.err.find("caisson firmware prepare"), made.err.npos) << made.err;
}

TEST_F(arm64, firmware_commands_need_no_engine) {
  std::vector<std::string> elsewhere{CAISSON_PROGRAM, "--state-dir",    directory + "/t",
                                     "--run-dir",     directory + "/u", "firmware"};
  auto firmware = [&](std::vector<std::string> more) {
    more.insert(more.begin(), elsewhere.begin(), elsewhere.end());
    return run_program(more);
  };
  auto listed = firmware({"list", "--arch", "aarch64", "--json"});
  ASSERT_EQ(listed.status, 0) << listed.err;
  for (const auto& each : json::parse(listed.out)["firmware"])
    EXPECT_FALSE(each["auto"].get<bool>() && (each["secure_boot"].get<bool>() || each["enrolled_keys"].get<bool>()))
        << each;
  auto wrong = firmware({"check", "--arch", "aarch64", "/nowhere/code.fd"});
  EXPECT_NE(wrong.status, 0);
  EXPECT_NE(wrong.err.find("qemu-efi-aarch64"), wrong.err.npos) << wrong.err;
  EXPECT_EQ(firmware({"check", "--arch", "vax"}).status, 2);
  EXPECT_EQ(firmware({"list", "--arch", "arm64"}).status, 2);
  EXPECT_EQ(firmware({"check", "--arch", "aarch64", ""}).status, 2);
  EXPECT_FALSE(fs::exists(directory + "/u/engine.sock"));
}

TEST_F(arm64_firmware, runs_and_is_resized_with_firmware) {
  auto made = boot("d", "firmware = \"auto\"\n", {"--arch", "aarch64"});
  ASSERT_EQ(made.status, 0) << made.err;
  EXPECT_EQ(in_guest({"sh", "-c", "test -d /sys/firmware/efi && echo uefi"}), "uefi\n");
  EXPECT_EQ(stores().size(), 1u) << "a variable store of its own";
  grows_and_shrinks();
  EXPECT_EQ(caisson({"rm", "--force", "d"}, 60).status, 0);
  EXPECT_TRUE(stores().empty()) << "which goes with it";
}

TEST_F(arm64_firmware, dimms_that_debians_kernel_would_not_see_are_refused) {
  auto made = boot("e", dimms());
  ASSERT_EQ(made.status, 0) << made.err;
  auto got = caisson({"resize", "e", "--memory", "1G"});
  EXPECT_NE(got.status, 0);
  EXPECT_NE(got.err.find("CONFIG_ACPI_HOTPLUG_MEMORY"), std::string::npos) << got.err;
  EXPECT_EQ(figure(status(), "plugged_bytes"), 0u) << "nothing is plugged that nobody would see";
}

TEST_F(arm64_firmware, dimms_come_and_go_with_a_kernel_that_sees_them) {
  const std::string guest = CAISSON_ARM64_SOURCE_GUEST;
  if (!fs::exists(guest + "/manifest.json"))
    GTEST_SKIP() << "there is no guest with ACPI memory hotplug in " << guest
                 << ": build the target guest_image_aarch64_source "
                 << "(guest/image/build --arch aarch64 --kernel-source), which takes long";
  auto made = boot("g", dimms() + "guest_dir = \"" + guest + "\"\n");
  ASSERT_EQ(made.status, 0) << made.err;
  auto before = mem_total();
  for (int round = 0; round < 2; ++round) {
    auto got = caisson({"resize", "g", "--memory", "1G"});
    ASSERT_EQ(got.status, 0) << got.err << got.out;
    EXPECT_EQ(figure(status(), "plugged_bytes"), 512 * mib);
    EXPECT_GT(mem_total(), before + 480 * mib);
    got = caisson({"resize", "g", "--memory", "512M"});
    ASSERT_EQ(got.status, 0) << got.err << got.out;
    EXPECT_EQ(figure(status(), "plugged_bytes"), 0u);
    EXPECT_LT(mem_total(), before + 32 * mib);
  }
}

TEST_F(arm64_firmware, prepared_images_boot) {
  auto prepared = caisson({"firmware", "prepare", "--arch", "aarch64", "--dir", directory + "/pair", "--json"});
  ASSERT_EQ(prepared.status, 0) << prepared.err;
  auto pair = json::parse(prepared.out);
  auto made = boot("f", "pflashes = [" + pair["firmware"].dump() + ", " + pair["firmware_volume"].dump() + "]\n",
                   {"--arch", "aarch64"});
  ASSERT_EQ(made.status, 0) << made.err;
  EXPECT_EQ(in_guest({"sh", "-c", "test -d /sys/firmware/efi && echo uefi"}), "uefi\n");
}

class x86_firmware : public arm64 {
protected:
  void SetUp() override {
    if (const char* named = std::getenv("CAISSON_TEST_OVMF"))
      code = named;
    if (!fs::exists(code))
      GTEST_SKIP() << code
                   << " is not there: install the package ovmf, or name its OVMF_CODE_4M.fd in CAISSON_TEST_OVMF";
    if (!fs::exists(CAISSON_X86_GUEST "/bzImage"))
      GTEST_SKIP() << "there is no guest (" CAISSON_X86_GUEST "/bzImage): build the target guest_image";
  }

  std::string code = "/usr/share/OVMF/OVMF_CODE_4M.fd";
};

TEST_F(x86_firmware, an_explicit_one_is_honoured) {
  auto made = boot("x", "firmware = \"" + code + "\"\n", {"--arch", "x86_64"});
  ASSERT_EQ(made.status, 0) << made.err;
  EXPECT_EQ(in_guest({"sh", "-c", "test -d /sys/firmware/efi && echo uefi"}), "uefi\n");
  EXPECT_EQ(stores().size(), 1u);
  grows_and_shrinks();
}

} // namespace
} // namespace caisson::test
