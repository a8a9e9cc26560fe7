// Recordings of a real Cloud Hypervisor, every line of them, against the double over its real wire.
//
// What differs between the machine of a recording and this one is masked here and nowhere else; the rules stand in `masks`.

#include <gtest/gtest.h>
#include <signal.h>

#include <cctype>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <regex>
#include <set>

#include "tests/backends/cloud_hypervisor_double/double_process.hpp"

namespace caisson::cloud_hypervisor::tests {
namespace {

namespace fs = std::filesystem;

/// What a recording's machine had under /lab. Everything else there did not exist.
void furnish(const scratch& lab, const std::set<std::string>& folders) {
  lab.file("vmlinux", "\x7f" "ELF");
  lab.file("lab/g.cpio", "070701");
  for (const auto& f : folders) {
    for (const auto* image : {"disk.img", "disk2.img", "disk3.img"})
      lab.file(f + "/" + image, "", 16u << 20);
    lab.file(f + "/odd.img", "", 1'000'000);
    lab.file(f + "/junk", std::string(1200, 'j'));
  }
}

/// Both recordings were made on a host whose KVM runs no Linux guest and saves no nested state.
const std::vector<std::string> host_of_recordings{"--fault", "guest=none", "--fault", "nested_state=missing"};

constexpr std::string_view recorded_root = "/lab/";

class masks {
public:
  explicit masks(std::string root) : root_{std::move(root)} {}

  /// 1. Paths: the recording's /lab is a directory of this test.
  [[nodiscard]] std::string to_here(std::string text) const { return replaced(std::move(text), recorded_root, root_); }

  [[nodiscard]] std::string canonical(const std::string& body) const {
    const auto text = replaced(body, root_, recorded_root);
    auto parsed = json::parse(text, nullptr, false);
    if (!parsed.is_object())
      return text;
    // 2. The VMM's pid, and the version that its build calls itself.
    for (const auto* name : {"pid", "build_version"})
      if (parsed.contains(name))
        parsed[name] = "*";
    // 3. Addresses of network devices that nobody chose: the host's always, the guest's where it begins with 2e (the
    //    VMM's own random ones).
    if (parsed.contains("config") && parsed["config"].contains("net") && parsed["config"]["net"].is_array())
      for (auto& n : parsed["config"]["net"])
        for (const auto* name : {"host_mac", "mac"})
          if (n.contains(name) && n[name].is_string() && (std::string_view{name} == "host_mac" || n[name].get<std::string>().starts_with("2e:")))
            n[name] = "*";
    // 4. Order within two maps that the VMM keeps unordered: the device tree, and the counters.
    if (parsed.contains("device_tree") && parsed["device_tree"].is_object())
      parsed["device_tree"] = ordered(parsed["device_tree"], false);
    else if (!parsed.contains("config") && !parsed.empty() && parsed.front().is_object())
      parsed = ordered(parsed, true);
    return parsed.dump();
  }

  /// 5. A VMM that dies of a request answers this or nothing; which of them is a race in it.
  static bool died(const std::string& code, const std::string& body) {
    return code == "---" || body == "[\"Error from API\",\"API response receive error\",\"receiving on a closed channel\"]";
  }

private:
  static std::string replaced(std::string text, std::string_view from, std::string_view to) {
    for (std::size_t at = 0; (at = text.find(from, at)) != text.npos; at += to.size())
      text.replace(at, from.size(), to);
    return text;
  }

  static json ordered(const json& map, bool inner) {
    std::map<std::string, json> sorted;
    for (const auto& [name, value] : map.items())
      sorted[name] = inner && value.is_object() ? ordered(value, false) : value;
    json out = json::object();
    for (auto& [name, value] : sorted)
      out[name] = std::move(value);
    return out;
  }

  std::string root_;
};

struct recording {
  std::string file, release;
};

class replayed : public ::testing::TestWithParam<recording> {};

TEST_P(replayed, every_reply_agrees) {
  const auto& [file, release] = GetParam();
  std::ifstream in{std::string{CAISSON_RECORDINGS} + "/" + file};
  ASSERT_TRUE(in) << "there is no recording " << file << " in " << CAISSON_RECORDINGS;
  std::vector<json> lines;
  std::set<std::string> folders;
  const std::regex folder{"/lab/(run/[a-z0-9]+)"};
  for (std::string line; std::getline(in, line);) {
    lines.push_back(json::parse(line));
    for (std::sregex_iterator it{line.begin(), line.end(), folder}, end; it != end; ++it)
      folders.insert((*it)[1]);
  }
  const scratch lab;
  furnish(lab, folders);
  const masks mask{lab.path()};

  struct process {
    std::unique_ptr<double_process> vmm;
    bool has_config = false, asked_to_end = false;
  };
  std::vector<process> running; // the last one is spoken to
  std::size_t started = 0, compared = 0;
  std::size_t unrecorded_deletes = 0;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const auto& line = lines[i];
    SCOPED_TRACE("line " + std::to_string(i + 1) + ": " + line.dump().substr(0, 200));
    if (line.contains("start")) {
      if (!running.empty() && running.back().vmm->has_ended())
        running.pop_back();
      auto arguments = host_of_recordings;
      arguments.insert(arguments.end(), {"--profile", release});
      for (const auto& a : line["args"])
        arguments.push_back(a);
      running.push_back({std::make_unique<double_process>(lab.path("vmm" + std::to_string(++started)), arguments)});
      continue;
    }
    ASSERT_FALSE(running.empty());
    auto& p = running.back();
    if (line.contains("exit")) {
      const int expected = line["exit"];
      if (expected < 0)
        p.vmm->signal(-expected);
      else if (!p.asked_to_end)
        p.vmm->signal(SIGTERM); // the recorder's own way to end one
      EXPECT_EQ(p.vmm->wait(), expected);
      running.pop_back();
      ++compared;
      continue;
    }
    const std::string endpoint = line["ep"], code = line["code"], reply = line["reply"];
    std::optional<std::string> body;
    if (!line["body"].is_null())
      body = mask.to_here(line["body"]);
    // The recorder cleaned up once without writing it down: a vm.create that succeeds although the lines before left a
    // configuration. (The real one refuses such a sequence too.)
    if (endpoint == "vm.create" && code == "204" && p.has_config) {
      EXPECT_EQ(p.vmm->put("vm.delete").code, "204");
      ++unrecorded_deletes;
    }
    const auto got = p.vmm->ask(line["m"], endpoint, body);
    if (masks::died(code, reply)) {
      EXPECT_TRUE(masks::died(got.code, got.body)) << got.code << " " << got.body;
      // Only its own death ends a process: not a refused connection of a later line.
      if (p.vmm->wait() != 1)
        ADD_FAILURE() << "the double did not die of it";
    } else {
      EXPECT_EQ(got.code, code);
      EXPECT_EQ(mask.canonical(got.body), mask.canonical(reply));
    }
    ++compared;
    if (endpoint == "vm.create" && code == "204")
      p.has_config = true;
    if (endpoint == "vm.delete" && code == "204")
      p.has_config = false;
    p.asked_to_end = p.asked_to_end || (endpoint == "vmm.shutdown" && code == "200");
  }
  EXPECT_EQ(compared + started, lines.size());
  EXPECT_LE(unrecorded_deletes, 1u);
}

INSTANTIATE_TEST_SUITE_P(recording, replayed,
                         ::testing::Values(recording{"v53.0.jsonl", "v53.0"}, recording{"v53.0-devices.jsonl", "v53.0"},
                                           recording{"v51.1-devices.jsonl", "v51.1"},
                                           recording{"head-devices.jsonl", "head"}),
                         [](const auto& i) {
                           auto name = i.param.file.substr(0, i.param.file.rfind('.'));
                           for (auto& c : name)
                             c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           return name;
                         });

} // namespace
} // namespace caisson::cloud_hypervisor::tests
