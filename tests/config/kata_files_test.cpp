#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/config/support.hpp"

/// Kata's own files, as they are. They are not part of this project: CAISSON_KATA_CONFIGS names their directory.
namespace caisson::config {
namespace {

using namespace testing;

struct kata_files : ::testing::TestWithParam<const char*> {
  std::string path;
  void SetUp() override {
    const char* directory = std::getenv("CAISSON_KATA_CONFIGS");
    if (!directory)
      GTEST_SKIP() << "CAISSON_KATA_CONFIGS is not set: Kata's own files are not checked";
    path = std::string{directory} + '/' + GetParam();
  }
};

TEST_P(kata_files, load_as_they_are) {
  const auto from = read_sources(path, true, read_host_facts());
  const auto out = check(from, {}, host());
  for (const auto& each : out.problems())
    EXPECT_NE(each.severity(), v1::CONFIG_SEVERITY_ERROR) << each.text();
  EXPECT_TRUE(out.ok());
}

INSTANTIATE_TEST_SUITE_P(all, kata_files,
                         ::testing::Values("go-qemu-amd64.toml", "rs-qemu-amd64.toml", "go-clh-amd64.toml",
                                           "go-qemu-arm64.toml"));

struct kata_sandboxes : kata_files {};

TEST_P(kata_sandboxes, give_a_sandbox_where_the_backend_is_there) {
  const auto out = resolve({}, read_sources(path, true, read_host_facts()), host());
  ASSERT_TRUE(out.config) << texts(out.problems);
  const auto& box = out.config->sandbox();
  EXPECT_EQ(box.boot_memory_bytes(), std::uint64_t{2} << 30);
  EXPECT_EQ(box.memory_slots(), 10u);
  EXPECT_EQ(box.memory_method(), v1::MEMORY_METHOD_DIMM);
  EXPECT_EQ(box.cpu_features(), "pmu=off");
}

INSTANTIATE_TEST_SUITE_P(qemu, kata_sandboxes, ::testing::Values("go-qemu-amd64.toml", "rs-qemu-amd64.toml"));

struct kata_refusals : kata_files {};

TEST_P(kata_refusals, say_what_is_missing) {
  const auto out = resolve({}, read_sources(path, true, read_host_facts()), host());
  EXPECT_FALSE(out.config);
  EXPECT_NE(texts(out.problems).find("backends: qemu (x86_64), simulated"), std::string::npos) << texts(out.problems);
}

INSTANTIATE_TEST_SUITE_P(others, kata_refusals, ::testing::Values("go-clh-amd64.toml", "go-qemu-arm64.toml"));

TEST(shipped_file, is_without_fault) {
  const char* root = std::getenv("CAISSON_SOURCE_DIR");
  ASSERT_NE(root, nullptr);
  const auto from = read_sources(std::string{root} + "/config/configuration.toml", true, read_host_facts());
  const auto out = resolve({}, from, host());
  ASSERT_TRUE(out.config) << texts(out.problems);
  EXPECT_EQ(out.config->warnings_size(), 0);
  EXPECT_EQ(out.config->sandbox().boot_memory_bytes(), std::uint64_t{1} << 30);
  EXPECT_EQ(out.config->sandbox().max_memory_bytes(), std::uint64_t{4} << 30);
  EXPECT_EQ(out.config->sandbox().memory_slots(), 10u);
}

} // namespace
} // namespace caisson::config
