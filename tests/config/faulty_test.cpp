#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "tests/config/support.hpp"

/// Every file of faulty/ against expected.txt: the exact messages, in order. After a change of wording write it anew
/// with CAISSON_UPDATE=1 in the environment, and read the difference.
namespace caisson::config {
namespace {

using namespace testing;
namespace fs = std::filesystem;

fs::path directory() {
  const char* root = std::getenv("CAISSON_SOURCE_DIR");
  return fs::path{root ? root : "."} / "tests/config/faulty";
}

std::string said_about(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  sources from;
  from.path = file.filename().string();
  from.files.push_back({from.path, text.str()});
  auto facts = host({"/usr/bin/cloud-hypervisor", "/usr/bin/qemu-system-aarch64", "/usr/share/AAVMF/AAVMF_CODE.fd"});
  facts.backends = {{"qemu", {"x86_64", "aarch64"}}, {"cloud-hypervisor", {"x86_64"}}, {"simulated", {}}};
  const auto report = check(from, {}, facts);
  std::string out = file.filename().string() + (report.ok() ? ": loads\n" : ": refused\n");
  for (const auto& each : report.problems())
    out += (each.severity() == v1::CONFIG_SEVERITY_ERROR ? "  error    " : "  warning  ") + each.text() + '\n';
  for (const auto& each : report.adaptations())
    if (each.where().find("built-in") == std::string::npos)
      out += "  adapted  " + each.where() + ": " + each.key() + " = " + each.asked() + ": " + each.used() +
             " is used: " + each.why() + '\n';
  return out;
}

TEST(faulty_files, are_told_exactly) {
  std::vector<fs::path> files;
  for (const auto& each : fs::directory_iterator(directory()))
    if (each.path().extension() == ".toml")
      files.push_back(each.path());
  std::sort(files.begin(), files.end());
  ASSERT_GE(files.size(), 120u);

  std::string all;
  for (const auto& each : files) {
    const auto said = said_about(each);
    EXPECT_NE(said.find("\n  "), std::string::npos) << each << " loads without a word";
    const bool must_load = each.filename().string().starts_with("said_");
    EXPECT_EQ(said.find(": loads\n") != said.npos, must_load) << said;
    all += said;
  }
  const auto expected = directory() / "expected.txt";
  if (std::getenv("CAISSON_UPDATE"))
    std::ofstream(expected) << all;
  std::ifstream in(expected);
  std::stringstream text;
  text << in.rdbuf();
  std::istringstream is_now{all}, was{text.str()};
  std::string a, b, file;
  while (true) {
    const bool more = static_cast<bool>(std::getline(is_now, a));
    if (!static_cast<bool>(std::getline(was, b)) && !more)
      break;
    if (!a.starts_with("  "))
      file = a;
    ASSERT_EQ(a, b) << "in " << file;
    a.clear();
    b.clear();
  }
}

} // namespace
} // namespace caisson::config
