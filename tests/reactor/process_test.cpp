// Timers, children and the end of a reactor.

#include <sys/stat.h>

#include "tests/reactor/reactor_rig.hpp"

namespace caisson::reactor {
namespace {

TEST_F(reactor_test, timers_run_in_their_order_and_can_be_cancelled) {
  std::vector<int> ran;
  std::promise<void> last;
  auto done = last.get_future();
  timer late, never, early;
  // On the reactor's own thread, so that none of them can run before all are set and two have been taken back.
  on_reactor([&] {
    late = io.after(1s, [&] {
      ran.push_back(2);
      last.set_value();
    });
    never = io.after(20ms, [&] { ran.push_back(-1); });
    early = io.after(10ms, [&] { ran.push_back(1); });
    {
      auto dropped = io.after(5ms, [&] { ran.push_back(-2); });
    }
    never.cancel();
  });
  await(done);
  EXPECT_EQ(ran, (std::vector{1, 2}));
}

TEST_F(reactor_test, a_throwing_callback_is_logged_and_ends_nothing) {
  std::promise<std::string> logged;
  auto line = logged.get_future();
  reactor careful{[&](auto text) { logged.set_value(std::string{text}); }};
  careful.post([] { throw std::runtime_error("oops"); });
  EXPECT_NE(await(line).find("oops"), std::string::npos);
  std::promise<void> lives;
  auto done = lives.get_future();
  careful.post([&] { lives.set_value(); });
  await(done);
}

TEST_F(reactor_test, a_child_gets_its_descriptors_and_nothing_else) {
  socket_pair pair;
  int inherited = ::open("/dev/null", O_RDONLY); // no CLOEXEC: an embedding program's own
  program what{"/bin/sh",
               {"-c", "cat <&3 >&3; [ -e /proc/self/fd/" + std::to_string(inherited) +
                          " ] && exit 9; [ \"$HERE\" = x ] && exit 7"},
               {"HERE=x"},
               {{pair.ours, 3}}};
  std::promise<exit_status> ended;
  auto result = ended.get_future();
  std::string error;
  auto process = io.start(
      what, [&](auto status) { ended.set_value(status); }, error);
  ASSERT_TRUE(process) << error;
  EXPECT_EQ(process->start_ticks(), start_ticks_of(process->pid()));
  ::close(pair.ours);
  ASSERT_EQ(::send(pair.theirs, "through", 7, 0), 7);
  ::shutdown(pair.theirs, SHUT_WR);
  EXPECT_EQ(read_text(pair.theirs, 7), "through");
  auto status = await(result);
  EXPECT_EQ(status.text(), "exited with status 7");
  EXPECT_FALSE(process->kill(SIGKILL)) << "nothing else can be hit any more";
  ::close(inherited);
}

TEST_F(reactor_test, a_child_has_the_umask_that_it_was_given_and_nobody_else_has) {
  const auto ours = ::umask(022);
  for (const auto& [asked, expected] : {std::pair<std::optional<unsigned>, std::string>{077, "0077"},
                                        std::pair<std::optional<unsigned>, std::string>{std::nullopt, "0022"}}) {
    socket_pair pair;
    program what{"/bin/sh",
                 {"-c", "umask >&3; echo \"$0|$1|$HERE\" >&3", "a b", "it's \"$HOME\""},
                 {"HERE=x"},
                 {{pair.ours, 3}}};
    what.umask = asked;
    std::promise<exit_status> ended;
    auto result = ended.get_future();
    std::string error;
    auto process = io.start(
        what, [&](auto status) { ended.set_value(status); }, error);
    ASSERT_TRUE(process) << error;
    ::close(pair.ours);
    EXPECT_EQ(await(result).text(), "exited with status 0");
    const auto all = expected + "\na b|it's \"$HOME\"|x\n";
    EXPECT_EQ(read_text(pair.theirs, all.size()), all) << "arguments go through as they are";
  }
  EXPECT_EQ(::umask(ours), 022u);
}

TEST_F(reactor_test, descriptors_that_cross_each_other_arrive_where_they_should) {
  socket_pair a;
  socket_pair b;
  // a's number goes to b's and the other way round.
  program what{"/bin/sh",
               {"-c", "echo a >&" + std::to_string(b.ours) + "; echo b >&" + std::to_string(a.ours)},
               {},
               {{a.ours, b.ours}, {b.ours, a.ours}}};
  std::promise<exit_status> ended;
  auto result = ended.get_future();
  std::string error;
  auto process = io.start(
      what, [&](auto status) { ended.set_value(status); }, error);
  ASSERT_TRUE(process) << error;
  await(result);
  EXPECT_EQ(read_text(a.theirs, 2), "a\n");
  EXPECT_EQ(read_text(b.theirs, 2), "b\n");
  ::close(a.ours);
  ::close(b.ours);
}

TEST_F(reactor_test, a_stopped_child_can_be_killed_and_its_end_is_told) {
  std::promise<exit_status> ended;
  auto result = ended.get_future();
  std::string error;
  auto process = io.start(
      {"/bin/cat", {}, {}, {}}, [](auto) {}, error);
  ASSERT_TRUE(process) << error;
  socket_pair pair;
  process = io.start(
      {"/bin/cat", {}, {}, {{pair.ours, 0}}}, [&](auto status) { ended.set_value(status); }, error);
  ASSERT_TRUE(process) << error;
  EXPECT_TRUE(process->kill(SIGSTOP));
  EXPECT_TRUE(process->kill(SIGKILL));
  EXPECT_EQ(await(result).text(), "was killed by signal 9 (Killed)");
  EXPECT_TRUE(process->await_exit(0ms));
  EXPECT_NE(::kill(process->pid(), 0), 0) << "reaped";
  ::close(pair.ours);
}

TEST_F(reactor_test, says_why_a_program_does_not_start) {
  std::string error;
  EXPECT_FALSE(io.start(
      {directory + "/none", {}, {}, {}}, [](auto) {}, error));
  EXPECT_NE(error.find(directory + "/none"), std::string::npos);
  EXPECT_NE(error.find("No such file"), std::string::npos) << error;
}

TEST(reactor_end, whatever_is_open_is_told_and_handles_may_outlive_it) {
  socket_pair pair;
  std::unique_ptr<byte_pipe> pipe;
  timer never;
  std::shared_ptr<child> process;
  socket_pair held;
  std::error_code closed;
  {
    reactor io;
    never = io.after(1h, [] { FAIL(); });
    std::string error;
    process = io.start(
        {"/bin/cat", {}, {}, {{held.ours, 0}}}, [](auto) { FAIL(); }, error);
    std::promise<void> started;
    io.post([&] {
      pipe = io.adopt(pair.ours);
      pipe->start({{}, [&](auto code) { closed = code; }, {}});
      started.set_value();
    });
    started.get_future().wait();
  }
  EXPECT_EQ(closed, std::errc::operation_canceled);
  EXPECT_EQ(read_text(pair.theirs, 1), "");
  EXPECT_TRUE(process->kill(SIGKILL));
  EXPECT_TRUE(process->await_exit(20s));
  ::close(held.ours);
}

} // namespace
} // namespace caisson::reactor
