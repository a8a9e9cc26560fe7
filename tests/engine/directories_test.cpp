#include "engine/directories.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "engine/safe_way.hpp"

namespace caisson::engine {
namespace {

namespace fs = std::filesystem;

struct directories_test : ::testing::Test {
  directories_test() {
    char name[] = "/tmp/csn-XXXXXX";
    top = ::mkdtemp(name);
    o.state_directory = top + "/state";
    o.run_directory = top + "/run";
    o.cache_directory = top + "/cache";
    ::unsetenv("CAISSON_GUEST_DIR");
  }
  ~directories_test() override {
    std::error_code ignored;
    fs::remove_all(top, ignored);
  }

  v1::Error refused() {
    v1::Error why;
    prepare_directories(o, &why);
    return why;
  }

  void expect_refused(const std::string& code, std::initializer_list<std::string> words) {
    auto why = refused();
    EXPECT_EQ(why.code(), code) << why.text();
    for (const auto& w : words)
      EXPECT_NE(why.text().find(w), std::string::npos) << "\"" << w << "\" is not in: " << why.text();
  }

  static mode_t mode_of(const std::string& path) {
    struct stat s{};
    return ::stat(path.c_str(), &s) == 0 ? s.st_mode & 07777 : 0;
  }

  std::string top;
  options o;
};

TEST_F(directories_test, makes_private_directories_and_takes_them_again) {
  v1::Error why;
  auto d = prepare_directories(o, &why);
  ASSERT_EQ(why.code(), "") << why.text();
  for (const auto& dir : {d.state, d.run, d.logs, d.cache})
    EXPECT_EQ(mode_of(dir), 0700u) << dir;
  EXPECT_EQ(d.socket, top + "/run/engine.sock");
  EXPECT_EQ(refused().code(), "");
}

TEST_F(directories_test, resolving_makes_nothing) {
  v1::Error why;
  resolve_directories(o, &why);
  EXPECT_EQ(why.code(), "") << why.text();
  EXPECT_TRUE(fs::is_empty(top));
}

TEST_F(directories_test, defaults_depend_on_the_state_directory_and_stay_short) {
  o.run_directory.clear();
  v1::Error why;
  auto one = resolve_directories(o, &why);
  o.state_directory = top + "/" + std::string(200, 'x');
  auto other = resolve_directories(o, &why);
  EXPECT_EQ(why.code(), "") << why.text();
  EXPECT_NE(one.run, other.run);
  EXPECT_LE(other.run.size() + longest_socket_bytes, socket_path_limit_bytes);

  o = {};
  auto plain = resolve_directories(o, &why);
  EXPECT_EQ(why.code(), "") << why.text();
  if (::geteuid() == 0) {
    EXPECT_EQ(plain.state, "/var/lib/caisson");
  }
}

TEST_F(directories_test, a_link_and_its_target_are_one_state_directory) {
  fs::create_directory(top + "/real");
  fs::create_directory_symlink("real", top + "/link");
  o.run_directory.clear();
  v1::Error why;
  o.state_directory = top + "/link/state";
  auto by_link = resolve_directories(o, &why);
  o.state_directory = top + "/link/../real/./state/";
  auto direct = resolve_directories(o, &why);
  EXPECT_EQ(why.code(), "") << why.text();
  EXPECT_EQ(by_link.run, direct.run);
  EXPECT_EQ(by_link.state, top + "/real/state");
}

TEST_F(directories_test, refuses_what_others_can_write) {
  fs::create_directory(o.state_directory);
  ::chmod(o.state_directory.c_str(), 0777);
  expect_refused("host_denied", {"state directory", o.state_directory, "0777", "chmod 0700"});
  ::chmod(o.state_directory.c_str(), 01777);
  expect_refused("host_denied", {"can be written by others"});
  ::chmod(o.state_directory.c_str(), 0770);
  expect_refused("host_denied", {"can be written by others"});
  ::chmod(o.state_directory.c_str(), 0700);
  fs::create_directory(o.run_directory);
  ::chmod(o.run_directory.c_str(), 0707);
  expect_refused("host_denied", {"run directory", o.run_directory});
}

TEST_F(directories_test, refuses_a_way_that_others_can_bend) {
  fs::create_directories(top + "/open/inside");
  ::chmod((top + "/open").c_str(), 0777);
  o.state_directory = top + "/open/inside/state";
  expect_refused("host_denied", {top + "/open", "chmod go-w"});
  ::chmod((top + "/open").c_str(), 01777);
  EXPECT_EQ(refused().code(), "") << refused().text();

  ::chmod((top + "/open").c_str(), 0777);
  fs::create_directory_symlink(top + "/open/inside", top + "/link");
  o.state_directory = top + "/link/other";
  expect_refused("host_denied", {top + "/open"});
  fs::create_directory_symlink("loop", top + "/loop");
  o.state_directory = top + "/loop/state";
  expect_refused("host_denied", {"too many links"});
}

TEST_F(directories_test, refuses_what_belongs_to_somebody_else) {
  if (::geteuid() != 0)
    GTEST_SKIP() << "only root can give files away";
  fs::create_directory(top + "/theirs");
  ASSERT_EQ(::chown((top + "/theirs").c_str(), 65533, 65533), 0);
  o.state_directory = top + "/theirs";
  expect_refused("host_denied", {"belongs to user number 65533"});
  o.state_directory = top + "/theirs/below";
  expect_refused("host_denied", {"belongs to user number 65533"});
}

TEST_F(directories_test, closes_its_own_directory_and_leaves_a_strangers_work_alone) {
  fs::create_directory(o.state_directory);
  ::chmod(o.state_directory.c_str(), 0755);
  EXPECT_EQ(refused().code(), "");
  EXPECT_EQ(mode_of(o.state_directory), 0700u);

  o.state_directory = top + "/work";
  fs::create_directory(o.state_directory);
  ::chmod(o.state_directory.c_str(), 0755);
  std::ofstream(o.state_directory + "/thesis.tex") << "x";
  expect_refused("host_denied", {"other files"});
  EXPECT_EQ(mode_of(o.state_directory), 0755u);

  o.state_directory = top + "/work/thesis.tex";
  expect_refused("host_denied", {"no directory"});
}

TEST_F(directories_test, refuses_long_socket_paths_with_the_numbers) {
  o.run_directory = top + "/" + std::string(60, 'r');
  expect_refused("configuration", {std::to_string(o.run_directory.size()), "107", "at most 42 bytes", "--run-dir"});
  o.run_directory = top + "/" + std::string(42 - top.size() - 1, 'r');
  EXPECT_EQ(refused().code(), "") << refused().text();
}

TEST_F(directories_test, refuses_control_characters_and_carries_the_rest) {
  o.state_directory = top + "/a\nb";
  expect_refused("configuration", {"control characters", "--state-dir"});
  EXPECT_EQ(refused().text().find('\n'), std::string::npos) << "the text itself must be one line";
  o.state_directory = top + "/a\x1b[31mb";
  expect_refused("configuration", {"control characters"});
  o.state_directory = top + "/\xff";
  expect_refused("configuration", {"UTF-8"});
  o.state_directory = top + "/it's, \"so\" <&> \xc3\xa4";
  EXPECT_EQ(refused().code(), "") << refused().text();
  EXPECT_TRUE(fs::is_directory(o.state_directory));
}

TEST_F(directories_test, one_engine_has_a_state_directory) {
  v1::Error why;
  auto d = prepare_directories(o, &why);
  auto first = lock_directory(d.state, d.run);
  ASSERT_TRUE(std::holds_alternative<directory_lock>(first));
  auto second = lock_directory(d.state, d.run);
  ASSERT_TRUE(std::holds_alternative<v1::Error>(second));
  EXPECT_EQ(std::get<v1::Error>(second).code(), "busy");
  EXPECT_NE(std::get<v1::Error>(second).text().find("another engine of this program"), std::string::npos);
  std::get<directory_lock>(first) = directory_lock{-1};
  EXPECT_TRUE(std::holds_alternative<directory_lock>(lock_directory(d.state, d.run)));
}

TEST_F(directories_test, a_busy_directory_names_its_holder_until_he_is_killed) {
  v1::Error why;
  auto d = prepare_directories(o, &why);
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  auto child = ::fork();
  if (child == 0) {
    auto held = lock_directory(d.state, d.run);
    ::write(ready[1], "x", 1) == 1 ? ::pause() : 0;
    ::_exit(0);
  }
  char x;
  ASSERT_EQ(::read(ready[0], &x, 1), 1);
  auto busy = lock_directory(d.state, d.run);
  ASSERT_TRUE(std::holds_alternative<v1::Error>(busy));
  EXPECT_NE(std::get<v1::Error>(busy).text().find("process " + std::to_string(child)), std::string::npos)
      << std::get<v1::Error>(busy).text();
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_TRUE(std::holds_alternative<directory_lock>(lock_directory(d.state, d.run)));
}

TEST_F(directories_test, a_later_engine_finds_the_run_directory_of_the_last_one) {
  v1::Error why;
  auto d = prepare_directories(o, &why);
  { auto lock = lock_directory(d.state, d.run); }
  o.run_directory.clear();
  EXPECT_EQ(resolve_directories(o, &why).run, top + "/run");
  fs::remove_all(top + "/run");
  EXPECT_NE(resolve_directories(o, &why).run, top + "/run");
}

TEST_F(directories_test, finds_a_guest_beside_the_programs_or_says_how_to_make_one) {
  directories d;
  d.programs = top + "/build/bin";
  auto none = find_guest("x86_64", o, d);
  ASSERT_TRUE(std::holds_alternative<v1::Error>(none));
  EXPECT_EQ(std::get<v1::Error>(none).code(), "host_missing");
  EXPECT_NE(std::get<v1::Error>(none).text().find("guest/image/build --arch x86_64 --out " + top + "/build/guest/x86_64"),
            std::string::npos)
      << std::get<v1::Error>(none).text();

  auto make = [&](const std::string& dir, const std::string& manifest) {
    fs::create_directories(dir);
    std::ofstream(dir + "/vmlinux") << "k";
    std::ofstream(dir + "/initramfs.cpio") << "i";
    std::ofstream(dir + "/manifest.json") << manifest;
  };
  make(top + "/build/guest/x86_64", R"({"architecture": "x86_64", "kernel_parameters": "quiet"})");
  auto found = find_guest("x86_64", o, d);
  ASSERT_TRUE(std::holds_alternative<guest_files>(found));
  EXPECT_EQ(std::get<guest_files>(found).kernel_path, top + "/build/guest/x86_64/vmlinux");
  EXPECT_EQ(std::get<guest_files>(found).command_line, "quiet");

  make(top + "/prefix/share/caisson/guest/x86_64", R"({})");
  d.programs = top + "/prefix/libexec/caisson";
  fs::create_directories(d.programs);
  EXPECT_TRUE(std::holds_alternative<guest_files>(find_guest("x86_64", o, d)));

  o.guest_directory = top + "/elsewhere";
  auto given = find_guest("x86_64", o, d);
  ASSERT_TRUE(std::holds_alternative<v1::Error>(given)) << "a directory that is named is the only one";
  EXPECT_NE(std::get<v1::Error>(given).text().find("no such directory"), std::string::npos);
  make(top + "/elsewhere", R"({"architecture": "aarch64"})");
  EXPECT_TRUE(std::holds_alternative<v1::Error>(find_guest("x86_64", o, d)));
  make(top + "/elsewhere", R"(not json)");
  EXPECT_TRUE(std::holds_alternative<v1::Error>(find_guest("x86_64", o, d)));
}

} // namespace
} // namespace caisson::engine
