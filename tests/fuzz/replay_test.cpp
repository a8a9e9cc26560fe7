#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

/// Runs the fuzz target once over every committed input, with whatever compiler the tests are built with.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

namespace fs = std::filesystem;

int replay(const fs::path& directory, const char* extension) {
  int count = 0;
  for (const auto& each : fs::directory_iterator(directory)) {
    if (!each.is_regular_file() || each.path().extension() != extension)
      continue;
    std::ifstream in(each.path(), std::ios::binary);
    std::stringstream text;
    text << in.rdbuf();
    const auto bytes = text.str();
    SCOPED_TRACE(each.path());
    EXPECT_EQ(LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()), 0);
    ++count;
  }
  return count;
}

TEST(config_fuzz_replay, keeps_its_promises_over_every_committed_input) {
  const char* root = std::getenv("CAISSON_SOURCE_DIR");
  ASSERT_NE(root, nullptr);
  EXPECT_GT(replay(fs::path{root} / "tests/fuzz/config_seeds", ".toml"), 10);
  EXPECT_GT(replay(fs::path{root} / "tests/config/faulty", ".toml"), 100);
  EXPECT_EQ(replay(fs::path{root} / "config", ".toml"), 1);
}

} // namespace
