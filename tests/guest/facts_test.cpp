// What the agent reads of its kernel: pure parts.

#include "guest/agent/facts.hpp"

#include <gtest/gtest.h>

namespace caisson::agent {
namespace {

std::string zones(std::uint64_t dma_pages, std::uint64_t workload_pages, std::uint64_t movable_pages) {
  return "Node 0, zone      DMA\n  per-node stats\n      nr_inactive_anon 10\n  pages free     " +
         std::to_string(dma_pages) + "\n        boost    0\n        min      64\n      nr_zone_inactive_anon " +
         std::to_string(workload_pages) +
         "\n      nr_zone_active_file 0\n  pagesets\n    cpu: 0\n              count: 1\n" +
         "Node 0, zone  Movable\n  pages free     " + std::to_string(movable_pages) +
         "\n      nr_zone_inactive_anon 100000\n";
}

TEST(online_as, movable_as_long_as_the_kernel_has_room_for_maps) {
  EXPECT_STREQ(online_as(zones(40'000, 0, 0)), "online_movable");
  EXPECT_STREQ(online_as(zones(10'000, 0, 0)), "online_kernel");
  EXPECT_STREQ(online_as(zones(10'000, 0, 1'000'000)), "online_kernel") << "what is movable holds no map";
  EXPECT_STREQ(online_as(zones(10'000, 30'000, 0)), "online_movable") << "a workload at its peak changes nothing";
}

TEST(online_as, movable_where_nothing_is_known) {
  EXPECT_STREQ(online_as(""), "online_movable");
  EXPECT_STREQ(online_as("Node 0, zone\nnonsense\n\n"), "online_movable");
}

} // namespace
} // namespace caisson::agent
