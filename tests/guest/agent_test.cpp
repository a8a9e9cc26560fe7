#include "tests/guest/agent_client.hpp"

#include <gtest/gtest.h>

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace caisson::guest_protocol {
namespace {

using namespace std::chrono_literals;
constexpr auto patience = std::chrono::milliseconds{20s};

/// The real agent as an ordinary process on a socketpair: its commands run on this machine, hotplug is only looked at.
class agent : public ::testing::Test {
protected:
  void SetUp() override {
    int fd = -1;
    pid_ = start_with_socket({CAISSON_AGENT}, fd);
    ASSERT_GT(pid_, 0);
    client_.emplace(fd);
    ASSERT_TRUE(client_->wait(patience, [&] { return client_->hello.has_value(); }));
  }
  void TearDown() override {
    if (!client_)
      return;
    EXPECT_EQ(client_->protocol_error, "");
    client_.reset(); // the agent ends when its channel does
    int status = 0;
    ASSERT_EQ(::waitpid(pid_, &status, 0), pid_);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }

  agent_client::command& shell(const std::string& script) { return client_->start({"/bin/sh", "-c", script}); }

  pid_t pid_ = -1;
  std::optional<agent_client> client_;
};

TEST_F(agent, greets_and_shows_facts) {
  EXPECT_EQ(client_->hello->protocol_version(), protocol_version);
  EXPECT_GT(client_->hello->memory().mem_total_bytes(), 0u);
  EXPECT_GE(client_->hello->cpus().online(), 1u);
  v1::AgentRequest request;
  request.mutable_read_facts();
  const auto answer = client_->ask(request, patience);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->facts().memory().boot_mem_total_bytes(), client_->hello->memory().boot_mem_total_bytes());
}

TEST_F(agent, does_not_touch_the_processors_of_the_machine_it_is_tested_on) {
  v1::AgentRequest request;
  request.mutable_set_online_cpus()->set_online(client_->hello->cpus().online() + 1);
  request.mutable_set_online_cpus()->set_wait_ms(50);
  const auto answer = client_->ask(request, patience);
  ASSERT_TRUE(answer && answer->has_facts());
  EXPECT_EQ(answer->facts().cpus().online(), client_->hello->cpus().online());
}

TEST_F(agent, answers_a_request_that_it_does_not_know) {
  const auto answer = client_->ask(v1::AgentRequest{}, patience);
  ASSERT_TRUE(answer);
  EXPECT_NE(answer->failure().text(), "");
}

TEST_F(agent, gives_exact_exit_codes) {
  for (const auto& [script, code, number] : {std::tuple{"exit 0", 0, 0},
                                             {"exit 7", 7, 0},
                                             {"exit 255", 255, 0},
                                             {"kill -9 $$", 137, 9},
                                             {"kill -15 $$", 143, 15}}) {
    auto& c = shell(script);
    ASSERT_TRUE(client_->finish(c, patience)) << script;
    EXPECT_EQ(c.exited->exit_code(), code) << script;
    EXPECT_EQ(c.exited->signal(), number) << script;
  }
  for (const auto& [program, code] :
       {std::pair{"no-such-program", 127}, {"/no/such/program", 127}, {"/etc/passwd", 126}, {"/", 126}}) {
    auto& c = client_->start({program});
    ASSERT_TRUE(client_->finish(c, patience)) << program;
    EXPECT_EQ(c.exited->exit_code(), code) << program;
    EXPECT_NE(c.errors.find(program), std::string::npos) << c.errors;
  }
}

TEST_F(agent, refuses_an_empty_command) {
  auto& c = client_->start({});
  ASSERT_TRUE(client_->finish(c, patience));
  ASSERT_TRUE(c.failure);
  EXPECT_EQ(c.failure->guest_errno(), EINVAL);
}

TEST_F(agent, gives_environment_and_directory) {
  auto& plain = shell("echo $PATH:$HOME; pwd; cat /proc/self/status | grep -E 'SigBlk|SigIgn'");
  ASSERT_TRUE(client_->finish(plain, patience));
  EXPECT_EQ(plain.output.substr(0, 43), "/usr/sbin:/usr/bin:/sbin:/bin:/root\n/\nSigBl") << plain.output;
  EXPECT_NE(plain.output.find("SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000"), std::string::npos)
      << "a command starts with fresh signals: " << plain.output;
  auto& own = client_->start({"sh", "-c", "echo $PATH $NAME; pwd"}, [](v1::ExecStart& exec) {
    exec.add_environment("NAME=a value");
    exec.add_environment("PATH=/bin:/usr/bin");
    exec.set_working_directory("/tmp");
  });
  ASSERT_TRUE(client_->finish(own, patience));
  EXPECT_EQ(own.output, "/bin:/usr/bin a value\n/tmp\n");
  auto& lost = client_->start({"true"}, [](v1::ExecStart& exec) { exec.set_working_directory("/no/such/directory"); });
  ASSERT_TRUE(client_->finish(lost, patience));
  EXPECT_EQ(lost.exited->exit_code(), 126);
  EXPECT_NE(lost.errors.find("/no/such/directory"), std::string::npos);
}

TEST_F(agent, carries_more_than_the_windows_both_ways) {
  auto& cat = client_->start({"cat"});
  std::string text;
  for (int i = 0; text.size() < 5'000'000; ++i)
    text += std::to_string(i) + "\n";
  ASSERT_TRUE(client_->write(cat, text, patience));
  client_->close_input(cat);
  ASSERT_TRUE(client_->finish(cat, patience));
  EXPECT_EQ(cat.output, text);
}

TEST_F(agent, delivers_everything_to_a_slow_reader_before_the_exit) {
  client_->reading = false;
  auto& c = shell("head -c 600000 /dev/zero");
  ASSERT_TRUE(client_->wait(patience, [&] { return c.unread == stream_window_bytes; }));
  EXPECT_FALSE(client_->wait(500ms, [&] { return c.exited.has_value(); })) << "its output is not out yet";
  client_->reading = true;
  client_->session.consumed(c.out, c.unread);
  ASSERT_TRUE(client_->finish(c, patience));
  EXPECT_EQ(c.output.size(), 600'000u);
}

TEST_F(agent, one_blocked_command_does_not_hold_up_another) {
  client_->reading = false;
  auto& blocked = client_->start({"yes"});
  ASSERT_TRUE(client_->wait(patience, [&] { return blocked.unread == stream_window_bytes; }));
  auto& other = client_->start({"echo", "hello"});
  ASSERT_TRUE(client_->finish(other, patience));
  EXPECT_EQ(other.output, "hello\n");
  client_->session.stop(blocked.out);
  ASSERT_TRUE(client_->finish(blocked, patience));
}

TEST_F(agent, reports_the_exit_though_a_child_holds_the_pipes) {
  auto& c = shell("echo before; (sleep 30; echo late) & exit 3");
  ASSERT_TRUE(client_->finish(c, patience)) << "patience is shorter than the child's sleep";
  EXPECT_EQ(c.exited->exit_code(), 3);
  EXPECT_EQ(c.output, "before\n");
}

TEST_F(agent, reports_the_exit_though_a_child_writes_for_ever) {
  auto& c = shell("yes & echo $! >&2; exit 4");
  ASSERT_TRUE(client_->finish(c, patience));
  EXPECT_EQ(c.exited->exit_code(), 4);
  auto& cleaner = shell("kill -9 " + c.errors);
  ASSERT_TRUE(client_->finish(cleaner, patience));
  EXPECT_EQ(cleaner.exited->exit_code(), 0) << "the child was still running: nobody killed it with SIGPIPE";
}

TEST_F(agent, says_when_standard_input_is_read_no_more) {
  char directory[] = "/tmp/caisson-agent-test-XXXXXX";
  ASSERT_NE(::mkdtemp(directory), nullptr);
  const std::string go_on = std::string{directory} + "/go-on";
  auto& c = shell("exec 0<&-; echo closed; while [ ! -e " + go_on + " ]; do sleep 0.05; done; echo done");
  ASSERT_TRUE(client_->wait(patience, [&] { return c.output.find("closed") == 0; }));
  ASSERT_TRUE(client_->write(c, std::string(1'000'000, 'x'), patience));
  EXPECT_EQ(client_->stopped, std::vector<std::uint32_t>{c.in});
  std::ofstream{go_on}.close();
  ASSERT_TRUE(client_->finish(c, patience));
  std::filesystem::remove_all(directory);
  EXPECT_EQ(c.exited->exit_code(), 0);
}

TEST_F(agent, signals_the_whole_group) {
  auto& c = shell("sh -c 'echo child; sleep 100' ; echo never");
  ASSERT_TRUE(client_->wait(patience, [&] { return c.output == "child\n"; }));
  v1::AgentRequest request;
  request.mutable_exec_signal()->set_exec_id(c.exec_id);
  request.mutable_exec_signal()->set_signal(SIGTERM);
  ASSERT_TRUE(client_->ask(request, patience)->has_done());
  ASSERT_TRUE(client_->finish(c, patience));
  EXPECT_EQ(c.exited->signal(), SIGTERM);
  EXPECT_EQ(client_->ask(request, patience)->failure().guest_errno(), ESRCH) << "it has ended";
}

TEST_F(agent, gives_a_terminal_with_a_size_that_can_change) {
  auto& c = client_->start({"sh", "-c", "stty size; read x; stty size; read y; echo end $y"}, [](v1::ExecStart& exec) {
    exec.set_terminal(true);
    exec.set_rows(24);
    exec.set_columns(80);
  });
  ASSERT_TRUE(client_->wait(patience, [&] { return c.output.find("24 80") != std::string::npos; })) << c.output;
  v1::AgentRequest request;
  request.mutable_exec_resize()->set_exec_id(c.exec_id);
  request.mutable_exec_resize()->set_rows(50);
  request.mutable_exec_resize()->set_columns(132);
  ASSERT_TRUE(client_->ask(request, patience)->has_done());
  ASSERT_TRUE(client_->write(c, "\r", patience));
  ASSERT_TRUE(client_->wait(patience, [&] { return c.output.find("50 132") != std::string::npos; })) << c.output;
  client_->close_input(c); // end of input reads as an empty line
  ASSERT_TRUE(client_->finish(c, patience));
  EXPECT_NE(c.output.find("end"), std::string::npos);
  EXPECT_EQ(c.errors, "");
  EXPECT_EQ(c.exited->exit_code(), 0);
}

TEST_F(agent, interrupts_through_the_terminal) {
  auto& c = client_->start({"sh", "-c", "trap 'echo caught; exit 9' INT; echo ready; while :; do read x; done"},
                           [](v1::ExecStart& exec) { exec.set_terminal(true); });
  ASSERT_TRUE(client_->wait(patience, [&] { return c.output.find("ready") != std::string::npos; }));
  ASSERT_TRUE(client_->write(c, "\x03", patience));
  ASSERT_TRUE(client_->finish(c, patience)) << c.output;
  EXPECT_NE(c.output.find("caught"), std::string::npos);
  EXPECT_EQ(c.exited->exit_code(), 9);
}

TEST_F(agent, runs_two_hundred_commands_at_once) {
  std::vector<agent_client::command*> commands;
  for (int i = 0; i < 200; ++i)
    commands.push_back(&shell("read x; exit " + std::to_string(i % 100)));
  for (auto* c : commands)
    client_->close_input(*c);
  for (int i = 0; i < 200; ++i) {
    auto& c = *commands[static_cast<std::size_t>(i)];
    ASSERT_TRUE(client_->finish(c, patience));
    EXPECT_EQ(c.exited->exit_code(), i % 100);
  }
}

/// The agent that is built to misbehave, as the system tests meet it in a guest.
struct hostile {
  explicit hostile(const char* mode) {
    int fd = -1;
    pid = start_with_socket({CAISSON_HOSTILE_AGENT, mode}, fd);
    client.emplace(fd);
  }
  ~hostile() {
    ::kill(pid, SIGKILL);
    client.reset();
    ::waitpid(pid, nullptr, 0);
  }
  bool greeted() {
    return client->wait(patience, [&] { return client->hello.has_value(); });
  }
  std::optional<v1::AgentReply> facts(std::chrono::milliseconds limit) {
    v1::AgentRequest request;
    request.mutable_read_facts();
    return client->ask(request, limit);
  }
  pid_t pid = -1;
  std::optional<agent_client> client;
};

/// The real agent behind a listening socket, as it is in a guest that the host reaches by vsock.
class agent_behind_a_listener : public ::testing::Test {
protected:
  void SetUp() override {
    char name[] = "/tmp/caisson-agent-test-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory_ = name;
    const int listening = ::socket(AF_UNIX, SOCK_STREAM, 0);
    address_.sun_family = AF_UNIX;
    std::strncpy(address_.sun_path, (directory_ + "/agent").c_str(), sizeof address_.sun_path - 1);
    ASSERT_EQ(::bind(listening, reinterpret_cast<const sockaddr*>(&address_), sizeof address_), 0);
    ASSERT_EQ(::listen(listening, 8), 0);
    auto number = std::to_string(listening);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::execl(CAISSON_AGENT, CAISSON_AGENT, "--test-listen", number.c_str(), nullptr);
      ::_exit(127);
    }
    ::close(listening);
    ASSERT_GT(pid_, 0);
  }
  void TearDown() override {
    ::kill(pid_, SIGTERM);
    int status = 0;
    EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
    std::filesystem::remove_all(directory_);
  }

  int connection() {
    const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_EQ(::connect(fd, reinterpret_cast<const sockaddr*>(&address_), sizeof address_), 0);
    return fd;
  }
  static bool greeted(agent_client& client) {
    return client.wait(patience, [&] { return client.hello.has_value(); });
  }

  pid_t pid_ = -1;
  std::string directory_;
  sockaddr_un address_{};
};

TEST_F(agent_behind_a_listener, serves_one_connection_after_another) {
  for (int n = 0; n < 3; ++n) {
    agent_client client{connection()};
    ASSERT_TRUE(greeted(client));
    auto& c = client.start({"/bin/sh", "-c", "echo here; exit 3"});
    ASSERT_TRUE(client.finish(c, patience));
    EXPECT_EQ(c.exited->exit_code(), 3);
    EXPECT_EQ(c.output, "here\n");
  }
}

TEST_F(agent_behind_a_listener, a_new_connection_replaces_the_old) {
  agent_client old{connection()};
  ASSERT_TRUE(greeted(old));
  auto& held = old.start({"/bin/cat"});
  ASSERT_TRUE(old.wait(patience, [&] { return held.exec_id != 0; }));
  agent_client fresh{connection()};
  ASSERT_TRUE(greeted(fresh));
  EXPECT_FALSE(old.wait(patience, [] { return false; }));
  EXPECT_TRUE(old.closed);
  auto& c = fresh.start({"/bin/true"});
  ASSERT_TRUE(fresh.finish(c, patience));
  EXPECT_EQ(c.exited->exit_code(), 0);
}

TEST_F(agent_behind_a_listener, half_a_frame_of_a_connection_that_ends_harms_nobody) {
  const int broken = connection();
  ASSERT_EQ(::send(broken, "half", 4, MSG_NOSIGNAL), 4);
  ::close(broken);
  agent_client client{connection()};
  EXPECT_TRUE(greeted(client));
}

TEST(hostile_agent, lies) {
  hostile guest{"lie"};
  ASSERT_TRUE(guest.greeted());
  EXPECT_LE(guest.client->hello->agent_version().size(), 128u);
  const auto facts = guest.facts(patience);
  ASSERT_TRUE(facts);
  EXPECT_EQ(facts->facts().memory().mem_total_bytes(), std::uint64_t{1} << 60);
  auto& c = guest.client->start({"rm", "-rf", "/"});
  ASSERT_TRUE(guest.client->finish(c, patience));
  EXPECT_EQ(c.exited->exit_code(), 0);
  EXPECT_EQ(guest.client->protocol_error, "") << "lies are not against the protocol";
}

TEST(hostile_agent, stalls) {
  hostile guest{"stall"};
  ASSERT_TRUE(guest.greeted());
  EXPECT_FALSE(guest.facts(200ms));
  hostile silent{"silent"};
  EXPECT_FALSE(silent.client->wait(200ms, [&] { return silent.client->hello.has_value(); }));
}

TEST(hostile_agent, floods_and_answers_are_still_seen) {
  hostile guest{"flood"};
  ASSERT_TRUE(guest.greeted());
  EXPECT_TRUE(guest.facts(patience));
  EXPECT_TRUE(guest.client->wait(patience, [&] { return guest.client->notices.size() > 10'000; }));
  EXPECT_EQ(guest.client->protocol_error, "");
}

TEST(hostile_agent, garbage_and_overrun_are_noticed) {
  hostile garbage{"garbage"};
  ASSERT_TRUE(garbage.greeted());
  EXPECT_TRUE(garbage.client->wait(patience, [&] { return !garbage.client->protocol_error.empty(); }));
  hostile overrun{"overrun"};
  ASSERT_TRUE(overrun.greeted());
  overrun.client->reading = false;
  auto& c = overrun.client->start({"cat"});
  EXPECT_TRUE(overrun.client->wait(patience, [&] { return !overrun.client->protocol_error.empty(); }));
  EXPECT_LE(c.output.size(), stream_window_bytes);
}

} // namespace
} // namespace caisson::guest_protocol
