// CONFIG over real files in virtual time: what is told of a change, and what stays in force.

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "actors/config/config.hpp"
#include "actors/events/events.hpp"
#include "actors/journal/journal.hpp"
#include "tests/support/deterministic_system.hpp"

namespace caisson {
namespace {

namespace fs = std::filesystem;

struct config_keeper_test : testing::Test {
  config_keeper_test() {
    char name[] = "/dev/shm/csn-config-XXXXXX";
    top = ::mkdtemp(name);
    file = top + "/configuration.toml";
    write("[hypervisor.qemu]\ndefault_memory = 512\n");
    config_settings set;
    set.host.memory_bytes = std::uint64_t{8} << 30;
    set.host.cpus = 4;
    set.host.architecture = "x86_64";
    set.host.backends = {{"qemu", {}}};
    set.host.search_paths = {file};
    set.host.program_paths = {"/usr/bin"};
    set.host.exists = [](const std::string&) { return true; };
    set.host.list = [this](const std::string& directory) {
      std::vector<std::string> names;
      std::error_code why;
      for (const auto& e : fs::directory_iterator{directory, why})
        names.push_back(e.path().filename().string());
      return names;
    };
    set.now_unix_ms = [] { return std::int64_t{1}; };
    store = std::get<journal_store_ptr>(open_journal_store(":memory:"));
    set.journal = sys.track(sys.system().spawn(journal, store));
    set.events = sys.track(sys.system().spawn(events, set.journal, events_settings{}));
    set.watch = [this](const std::string& path, std::vector<std::string> directories, std::function<void()> changed) {
      watched[path] = std::move(directories);
      tell[path] = std::move(changed);
    };
    keeper = sys.track(sys.system().spawn(config_keeper, std::move(set)));
  }
  ~config_keeper_test() override {
    std::error_code ignored;
    fs::remove_all(top, ignored);
  }

  void write(const std::string& text, const std::string& name = {}) const {
    std::ofstream{name.empty() ? file : name} << text;
  }

  v1::ResolvedConfig resolve(const std::string& path = {}) {
    v1::ResolveConfig ask;
    ask.set_path(path);
    auto answer = sys.ask<v1::ResolvedConfig>(keeper, ask);
    sys.drain();
    return *answer.operator->();
  }

  std::vector<v1::Event> told() const {
    v1::EventsFrom all;
    all.set_from_seq(1);
    auto batch = std::get<v1::EventBatch>(store->events(all));
    return {batch.events().begin(), batch.events().end()};
  }

  std::string top, file;
  tests::deterministic_system sys{1};
  journal_store_ptr store;
  std::map<std::string, std::vector<std::string>> watched;
  std::map<std::string, std::function<void()>> tell;
  config_actor keeper;
};

constexpr std::uint64_t mib = 1024 * 1024;

TEST_F(config_keeper_test, tells_the_differences_of_a_good_change_and_uses_it) {
  EXPECT_EQ(resolve().sandbox().boot_memory_bytes(), 512 * mib);
  ASSERT_TRUE(tell.count("")) << "the default file is watched once it is used";
  write("[hypervisor.qemu]\ndefault_memory = 768\n");
  tell[""]();
  sys.drain();
  auto events = told();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].type(), "config.changed");
  ASSERT_EQ(events[0].config().diffs_size(), 1) << events[0].config().ShortDebugString();
  EXPECT_EQ(events[0].config().diffs(0).before(), "512");
  EXPECT_EQ(events[0].config().diffs(0).after(), "768");
  EXPECT_NE(events[0].config().diffs(0).where().find("configuration.toml:2"), std::string::npos);
  EXPECT_EQ(resolve().sandbox().boot_memory_bytes(), 768 * mib);
}

TEST_F(config_keeper_test, keeps_the_last_good_default_file_and_says_so) {
  resolve();
  write("[hypervisor.qemu]\ndefault_memroy = 768\n");
  tell[""]();
  sys.drain();
  auto events = told();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].type(), "config.refused");
  EXPECT_NE(events[0].text().find("default_memory"), std::string::npos) << events[0].text();
  auto used = resolve();
  EXPECT_EQ(used.sandbox().boot_memory_bytes(), 512 * mib);
  ASSERT_GT(used.warnings_size(), 0);
  EXPECT_NE(used.warnings(used.warnings_size() - 1).text().find("last good"), std::string::npos);
  tell[""]();
  sys.drain();
  EXPECT_EQ(told().size(), 1u) << "the same errors are told once";
  write("[hypervisor.qemu]\ndefault_memory = 512\n");
  tell[""]();
  sys.drain();
  EXPECT_EQ(told().back().type(), "config.changed") << "that it is mended is news";
}

TEST_F(config_keeper_test, refuses_a_named_file_with_errors_even_if_it_was_good) {
  EXPECT_EQ(resolve(file).sandbox().boot_memory_bytes(), 512 * mib);
  write("[hypervisor.qemu]\ndefault_memroy = 768\n");
  v1::ResolveConfig ask;
  ask.set_path(file);
  auto answer = sys.ask<v1::ResolvedConfig>(keeper, ask);
  sys.drain();
  ASSERT_EQ(answer.value(), nullptr);
  EXPECT_EQ(code_of(answer.error()), ec::configuration);
}

TEST_F(config_keeper_test, sees_a_drop_in_that_comes_later) {
  resolve();
  fs::create_directory(top + "/config.d");
  write("[hypervisor.qemu]\nmemory_slots = 4\n", top + "/config.d/10-slots.toml");
  tell[""]();
  sys.drain();
  ASSERT_EQ(told().size(), 1u);
  EXPECT_EQ(told()[0].config().diffs(0).after(), "4");
  EXPECT_EQ(resolve().sandbox().memory_slots(), 4u);
}

} // namespace
} // namespace caisson
