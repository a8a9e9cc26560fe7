// `caisson run` where there is no guest: it is made by the script of the installation, here one that only pretends, and
// the engine is asked again.

#include <gtest/gtest.h>

#include <sys/utsname.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "engine/directories.hpp"
#include "frontends/grpc/server.hpp"
#include "tests/frontends/program.hpp"
#include "tests/frontends/service_double.hpp"

namespace caisson::test {
namespace {

namespace fs = std::filesystem;

/// Refuses to create as an engine does that finds no guest.
struct double_without_guest final : service_double {
  fs::path guest;
  void create(v1::CreateSandbox m, engine::done<v1::SandboxStatus> then) override {
    if (fs::exists(guest / "manifest.json"))
      return service_double::create(std::move(m), std::move(then));
    note("refused");
    then(some_error("host_missing", "no guest for it", 125));
  }
};

class guest_build : public ::testing::Test {
protected:
  void SetUp() override {
    char name[] = "/dev/shm/caisson-gb-XXXXXX";
    directory = ::mkdtemp(name);
    for (const char* part : {"run", "prefix/bin", "prefix/libexec/caisson", "prefix/share/caisson/guest-build"})
      fs::create_directories(directory / part);
    fs::permissions(directory / "run", fs::perms::owner_all);
    fs::copy_file(CAISSON_PROGRAM, directory / "prefix/bin/caisson");
    program_file("prefix/libexec/caisson/caisson-backend-qemu", "#!/bin/sh\n");
    program_file("prefix/share/caisson/guest-build/agents/" + architecture() + "/caisson-agent", "");
    service.guest = directory / "cache" / ("guest-" CAISSON_VERSION) / architecture();
    auto started = door::server::start(service, {.socket = directory / "run/engine.sock"});
    ASSERT_EQ(started.index(), 0u) << std::get<1>(started).text();
    server = std::move(std::get<0>(started));
  }

  void TearDown() override {
    server.reset();
    fs::remove_all(directory);
  }

  static std::string architecture() {
    utsname u{};
    ::uname(&u);
    return u.machine;
  }

  void program_file(const std::string& path, const std::string& text) const {
    fs::create_directories((directory / path).parent_path());
    std::ofstream{directory / path} << text;
    fs::permissions(directory / path, fs::perms::owner_all);
  }

  /// A script that notes each call, says what it does, and then does this.
  void script(const std::string& then) const {
    program_file("prefix/share/caisson/guest-build/build", "import os, sys\n"
                                                           "out = sys.argv[sys.argv.index('--out') + 1]\n"
                                                           "open('" +
                                                               (directory / "calls").string() +
                                                               "', 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
                                                               "print('unpacking the kernel', flush=True)\n" +
                                                               then);
  }

  std::vector<std::string> words(std::vector<std::string> more = {}) const {
    std::vector<std::string> all{"/usr/bin/env",
                                 "-u",
                                 "CAISSON_GUEST_DIR",
                                 "CAISSON_CACHE_DIR=" + (directory / "cache").string(),
                                 directory / "prefix/bin/caisson",
                                 "--state-dir",
                                 directory / "state",
                                 "--run-dir",
                                 directory / "run",
                                 "run",
                                 "--detach",
                                 "--config",
                                 CAISSON_CONFIGURATION};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  std::string calls() const {
    std::ifstream in{directory / "calls"};
    return {std::istreambuf_iterator<char>{in}, {}};
  }

  static constexpr const char* makes = "os.makedirs(out)\n"
                                       "for name in 'vmlinux', 'Image', 'initramfs.cpio', 'manifest.json':\n"
                                       "    open(out + '/' + name, 'w').write('{}')\n";

  fs::path directory;
  double_without_guest service;
  std::unique_ptr<door::server> server;
};

TEST_F(guest_build, a_missing_guest_is_made_and_the_run_goes_on) {
  script(makes);
  auto got = run_program(words({"--name", "a"}));
  EXPECT_EQ(got.status, 0) << got.err;
  EXPECT_EQ(got.out, "a\n");
  EXPECT_NE(got.err.find("unpacking the kernel"), std::string::npos) << "what is done is told: " << got.err;
  EXPECT_NE(got.err.find(service.guest.string()), std::string::npos) << got.err;
  EXPECT_NE(calls().find("--arch " + architecture()), std::string::npos) << calls();
  EXPECT_NE(calls().find("--agent " + (directory / "prefix/share/caisson/guest-build/agents").string()),
            std::string::npos);
  EXPECT_EQ(run_program(words({"--name", "b"})).status, 0);
  const auto made = calls();
  EXPECT_EQ(std::count(made.begin(), made.end(), '\n'), 1) << "once: " << made;
}

TEST_F(guest_build, two_at_once_make_one) {
  script(makes);
  program one{words({"--name", "a"})}, two{words({"--name", "b"})};
  auto first = one.finish(), second = two.finish();
  EXPECT_EQ(first.status, 0) << first.err;
  EXPECT_EQ(second.status, 0) << second.err;
  const auto made = calls();
  EXPECT_EQ(std::count(made.begin(), made.end(), '\n'), 1) << made;
}

TEST_F(guest_build, what_is_missing_for_it_is_said) {
  script("sys.exit('guest/image/build: apt knows no package linux-image')\n");
  auto got = run_program(words());
  EXPECT_EQ(got.status, 125);
  EXPECT_NE(got.err.find("could not be made"), std::string::npos) << got.err;
  EXPECT_NE(got.err.find("apt knows no package linux-image"), std::string::npos) << got.err;
  got = run_program(words({"--json"}));
  EXPECT_TRUE(got.err.starts_with("{\"error\":")) << "with --json nothing but the error: " << got.err;

  fs::remove_all(directory / "prefix/share/caisson/guest-build/agents");
  got = run_program(words());
  EXPECT_EQ(got.status, 125);
  EXPECT_NE(got.err.find("caisson-agent"), std::string::npos) << got.err;
}

TEST_F(guest_build, nothing_is_made_that_was_not_asked_for) {
  script(makes);
  auto got = run_program(words({"--no-guest-build"}));
  EXPECT_EQ(got.status, 125);
  EXPECT_EQ(got.err, "caisson: no guest for it\n");
  auto named = words();
  named[1] = "-i";
  named[2] = "CAISSON_GUEST_DIR=" + (directory / "nowhere").string();
  got = run_program(named);
  EXPECT_EQ(got.err, "caisson: no guest for it\n") << "somebody has named a directory, and it is that which is wrong";
  EXPECT_EQ(calls(), "");
}

} // namespace
} // namespace caisson::test
