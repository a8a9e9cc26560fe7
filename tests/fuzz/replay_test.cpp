#include "tests/fuzz/replay.hpp"

#include <cstdlib>

namespace {

TEST(config_fuzz_replay, keeps_its_promises_over_every_committed_input) {
  const char* root = std::getenv("CAISSON_SOURCE_DIR");
  ASSERT_NE(root, nullptr);
  const std::filesystem::path from{root};
  EXPECT_GT(replay(from / "tests/fuzz/config_seeds", ".toml"), 10);
  EXPECT_GT(replay(from / "tests/config/faulty", ".toml"), 100);
  EXPECT_EQ(replay(from / "config", ".toml"), 1);
}

} // namespace
