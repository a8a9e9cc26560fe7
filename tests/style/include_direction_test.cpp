// The arrows of ARCHITECTURE.md, kept: which folder may include which, and where foreign libraries end.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

const fs::path root = CAISSON_SOURCE_DIR;

struct include_line {
  fs::path file;  // from the root
  int line = 0;
  std::string target;  // as written
};

std::vector<include_line> includes_below(const fs::path& folder) {
  std::vector<include_line> found;
  static const std::regex form{R"(^\s*#\s*include\s*[<"]([^>"]+)[>"])"};
  if (!fs::exists(root / folder))
    return found;
  for (const auto& entry : fs::recursive_directory_iterator{root / folder}) {
    auto ending = entry.path().extension();
    if (ending != ".cpp" && ending != ".hpp" && ending != ".h" && ending != ".cc")
      continue;
    std::ifstream in{entry.path()};
    int number = 0;
    for (std::string text; std::getline(in, text);) {
      ++number;
      std::smatch m;
      if (std::regex_search(text, m, form))
        found.push_back({fs::relative(entry.path(), root), number, m[1]});
    }
  }
  return found;
}

std::string place(const include_line& i) {
  return i.file.string() + ":" + std::to_string(i.line) + " includes " + i.target;
}

// Folder -> the project's folders that it may include beside itself. The longest matching prefix is its rule.
const std::map<std::string, std::set<std::string>> allowed{
    {"messages", {}},
    {"guest/protocol", {"messages"}},
    {"guest/agent", {"messages", "guest/protocol"}},
    {"config", {"messages"}},
    {"reactor", {"messages"}},
    {"backends", {"messages", "guest/protocol", "reactor"}},
    {"backends/host", {"messages", "reactor", "backends/backend.hpp"}},
    {"backends/qemu", {"messages", "backends/backend.hpp", "backends/host", "backends/firmware.hpp"}},
    {"backends/simulated", {"messages", "guest/protocol", "backends/backend.hpp"}},
    {"actors", {"messages", "config", "guest/protocol", "backends/backend.hpp"}},
    {"include", {}},
    {"engine", {"messages", "config", "guest/protocol", "reactor", "backends", "actors", "include", "caisson"}},
    {"frontends", {"messages", "config", "engine/service.hpp", "engine/directories.hpp", "engine/config_facts.hpp", "backends/firmware.hpp", "include", "caisson"}},
};

const std::set<std::string> top_folders{"messages", "config",   "reactor", "guest",     "backends", "actors",
                                        "engine",   "frontends", "tests",   "bench",     "examples", "include"};

std::string rule_of(const fs::path& file) {
  std::string best;
  for (const auto& [folder, may] : allowed)
    if (file.string().starts_with(folder + "/") && folder.size() > best.size())
      best = folder;
  return best;
}

bool inside(const std::string& target, const std::string& folder) {
  return target == folder || target.starts_with(folder + "/");
}

TEST(include_direction, arrows_run_one_way) {
  int seen = 0;
  for (const auto& top : {"messages", "config", "reactor", "guest", "backends", "actors", "include", "engine", "frontends"}) {
    for (const auto& i : includes_below(top)) {
      auto first = i.target.substr(0, i.target.find('/'));
      if (i.target.find('/') == std::string::npos || top_folders.count(first) == 0)
        continue;
      ++seen;
      auto rule = rule_of(i.file);
      ASSERT_FALSE(rule.empty()) << i.file << " stands in no folder that has a rule";
      bool fine = inside(i.target, rule);
      for (const auto& folder : allowed.at(rule))
        fine = fine || inside(i.target, folder);
      EXPECT_TRUE(fine) << place(i) << ": " << rule << "/ may not include it; see the arrows in ARCHITECTURE.md";
    }
  }
  EXPECT_GT(seen, 50) << "the test has lost sight of the sources";
}

struct foreign {
  std::string prefix;
  std::vector<std::string> folders;
};

TEST(include_direction, foreign_libraries_end_in_their_folder) {
  const std::vector<foreign> ends{
      {"libvirt/", {"backends/qemu", "tests/backends/qemu", "bench"}},
      {"toml++/", {"config", "tests", "bench"}},
      {"grpcpp/", {"frontends/grpc", "tests/frontends"}},
      {"boost/", {"reactor", "backends/qemu", "backends/cloud-hypervisor", "tests", "bench"}},
      {"sqlite3.h", {"actors/journal", "tests"}},
      {"pugixml.hpp", {"backends/qemu", "tests"}},
      {"CLI/", {"frontends/cli", "frontends/daemon", "tests", "bench"}},
      {"spdlog/", {"frontends", "tests"}},
      {"caf/", {"messages", "actors", "backends", "engine", "tests", "bench"}},
  };
  for (const auto& top : {"messages", "config", "reactor", "guest", "backends", "actors", "include", "engine", "frontends",
                          "examples"})
    for (const auto& i : includes_below(top))
      for (const auto& f : ends) {
        if (!i.target.starts_with(f.prefix))
          continue;
        bool fine = false;
        for (const auto& folder : f.folders)
          fine = fine || i.file.string().starts_with(folder + "/");
        EXPECT_TRUE(fine) << place(i) << ": this library ends elsewhere";
      }
}

TEST(include_direction, public_headers_need_the_standard_library_only) {
  for (const auto& i : includes_below("include"))
    EXPECT_TRUE(i.target.find('/') == std::string::npos || i.target.starts_with("caisson/")) << place(i);
}

} // namespace
