#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

/// `caisson config ...` as a person runs it.
namespace {

namespace fs = std::filesystem;

struct ended {
  int status = -1;
  std::string out;
};

struct config_commands : ::testing::Test {
  std::string program;
  fs::path root;
  std::string faulty;

  void SetUp() override {
    const char* named = std::getenv("CAISSON_PROGRAM");
    const char* source = std::getenv("CAISSON_SOURCE_DIR");
    if (!named || !source || !fs::exists(named))
      GTEST_SKIP() << "CAISSON_PROGRAM names no program: the commands are not run";
    program = named;
    faulty = std::string{source} + "/tests/config/faulty/";
    auto pattern = (fs::temp_directory_path() / "caisson-commands-XXXXXX").string();
    root = ::mkdtemp(pattern.data());
  }
  void TearDown() override {
    if (!root.empty())
      fs::remove_all(root);
  }

  std::string write(const std::string& name, const std::string& text) {
    const auto path = (root / name).string();
    std::ofstream(path) << text;
    return path;
  }

  ended run(const std::string& arguments) {
    ended out;
    auto* pipe = ::popen((program + " " + arguments + " 2>&1").c_str(), "r");
    char buffer[4096];
    for (std::size_t got; (got = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;)
      out.out.append(buffer, got);
    const auto status = ::pclose(pipe);
    out.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
    return out;
  }
};

TEST_F(config_commands, check_tells_everything_and_says_so_by_its_exit_status) {
  const auto good = write("good.toml", "[hypervisor.qemu]\ndefault_memory = 512\n");
  const auto fine = run("config check " + good);
  EXPECT_EQ(fine.status, 0) << fine.out;
  EXPECT_NE(fine.out.find(good + ": no errors"), std::string::npos) << fine.out;
  const auto bad = run("config check " + good + ' ' + faulty + "everything_at_once.toml");
  EXPECT_EQ(bad.status, 2);
  EXPECT_NE(bad.out.find("everything_at_once.toml:2:1: hypervisor.qemu.default_memroy = 4096: unknown key"),
            std::string::npos)
      << bad.out;
  EXPECT_NE(bad.out.find("everything_at_once.toml: 8 errors"), std::string::npos) << bad.out;
  EXPECT_EQ(run("config check --lenient " + faulty + "typo_case.toml").status, 0);
}

TEST_F(config_commands, check_as_json) {
  const auto out = run("--json config check " + faulty + "typo_case.toml");
  EXPECT_EQ(out.status, 2);
  const auto json = nlohmann::json::parse(out.out);
  EXPECT_EQ(json["ok"], false);
  EXPECT_EQ(json["reports"][0]["problems"][0]["line"], 2);
  EXPECT_EQ(json["reports"][0]["problems"][0]["nearest"], "default_memory");
}

TEST_F(config_commands, show_names_the_origin_of_every_value) {
  const auto file = write("c.toml", "[hypervisor.qemu]\nmemory_slots = 4\n");
  const auto out = run("config show --set default_memory=2G " + file);
  EXPECT_EQ(out.status, 0) << out.out;
  EXPECT_NE(out.out.find("# " + file + ":2:16"), std::string::npos) << out.out;
  EXPECT_NE(out.out.find("hypervisor.qemu.default_memory = 2048"), std::string::npos);
  EXPECT_NE(out.out.find("# command line"), std::string::npos);
  const auto json = nlohmann::json::parse(run("config show --json --config " + file).out);
  EXPECT_GT(json["values"].size(), 150u);
  EXPECT_EQ(json["dialect"], "page");
}

TEST_F(config_commands, know_every_backend_of_the_build) {
  const auto file = write("c.toml", "[hypervisor.simulated]\ndefault_memory = 512\n");
  EXPECT_EQ(run("config check " + file).status, 0);
  const auto shown = run("config show " + file);
  EXPECT_EQ(shown.status, 0) << shown.out;
  EXPECT_NE(shown.out.find("hypervisor.simulated.default_memory = 512"), std::string::npos) << shown.out;
  EXPECT_NE(run("config schema").out.find("\"simulated\": {"), std::string::npos);
  const auto unknown = run("config show --set hypervisor_name=simulatd " + file);
  EXPECT_EQ(unknown.status, 2);
  EXPECT_NE(unknown.out.find("did you mean simulated?"), std::string::npos) << unknown.out;
}

TEST_F(config_commands, explain_diff_schema_migrate) {
  EXPECT_NE(run("config explain hypervisor.qemu.memory_slots").out.find("DIMM slots"), std::string::npos);
  const auto unknown = run("config explain default_memroy");
  EXPECT_EQ(unknown.status, 2);
  EXPECT_NE(unknown.out.find("did you mean hypervisor.default_memory"), std::string::npos) << unknown.out;
  const auto a = write("a.toml", "[hypervisor.qemu]\nmemory_slots = 4\nenable_virtio_mem = true\n");
  const auto b = write("b.toml", "[hypervisor.qemu]\nmemory_slots = 5\nenable_virtio_mem = true\n");
  EXPECT_EQ(run("config diff " + a + ' ' + a).status, 0);
  const auto differs = run("config diff " + a + ' ' + b);
  EXPECT_EQ(differs.status, 1);
  EXPECT_EQ(differs.out, "hypervisor.memory_slots: 4 -> 5  # " + b + ":2:16\n");
  EXPECT_EQ(nlohmann::json::parse(run("config schema").out)["type"], "object");
  const auto moved = write("m.toml", run("config migrate " + a).out);
  EXPECT_EQ(run("config check " + moved).status, 0);
  EXPECT_EQ(run("config migrate " + faulty + "typo_case.toml").status, 2);
}

} // namespace
