#pragma once

// Runs a fuzz target once over every committed input, with whatever compiler the tests are built with.

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <sstream>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

/// How many there were.
inline int replay(const std::filesystem::path& directory, const char* extension) {
  int count = 0;
  for (const auto& each : std::filesystem::directory_iterator(directory)) {
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
