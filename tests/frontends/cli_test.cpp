// The real program `caisson` against the door of a double: words, exit statuses, streams, signals, JSON.

#include <gtest/gtest.h>

#include <pty.h>
#include <spawn.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "frontends/cli/arguments.hpp"
#include "frontends/cli/command_line.hpp"
#include "frontends/grpc/server.hpp"
#include "tests/frontends/program.hpp"
#include "tests/frontends/service_double.hpp"

namespace caisson::test {
namespace {

using nlohmann::json;

class cli_test : public ::testing::Test {
protected:
  void SetUp() override {
    char name[] = "/dev/shm/caisson-cli-XXXXXX";
    directory_ = ::mkdtemp(name);
    std::filesystem::create_directory(directory_ + "/run");
    std::filesystem::permissions(directory_ + "/run", std::filesystem::perms::owner_all);
    auto started =
        door::server::start(service_, {.socket = directory_ + "/run/engine.sock", .log = [this](std::string_view line) {
                                         service_.note("log " + std::string{line});
                                       }});
    ASSERT_EQ(started.index(), 0u) << std::get<1>(started).text();
    server_ = std::move(std::get<0>(started));
  }

  void TearDown() override {
    server_.reset();
    std::filesystem::remove_all(directory_);
  }

  std::vector<std::string> words(std::vector<std::string> more) const {
    std::vector<std::string> all{CAISSON_PROGRAM, "--state-dir", directory_ + "/state", "--run-dir",
                                 directory_ + "/run"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  program_result caisson(std::vector<std::string> more, std::string input = {}) const {
    return run_program(words(std::move(more)), std::move(input));
  }

  service_double service_;
  std::string directory_;
  std::unique_ptr<door::server> server_;
};

TEST_F(cli_test, usage_errors_are_status_2_and_say_what_is_expected) {
  struct {
    std::vector<std::string> words;
    std::string says;
  } cases[] = {
      {{}, "subcommand"},
      {{"lst"}, "did you mean \"list\""},
      {{"pause"}, "SANDBOX is required"},
      {{"status", "a", "--nonsense"}, "--nonsense"},
      {{"run"}, "--detach for a sandbox that stays"},
      {{"run", "--detach", "--", "true"}, "either --detach"},
      {{"exec", "a"}, "the command is missing"},
      {{"resize", "a"}, "give --memory SIZE"},
      {{"resize", "a", "--memory", "0"}, "above zero"},
      {{"resize", "a", "--memory", "-1G"}, "it is negative"},
      {{"resize", "a", "--memory", "3X"}, "its unit is unknown"},
      {{"resize", "a", "--memory", "99999999999G"}, "16 EiB"},
      {{"resize", "a", "--cpus", "0"}, "no processor at all"},
      {{"resize", "a", "--cpus", "-2"}, "negative"},
      {{"resize", "a", "--cpus", "two"}, "not a whole number"},
      {{"resize", "a", "--cpus", "99999999999999999999"}, "more than any VMM takes"},
      {{"run", "--memory-method", "magic", "--", "true"}, "auto, dimm or virtio-mem"},
      {{"run", "--annotation", "x", "--", "true"}, "KEY=VALUE"},
      {{"events", "--from", "x"}, "not a whole number"},
  };
  for (auto& c : cases) {
    auto got = caisson(c.words);
    EXPECT_EQ(got.status, 2) << got.err;
    EXPECT_EQ(got.out, "");
    EXPECT_TRUE(got.err.starts_with("caisson: ")) << got.err;
    EXPECT_NE(got.err.find(c.says), std::string::npos) << got.err;
  }
}

TEST_F(cli_test, global_options_stand_before_or_after_the_verb) {
  auto before = run_program(
      {CAISSON_PROGRAM, "--json", "--run-dir", directory_ + "/run", "--state-dir", directory_ + "/state", "list"});
  auto after = run_program(
      {CAISSON_PROGRAM, "list", "--run-dir", directory_ + "/run", "--json", "--state-dir", directory_ + "/state"});
  EXPECT_EQ(before.status, 0) << before.err;
  EXPECT_EQ(after.status, 0) << after.err;
  EXPECT_EQ(before.out, after.out);
  EXPECT_TRUE(json::parse(after.out)["sandboxes"].empty());
}

TEST_F(cli_test, status_as_json_has_proto_names_and_decimal_strings) {
  EXPECT_EQ(caisson({"run", "--detach", "--name", "list"}).out, "list\n");
  auto got = caisson({"status", "list", "--json"});
  ASSERT_EQ(got.status, 0) << got.err;
  auto s = json::parse(got.out);
  EXPECT_EQ(s["id"], "id-list");
  EXPECT_EQ(s["state"], "SANDBOX_STATE_RUNNING");
  EXPECT_EQ(s["memory"]["boot_bytes"], "2147483648");
  EXPECT_EQ(s["memory"]["plugged_bytes"], "0");
  EXPECT_EQ(s["vmm_pid"], "0");
}

TEST_F(cli_test, status_without_a_name_is_the_engines) {
  auto got = caisson({"status"});
  ASSERT_EQ(got.status, 0) << got.err;
  EXPECT_TRUE(got.out.starts_with("engine")) << got.out;
  EXPECT_TRUE(json::parse(caisson({"status", "--json"}).out).contains("state_directory"));
}

TEST_F(cli_test, backends_tells_of_each_and_architecture_what_it_can_or_why_it_cannot) {
  auto all = caisson({"backends"});
  EXPECT_EQ(all.status, 0) << all.err;
  EXPECT_NE(all.out.find("qemu, aarch64"), std::string::npos) << all.out;
  EXPECT_NE(all.out.find("not here: there is no cloud-hypervisor in PATH"), std::string::npos) << all.out;

  auto one = caisson({"backends", "qemu", "--json"});
  ASSERT_EQ(one.status, 0) << one.err;
  const auto told = json::parse(one.out).at("backends");
  ASSERT_EQ(told.size(), 1u);
  ASSERT_EQ(told[0].at("architectures").size(), 2u);
  EXPECT_EQ(told[0]["architectures"][1]["capabilities"]["architecture"], "aarch64");

  auto none = caisson({"backends", "xen"});
  EXPECT_EQ(none.status, 2);
  EXPECT_NE(none.err.find("there are: qemu, cloud-hypervisor, simulated"), std::string::npos) << none.err;
}

TEST_F(cli_test, an_error_as_json_is_one_object_on_stderr) {
  auto got = caisson({"status", "nosuch", "--json"});
  EXPECT_EQ(got.status, 125);
  EXPECT_EQ(got.out, "");
  auto e = json::parse(got.err)["error"];
  EXPECT_EQ(e["code"], "not_found");
  EXPECT_EQ(e["text"], "sandbox nosuch: there is none");
  got = caisson({"pause", "--json"});
  EXPECT_EQ(got.status, 2);
  EXPECT_EQ(json::parse(got.err)["error"]["code"], "invalid_argument");
}

TEST_F(cli_test, a_failed_boot_shows_the_consoles_last_lines) {
  auto got = caisson({"console", "failed"});
  EXPECT_EQ(got.status, 125);
  EXPECT_TRUE(got.err.starts_with("caisson: the guest has not come up\n  | line 0 ")) << got.err.substr(0, 80);
  EXPECT_EQ(caisson({"console", "a"}).out, "Linux version\n");
}

TEST_F(cli_test, exec_gives_the_commands_output_and_status) {
  auto got = caisson({"exec", "a", "--", "args", "--json", "-x", "--", "y"});
  EXPECT_EQ(got.status, 0);
  EXPECT_EQ(got.out, "args\n--json\n-x\n--\ny\n");
  EXPECT_EQ(got.err, "done\n");
  for (int code : {1, 126, 127, 137, 255})
    EXPECT_EQ(caisson({"exec", "a", "--", "exit", std::to_string(code)}).status, code);
  EXPECT_EQ(caisson({"exec", "a", "--", "missing"}).status, 125);
  EXPECT_EQ(caisson({"exec", "a", "args", "plain"}).out, "args\nplain\n");
}

TEST_F(cli_test, standard_input_passes_with_i_and_is_closed_without) {
  std::string input(300'000, 'q');
  auto got = caisson({"exec", "-i", "a", "--", "cat"}, input);
  EXPECT_EQ(got.status, 0) << got.err;
  EXPECT_TRUE(got.out == input);
  program without{words({"exec", "a", "--", "cat"}), "unread", true};
  got = without.finish();
  EXPECT_EQ(got.status, 0);
  EXPECT_EQ(got.out, "");
}

TEST_F(cli_test, a_signal_goes_to_the_command_and_its_end_is_the_status) {
  program p{words({"exec", "a", "--", "hold"}), {}, true};
  ASSERT_TRUE(service_.wait_for("stdin closed"));
  p.signal(SIGINT);
  EXPECT_EQ(p.finish().status, 130);
  EXPECT_TRUE(service_.noted("signal 2"));
}

TEST_F(cli_test, a_second_signal_ends_a_command_that_does_not_listen) {
  program p{words({"exec", "a", "--", "stubborn"}), {}, true};
  ASSERT_TRUE(service_.wait_for("stdin closed"));
  p.signal(SIGTERM);
  ASSERT_TRUE(service_.wait_for("signal 15"));
  p.signal(SIGTERM);
  EXPECT_EQ(p.finish().status, 143);
  EXPECT_TRUE(service_.wait_for("hung up stubborn"));
}

TEST_F(cli_test, a_terminal_is_raw_meanwhile_follows_its_size_and_comes_back) {
  int terminal = -1, person = -1;
  winsize size{24, 80, 0, 0};
  ASSERT_EQ(::openpty(&person, &terminal, nullptr, nullptr, &size), 0);
  termios before{}, meanwhile{}, after{};
  ::tcgetattr(terminal, &before);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  for (int fd : {0, 1, 2})
    posix_spawn_file_actions_adddup2(&files, terminal, fd);
  auto all = words({"exec", "-it", "a", "--", "hold"});
  std::vector<char*> argv;
  for (auto& w : all)
    argv.push_back(w.data());
  argv.push_back(nullptr);
  pid_t pid = 0;
  ASSERT_EQ(::posix_spawn(&pid, argv[0], &files, nullptr, argv.data(), environ), 0);
  posix_spawn_file_actions_destroy(&files);
  [[maybe_unused]] auto typed = ::write(person, "x", 1);
  ASSERT_TRUE(service_.wait_for("stdin 1"));
  ::tcgetattr(terminal, &meanwhile);
  EXPECT_EQ(meanwhile.c_lflag & (ICANON | ECHO | ISIG), 0u);
  size = {50, 132, 0, 0};
  ::ioctl(terminal, TIOCSWINSZ, &size);
  ::kill(pid, SIGWINCH);
  EXPECT_TRUE(service_.wait_for("size 50x132"));
  ::kill(pid, SIGTERM);
  int status = 0;
  ::waitpid(pid, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 143);
  ::tcgetattr(terminal, &after);
  EXPECT_EQ(after.c_lflag, before.c_lflag);
  EXPECT_EQ(after.c_oflag, before.c_oflag);
  ::close(terminal);
  ::close(person);
}

TEST_F(cli_test, a_reader_that_goes_ends_the_command) {
  auto piped = run_program({"/bin/sh", "-c",
                            "'" CAISSON_PROGRAM "' --state-dir '" + directory_ + "/state' --run-dir '" + directory_ +
                                "/run' exec a -- flood 1000000000 | head -c 10; echo \" rest\""});
  EXPECT_EQ(piped.out, "xxxxxxxxxx rest\n");
  EXPECT_EQ(piped.err, "");
}

TEST_F(cli_test, run_removes_its_sandbox_when_the_command_ends) {
  auto got = caisson({"run", "--name", "once", "--", "exit", "3"});
  EXPECT_EQ(got.status, 3) << got.err;
  EXPECT_TRUE(service_.noted("create once owner=stream"));
  EXPECT_TRUE(service_.noted("remove id-once"));
  EXPECT_EQ(caisson({"run", "--", "cat"}, "through").out, "through");
}

TEST_F(cli_test, run_removes_its_sandbox_however_it_ends) {
  for (int number : {SIGINT, SIGTERM, SIGHUP}) {
    auto name = "by" + std::to_string(number);
    program p{words({"run", "--name", name, "--", "hold"}), {}, true};
    ASSERT_TRUE(service_.wait_for("exec id-" + name));
    p.signal(number);
    EXPECT_EQ(p.finish().status, 128 + number);
    EXPECT_TRUE(service_.noted("remove id-" + name));
  }
  program killed{words({"run", "--name", "killed", "--", "hold"}), {}, true};
  ASSERT_TRUE(service_.wait_for("exec id-killed"));
  killed.signal(SIGKILL);
  EXPECT_TRUE(service_.wait_for("remove id-killed"));
}

TEST_F(cli_test, an_interrupted_boot_is_undone_before_run_returns) {
  service_.hold_create = true;
  program p{words({"run", "--", "hold"}), {}, true};
  ASSERT_TRUE(service_.wait_for("create run-"));
  p.signal(SIGINT);
  ASSERT_TRUE(service_.wait_for("remove run-"));
  service_.release_create();
  EXPECT_EQ(p.finish().status, 130);
  EXPECT_TRUE(service_.noted("remove id-run-"));
}

TEST_F(cli_test, a_detached_run_that_is_killed_before_its_answer_leaves_nothing) {
  service_.hold_create = true;
  program p{words({"run", "--detach", "--name", "early"}), {}, true};
  ASSERT_TRUE(service_.wait_for("create early"));
  p.signal(SIGKILL);
  p.finish();
  ASSERT_TRUE(service_.wait_for("log a client has gone"));
  service_.release_create();
  EXPECT_TRUE(service_.wait_for("remove id-early"));
}

TEST_F(cli_test, resize_waits_for_the_end_and_shows_the_figures) {
  service_.waits = {v1::OPERATION_STATE_RUNNING, v1::OPERATION_STATE_CONVERGED};
  auto got = caisson({"resize", "a", "--memory", "3G", "--cpus", "4"});
  EXPECT_EQ(got.status, 0) << got.err;
  EXPECT_TRUE(service_.noted("resize a 3221225472 4"));
  EXPECT_NE(got.out.find("asked 3 GiB, boot 2 GiB + plugged 1 GiB = 3 GiB, guest 2944 MiB"), std::string::npos)
      << got.out;
  EXPECT_NE(got.out.find("converged"), std::string::npos);

  service_.waits = {v1::OPERATION_STATE_PARTLY};
  got = caisson({"resize", "a", "--memory", "3GiB"});
  EXPECT_EQ(got.status, 125);
  EXPECT_NE(got.out.find("guest 2944 MiB"), std::string::npos) << got.out;
  EXPECT_NE(got.err.find("896 MiB"), std::string::npos) << got.err;

  got = caisson({"resize", "a", "--memory", "1.5G", "--no-wait"});
  EXPECT_EQ(got.out, "op-1\n");
  EXPECT_TRUE(service_.noted("resize a 1610612736 0"));
  got = caisson({"resize", "a", "--memory", "1G", "--deadline-ms", "0"});
  EXPECT_EQ(got.status, 2);
  EXPECT_NE(got.err.find("--deadline-ms"), std::string::npos) << got.err;
  got = caisson({"resize", "a", "--memory", "1G", "--dry-run"});
  EXPECT_EQ(got.status, 0);
  EXPECT_NE(got.out.find("nothing was changed"), std::string::npos);
  got = caisson({"resize", "a", "--memory", "3G", "--json"});
  EXPECT_EQ(json::parse(got.out)["state"], "OPERATION_STATE_CONVERGED");
}

TEST_F(cli_test, events_are_one_line_each) {
  for (std::uint64_t i = 1; i <= 3; ++i) {
    v1::Event e;
    e.set_seq(i);
    e.set_type("sandbox.running");
    e.set_text("bell\a");
    service_.old_events.push_back(e);
  }
  auto got = caisson({"events", "--from", "2", "--json"});
  ASSERT_EQ(got.status, 0) << got.err;
  auto second = got.out.substr(0, got.out.find('\n'));
  EXPECT_EQ(json::parse(second)["seq"], "2");
  EXPECT_EQ(std::count(got.out.begin(), got.out.end(), '\n'), 2);
  got = caisson({"events"});
  EXPECT_EQ(std::count(got.out.begin(), got.out.end(), '\n'), 3);
  EXPECT_EQ(got.out.find('\a'), std::string::npos);
}

TEST_F(cli_test, stop_and_rm_take_several_and_name_the_first_that_fails) {
  caisson({"run", "-d", "--name", "x"});
  caisson({"run", "-d", "--name", "y"});
  for (const char* grace : {"0", "600001", "4294967296"}) {
    auto refused = caisson({"stop", "x", "--grace-ms", grace});
    EXPECT_EQ(refused.status, 2);
    EXPECT_NE(refused.err.find(std::string{"--grace-ms: "} + grace + " is not between 1 and 600000"), std::string::npos)
        << refused.err;
  }
  EXPECT_EQ(caisson({"stop", "x", "--grace-ms", "600000"}).out, "x\n");
  auto got = caisson({"rm", "x", "y", "z"});
  EXPECT_EQ(got.out, "x\ny\n");
  EXPECT_EQ(got.status, 125);
  EXPECT_NE(got.err.find("sandbox z"), std::string::npos);
}

TEST(documents, every_command_stands_in_the_manual_and_in_the_completions) {
  auto help = run_program({CAISSON_PROGRAM, "--help"}).out;
  auto at = help.find("Subcommands:\n");
  ASSERT_NE(at, std::string::npos);
  std::istringstream lines{help.substr(at + 13)};
  std::vector<std::string> verbs;
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with("  ") && line[2] != ' ')
      verbs.push_back(line.substr(2, line.find(' ', 2) - 2));
  EXPECT_GT(verbs.size(), 10u);
  for (const char* file : {"docs/caisson.1", "frontends/cli/completions/caisson.bash",
                           "frontends/cli/completions/_caisson", "frontends/cli/completions/caisson.fish"}) {
    std::ifstream in{std::string{CAISSON_SOURCE_DIRECTORY "/"} + file};
    std::string text{std::istreambuf_iterator<char>{in}, {}};
    for (const auto& verb : verbs)
      EXPECT_NE(text.find(verb), std::string::npos) << verb << " in " << file;
  }
}

TEST(arguments, everything_after_two_dashes_is_the_command) {
  const char* argv[] = {"caisson", "exec", "a", "--", "sh", "--", "-c"};
  auto s = cli::split(7, argv);
  EXPECT_EQ(s.own, (std::vector<std::string>{"exec", "a"}));
  EXPECT_EQ(s.command, (std::vector<std::string>{"sh", "--", "-c"}));
}

TEST(arguments, a_negative_number_belongs_to_its_option) {
  const char* argv[] = {"caisson", "resize", "a", "--memory", "-1G", "-d"};
  EXPECT_EQ(cli::split(6, argv).own, (std::vector<std::string>{"resize", "a", "--memory=-1G", "-d"}));
}

TEST(arguments, the_nearest_word_is_at_most_two_letters_off) {
  std::vector<std::string> known{"resize", "resume", "status"};
  EXPECT_EQ(cli::nearest_word("rezise", known), "resize");
  EXPECT_EQ(cli::nearest_word("statu", known), "status");
  EXPECT_EQ(cli::nearest_word("nothing", known), "");
}

} // namespace
} // namespace caisson::test
