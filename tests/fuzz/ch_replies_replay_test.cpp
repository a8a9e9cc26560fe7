#include "tests/fuzz/replay.hpp"

#include <cstdlib>

namespace {

TEST(ch_replies_fuzz_replay, keeps_its_promises_over_every_committed_input) {
  const char* root = std::getenv("CAISSON_SOURCE_DIR");
  ASSERT_NE(root, nullptr);
  EXPECT_GT(replay(std::filesystem::path{root} / "tests/fuzz/ch_replies_seeds", ".seed"), 20);
}

} // namespace
