// The local door over a double of the engine: what arrives, in which order, and what happens when one side goes.

#include <gtest/gtest.h>

#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <future>

#include "frontends/grpc/client.hpp"
#include "frontends/grpc/server.hpp"
#include "tests/frontends/service_double.hpp"

namespace caisson::test {
namespace {

class door_test : public ::testing::Test {
protected:
  void SetUp() override {
    char name[] = "/tmp/caisson door 100%,X-XXXXXX";
    directory_ = ::mkdtemp(name);
    socket_ = directory_ + "/engine.sock";
    auto started = door::server::start(service_, {.socket = socket_});
    ASSERT_EQ(started.index(), 0u) << std::get<1>(started).text();
    server_ = std::move(std::get<0>(started));
  }

  void TearDown() override {
    server_.reset();
    std::filesystem::remove_all(directory_);
  }

  std::unique_ptr<door::client> connect() {
    auto got = door::client::connect(socket_);
    if (!got || got->index() != 0)
      return nullptr;
    return std::move(std::get<0>(*got));
  }

  static v1::ExecInput start(std::vector<std::string> argv) {
    v1::ExecInput in;
    in.mutable_start()->set_sandbox("a");
    for (auto& word : argv)
      in.mutable_start()->mutable_start()->add_argv(word);
    return in;
  }

  static v1::ExecInput start_owned(std::vector<std::string> argv) {
    auto in = start(std::move(argv));
    in.mutable_start()->clear_sandbox();
    in.mutable_start()->mutable_create();
    return in;
  }

  static v1::ExecInput bytes(std::size_t n) {
    v1::ExecInput in;
    in.set_stdin_bytes(std::string(n, 's'));
    return in;
  }

  // Reads up to the first message of this kind.
  static bool read_until(door::exec_stream& s, v1::ExecOutput::OutputCase kind, v1::ExecOutput& out) {
    while (s.read(out))
      if (out.output_case() == kind)
        return true;
    return false;
  }

  service_double service_;
  std::string directory_, socket_;
  std::unique_ptr<door::server> server_;
};

TEST_F(door_test, only_its_owner_may_open_the_socket) {
  struct stat s {};
  ASSERT_EQ(::stat(socket_.c_str(), &s), 0);
  EXPECT_EQ(s.st_mode & 0777, 0600u);
  EXPECT_TRUE(S_ISSOCK(s.st_mode));
}

TEST_F(door_test, nobody_listens_where_no_engine_is) {
  EXPECT_FALSE(door::client::connect(directory_ + "/none.sock").has_value());
}

TEST_F(door_test, a_socket_path_that_is_too_long_is_refused_with_the_way_out) {
  auto got = door::client::connect(directory_ + "/" + std::string(120, 'x'));
  ASSERT_TRUE(got && got->index() == 1);
  EXPECT_NE(std::get<1>(*got).text().find("--run-dir"), std::string::npos);
}

TEST_F(door_test, an_answer_and_an_error_arrive_whole) {
  auto client = connect();
  ASSERT_TRUE(client);
  v1::CreateSandbox create;
  create.set_name("a");
  auto made = client->create(create);
  ASSERT_EQ(made.index(), 0u);
  EXPECT_EQ(std::get<0>(made).id(), "id-a");
  v1::GetSandbox get;
  get.set_sandbox("b");
  auto missing = client->get(get);
  ASSERT_EQ(missing.index(), 1u);
  EXPECT_EQ(std::get<1>(missing).code(), "not_found");
  EXPECT_EQ(std::get<1>(missing).text(), "sandbox b: there is none");
  EXPECT_EQ(std::get<1>(missing).exit_code(), 125);
}

TEST_F(door_test, twenty_long_console_lines_fit_in_an_error) {
  auto client = connect();
  v1::ConsoleRequest request;
  request.set_sandbox("failed");
  auto got = client->console(request);
  ASSERT_EQ(got.index(), 1u);
  EXPECT_EQ(std::get<1>(got).code(), "boot_failed");
  ASSERT_EQ(std::get<1>(got).console_tail_size(), 20);
  EXPECT_EQ(std::get<1>(got).console_tail(19).substr(0, 7), "line 19");
}

TEST_F(door_test, a_process_gets_its_words_and_gives_its_output_and_exit_code) {
  auto client = connect();
  auto stream = client->exec();
  stream->write(start({"args", "one", "two words"}));
  v1::ExecOutput out;
  std::string text, errors;
  int code = -1;
  bool started = false;
  while (stream->read(out)) {
    started |= out.started();
    text += out.stdout_bytes();
    errors += out.stderr_bytes();
    if (out.has_exited())
      code = out.exited().exit_code();
  }
  EXPECT_FALSE(stream->finish().has_value());
  EXPECT_TRUE(started);
  EXPECT_EQ(text, "args\none\ntwo words\n");
  EXPECT_EQ(errors, "done\n");
  EXPECT_EQ(code, 0);
}

TEST_F(door_test, a_process_that_cannot_start_ends_the_stream_with_the_error) {
  auto client = connect();
  auto stream = client->exec();
  stream->write(start({"missing"}));
  v1::ExecOutput out;
  ASSERT_TRUE(read_until(*stream, v1::ExecOutput::kError, out));
  EXPECT_EQ(out.error().code(), "not_found");
  while (stream->read(out)) {
  }
  auto failure = stream->finish();
  ASSERT_TRUE(failure.has_value());
  EXPECT_EQ(failure->code(), "not_found");
}

TEST_F(door_test, a_guest_that_floods_stands_still_while_nobody_reads) {
  constexpr std::size_t all = 32 << 20;
  auto client = connect();
  auto stream = client->exec();
  stream->write(start({"flood", std::to_string(all)}));
  EXPECT_FALSE(service_.wait_flooded(all / 2, 1500)) << "the guest got credit that nobody had earned";
  v1::ExecOutput out;
  std::size_t got = 0;
  while (stream->read(out))
    got += out.stdout_bytes().size();
  EXPECT_EQ(got, all);
  EXPECT_FALSE(stream->finish().has_value());
}

TEST_F(door_test, a_signal_passes_a_standard_input_that_is_not_taken) {
  auto client = connect();
  auto stream = client->exec();
  stream->write(start({"deaf"}));
  v1::ExecOutput out;
  ASSERT_TRUE(read_until(*stream, v1::ExecOutput::kStarted, out));
  stream->write(bytes(32 * 1024));
  v1::ExecInput signal;
  signal.set_signal(SIGTERM);
  stream->write(signal);
  ASSERT_TRUE(read_until(*stream, v1::ExecOutput::kExited, out));
  EXPECT_EQ(out.exited().exit_code(), 128 + SIGTERM);
}

TEST_F(door_test, only_one_piece_of_standard_input_is_with_the_guest_at_a_time) {
  auto client = connect();
  auto stream = client->exec();
  stream->write(start({"deaf"}));
  stream->write(bytes(100));
  stream->write(bytes(200));
  stream->write(bytes(300));
  EXPECT_TRUE(service_.wait_for("stdin 100"));
  EXPECT_FALSE(service_.wait_for("stdin 200", 300));
  stream->cancel();
  EXPECT_TRUE(service_.wait_for("hung up deaf"));
}

TEST_F(door_test, standard_input_comes_back_whole_and_in_order) {
  auto client = connect();
  auto stream = client->exec();
  stream->write(start({"cat"}));
  std::string sent, got;
  for (int i = 0; i < 200; ++i) {
    v1::ExecInput in;
    in.set_stdin_bytes(std::to_string(i) + std::string(5000, static_cast<char>('a' + i % 26)));
    sent += in.stdin_bytes();
    ASSERT_TRUE(stream->write(in));
  }
  v1::ExecInput closed;
  closed.set_stdin_closed(true);
  stream->write(closed);
  v1::ExecOutput out;
  int taken = 0;
  while (stream->read(out)) {
    got += out.stdout_bytes();
    taken += out.stdin_taken();
  }
  EXPECT_TRUE(got == sent);
  EXPECT_EQ(taken, 200);
}

TEST_F(door_test, too_large_a_piece_of_standard_input_is_refused) {
  auto client = connect();
  auto stream = client->exec();
  stream->write(start({"hold"}));
  stream->write(bytes(32 * 1024 + 1));
  v1::ExecOutput out;
  ASSERT_TRUE(read_until(*stream, v1::ExecOutput::kError, out));
  EXPECT_EQ(out.error().code(), "invalid_argument");
  EXPECT_TRUE(service_.wait_for("hung up hold"));
}

TEST_F(door_test, a_stream_that_does_not_begin_with_start_is_refused) {
  auto client = connect();
  auto stream = client->exec();
  stream->write(bytes(3));
  v1::ExecInput hang_up;
  hang_up.set_hang_up(true);
  stream->write(hang_up);
  v1::ExecOutput out;
  while (stream->read(out)) {
  }
  EXPECT_TRUE(stream->finish().has_value());
}

TEST_F(door_test, a_killed_client_hangs_its_process_up) {
  {
    auto client = connect();
    auto stream = client->exec();
    stream->write(start({"hold"}));
    v1::ExecOutput out;
    ASSERT_TRUE(read_until(*stream, v1::ExecOutput::kStarted, out));
    stream->cancel();
    while (stream->read(out)) {
    }
    stream->finish();
  }
  EXPECT_TRUE(service_.wait_for("hung up hold"));
}

TEST_F(door_test, an_owned_sandbox_is_gone_before_the_stream_tells_the_end) {
  auto client = connect();
  auto stream = client->exec();
  stream->write(start_owned({"exit", "7"}));
  v1::ExecOutput out;
  ASSERT_TRUE(stream->read(out));
  ASSERT_TRUE(out.has_sandbox());
  EXPECT_EQ(out.sandbox().owner(), "stream");
  auto id = out.sandbox().id();
  ASSERT_TRUE(read_until(*stream, v1::ExecOutput::kExited, out));
  EXPECT_EQ(out.exited().exit_code(), 7);
  EXPECT_TRUE(service_.noted("remove " + id));
}

TEST_F(door_test, an_owned_sandbox_goes_with_a_killed_client) {
  auto client = connect();
  auto stream = client->exec();
  stream->write(start_owned({"hold"}));
  v1::ExecOutput out;
  ASSERT_TRUE(read_until(*stream, v1::ExecOutput::kStarted, out));
  stream->cancel();
  EXPECT_TRUE(service_.wait_for("remove id-run-"));
  EXPECT_TRUE(service_.wait_for("hung up hold"));
}

TEST_F(door_test, an_owned_sandbox_goes_with_a_client_that_is_killed_during_its_boot) {
  service_.hold_create = true;
  auto client = connect();
  auto stream = client->exec();
  stream->write(start_owned({"hold"}));
  ASSERT_TRUE(service_.wait_for("create run-"));
  stream->cancel();
  // The boot is cut short by its name; what came of it nevertheless is removed by its id.
  EXPECT_TRUE(service_.wait_for("remove run-"));
  service_.release_create();
  EXPECT_TRUE(service_.wait_for("remove id-run-"));
  EXPECT_FALSE(service_.noted("exec"));
}

TEST_F(door_test, a_name_that_another_has_is_never_removed) {
  v1::CreateSandbox other;
  other.set_name("a");
  auto client = connect();
  client->create(other);
  auto taken = some_error("already_exists", "there is a sandbox a", 125);
  service_.create_error = &taken;
  auto in = start_owned({"hold"});
  in.mutable_start()->mutable_create()->set_name("a");
  auto stream = client->exec();
  stream->write(in);
  v1::ExecOutput out;
  ASSERT_TRUE(read_until(*stream, v1::ExecOutput::kError, out));
  EXPECT_EQ(out.error().code(), "already_exists");
  EXPECT_FALSE(service_.noted("remove"));
}

TEST_F(door_test, hanging_up_ends_process_and_sandbox_and_then_the_stream) {
  auto client = connect();
  auto stream = client->exec();
  stream->write(start_owned({"stubborn"}));
  v1::ExecOutput out;
  ASSERT_TRUE(read_until(*stream, v1::ExecOutput::kStarted, out));
  v1::ExecInput hang_up;
  hang_up.set_hang_up(true);
  stream->write(hang_up);
  ASSERT_TRUE(read_until(*stream, v1::ExecOutput::kError, out));
  EXPECT_EQ(out.error().code(), "cancelled");
  EXPECT_TRUE(service_.noted("remove id-run-"));
}

TEST_F(door_test, old_events_end_without_follow_and_go_on_with_it) {
  for (std::uint64_t i = 1; i <= 5; ++i) {
    v1::Event e;
    e.set_seq(i);
    service_.old_events.push_back(e);
  }
  auto client = connect();
  v1::WatchEvents request;
  request.set_from_seq(3);
  std::vector<std::uint64_t> seen;
  EXPECT_FALSE(client->watch(request, [&](const v1::Event& e) {
    seen.push_back(e.seq());
    return true;
  }));
  EXPECT_EQ(seen, (std::vector<std::uint64_t>{3, 4, 5}));

  request.set_from_seq(0);
  request.set_follow(true);
  auto watching = std::async(std::launch::async, [&] {
    std::uint64_t last = 0;
    client->watch(request, [&](const v1::Event& e) {
      last = e.seq();
      return false;
    });
    return last;
  });
  EXPECT_TRUE(service_.wait_for("unsubscribed"));
  while (watching.wait_for(std::chrono::milliseconds{20}) != std::future_status::ready) {
    v1::Event e;
    e.set_seq(99);
    service_.emit(e);
  }
  EXPECT_EQ(watching.get(), 99u);
}

TEST_F(door_test, stopping_the_door_ends_what_runs_and_removes_the_socket) {
  auto client = connect();
  auto stream = client->exec();
  stream->write(start_owned({"hold"}));
  v1::ExecOutput out;
  ASSERT_TRUE(read_until(*stream, v1::ExecOutput::kStarted, out));
  EXPECT_EQ(server_->active_calls(), 1u);
  server_->stop(std::chrono::milliseconds{10});
  EXPECT_EQ(server_->active_calls(), 0u);
  EXPECT_TRUE(service_.noted("remove id-run-"));
  EXPECT_FALSE(std::filesystem::exists(socket_));
  while (stream->read(out)) {
  }
  auto failure = stream->finish();
  ASSERT_TRUE(failure.has_value());
}

} // namespace
} // namespace caisson::test
