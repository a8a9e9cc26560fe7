// The reactor against real sockets and real processes. Nothing here sleeps: every wait is for an event, with a limit.

#include "tests/reactor/reactor_rig.hpp"

namespace caisson::reactor {
namespace {

TEST_F(reactor_test, tells_of_changes_and_of_a_file_renamed_over_another) {
  char name[] = "/tmp/csn-watch-XXXXXX";
  const std::string top = ::mkdtemp(name);
  auto write = [&](const std::string& file) { ::close(::open((top + file).c_str(), O_CREAT | O_WRONLY, 0600)); };
  write("/configuration.toml");
  std::promise<void> told;
  auto heard = told.get_future();
  std::atomic<int> times{0};
  {
    file_watch watch{io, {top, top + "/config.d"}, [&] {
                       if (++times == 1)
                         told.set_value();
                     }};
    // The watch begins on the reactor's thread; what is posted behind it comes after it has.
    std::promise<void> begun;
    auto ready = begun.get_future();
    io.post([&] { begun.set_value(); });
    await(ready);
    for (int i = 0; i < 20; ++i)
      write("/configuration.toml~" + std::to_string(i % 3));
    std::filesystem::rename(top + "/configuration.toml~1", top + "/configuration.toml");
    await(heard);
  }
  EXPECT_GE(times, 1);
  std::filesystem::remove_all(top);
}

TEST_F(reactor_test, echoes_over_a_unix_socket) {
  auto path = directory + "/s";
  int listener = listen_at(path);
  auto connected = open("unix:" + path);
  ASSERT_TRUE(connected.pipe) << connected.error;
  int peer = ::accept(listener, nullptr, nullptr);
  std::promise<std::string> heard;
  auto answer = heard.get_future();
  on_reactor([&] {
    connected.pipe->start({[&](auto bytes) { heard.set_value(text_of(bytes)); }, {}, {}});
    connected.pipe->write(bytes_of("hello"));
  });
  EXPECT_EQ(read_text(peer, 5), "hello");
  ASSERT_EQ(::send(peer, "world", 5, 0), 5);
  EXPECT_EQ(await(answer), "world");
  connected.pipe.reset();
  EXPECT_EQ(read_text(peer, 1), "") << "dropping the pipe closes the socket";
  ::close(peer);
  ::close(listener);
}

TEST_F(reactor_test, says_why_a_socket_does_not_open) {
  auto none = open("unix:" + directory + "/none");
  EXPECT_FALSE(none.pipe);
  EXPECT_NE(none.error.find(directory + "/none"), std::string::npos) << none.error;
  EXPECT_NE(none.error.find("No such file"), std::string::npos) << none.error;

  ::close(listen_at(directory + "/dead"));
  EXPECT_NE(open("unix:" + directory + "/dead").error.find("nobody listens"), std::string::npos);

  auto longer = open("unix:" + directory + "/" + std::string(107 - directory.size(), 'x'));
  EXPECT_FALSE(longer.pipe);
  EXPECT_NE(longer.error.find("108 bytes"), std::string::npos) << longer.error;
  EXPECT_NE(longer.error.find("--run-dir"), std::string::npos) << longer.error;

  EXPECT_NE(open("simulated:7").error.find("expected unix:PATH"), std::string::npos);
  EXPECT_NE(open("hybrid-vsock:" + directory + "/x").error.find("PATH:PORT"), std::string::npos);
}

TEST_F(reactor_test, opens_a_path_of_exactly_107_bytes) {
  auto path = directory + "/" + std::string(106 - directory.size(), 'x');
  ASSERT_EQ(path.size(), 107u);
  int listener = listen_at(path);
  EXPECT_TRUE(open("unix:" + path).pipe);
  ::close(listener);
}

TEST_F(reactor_test, asks_the_vmm_for_a_guest_port) {
  auto path = directory + "/v";
  int listener = listen_at(path);
  std::promise<opened> done;
  auto result = done.get_future();
  io.open("hybrid-vsock:" + path + ":1024", [&](auto pipe, auto error) { done.set_value({std::move(pipe), error}); });
  int peer = ::accept(listener, nullptr, nullptr);
  EXPECT_EQ(read_text(peer, 13), "CONNECT 1024\n");
  // In two pieces, and with the guest's first bytes behind it.
  ASSERT_EQ(::send(peer, "OK 10", 5, 0), 5);
  on_reactor([] {});
  ASSERT_EQ(::send(peer, "73741824\nguest", 14, 0), 14);
  auto connected = await(result);
  ASSERT_TRUE(connected.pipe) << connected.error;
  std::promise<std::string> heard;
  auto first = heard.get_future();
  on_reactor([&] { connected.pipe->start({[&](auto bytes) { heard.set_value(text_of(bytes)); }, {}, {}}); });
  EXPECT_EQ(await(first), "guest");
  ::close(peer);
  ::close(listener);
}

TEST_F(reactor_test, asks_again_until_something_in_the_guest_listens) {
  auto path = directory + "/v";
  int listener = listen_at(path);
  std::promise<opened> done;
  auto result = done.get_future();
  io.open("hybrid-vsock:" + path + ":5", [&](auto pipe, auto error) { done.set_value({std::move(pipe), error}); });
  for (int n = 0; n < 3; ++n) {
    int peer = ::accept(listener, nullptr, nullptr);
    EXPECT_EQ(read_text(peer, 10), "CONNECT 5\n");
    if (n == 2) {
      EXPECT_EQ(::send(peer, "OK 1\n", 5, 0), 5);
    }
    if (n == 1) {
      EXPECT_EQ(::send(peer, "OK", 2, 0), 2); // half an answer is forgotten with its connection
    }
    ::close(peer);
  }
  auto connected = await(result);
  EXPECT_TRUE(connected.pipe) << connected.error;
  ::close(listener);
}

TEST_F(reactor_test, stops_asking_for_a_guest_port_when_the_vmm_is_gone_or_somebody_asks_anew) {
  auto path = directory + "/v";
  int listener = listen_at(path);
  const auto open_port = [&](std::promise<std::string>& done) {
    io.open("hybrid-vsock:" + path + ":5", [&](auto, auto error) { done.set_value(error); });
  };
  std::promise<std::string> first, second;
  auto of_first = first.get_future(), of_second = second.get_future();
  open_port(first);
  open_port(second);
  EXPECT_NE(await(of_first).find("asked for once more"), std::string::npos);
  ::close(listener);
  EXPECT_NE(await(of_second).find("nobody listens there any more"), std::string::npos);
}

TEST_F(reactor_test, refuses_what_is_no_hybrid_vsock) {
  auto path = directory + "/v";
  int listener = listen_at(path);
  auto answered_with = [&](std::string_view with) {
    std::promise<std::string> done;
    auto result = done.get_future();
    io.open("hybrid-vsock:" + path + ":5", [&](auto, auto error) { done.set_value(error); });
    int peer = ::accept(listener, nullptr, nullptr);
    EXPECT_EQ(read_text(peer, 10), "CONNECT 5\n");
    EXPECT_EQ(::send(peer, with.data(), with.size(), 0), static_cast<ssize_t>(with.size()));
    ::close(peer);
    return await(result);
  };
  EXPECT_NE(answered_with("HTTP/1.1 400\n").find("not \"OK"), std::string::npos);
  EXPECT_NE(answered_with(std::string(5000, 'O')).find("not \"OK"), std::string::npos);
  ::close(listener);
}

TEST_F(reactor_test, a_flooding_pipe_leaves_the_others_their_turns) {
  constexpr int floods = 4;
  std::vector<std::unique_ptr<socket_pair>> pairs;
  std::vector<std::unique_ptr<byte_pipe>> pipes;
  std::vector<std::thread> writers;
  socket_pair quiet;
  std::unique_ptr<byte_pipe> quiet_pipe;
  std::atomic<bool> over{false};
  std::promise<std::pair<int, std::size_t>> seen;
  auto result = seen.get_future();
  // Only touched on the reactor's thread. Once the flood runs, the quiet peer says something; from then on the flood's
  // turns are counted until it is heard.
  int turns = 0;
  int turns_when_sent = -1;
  std::size_t largest_turn = 0;
  on_reactor([&] {
    quiet_pipe = io.adopt(quiet.ours);
    quiet_pipe->start({[&](auto) { seen.set_value({turns - turns_when_sent, largest_turn}); }, {}, {}});
    for (int i = 0; i < floods; ++i) {
      pairs.push_back(std::make_unique<socket_pair>());
      pipes.push_back(io.adopt(pairs.back()->ours));
      pipes.back()->start({[&](auto bytes) {
                             largest_turn = std::max(largest_turn, bytes.size());
                             if (++turns == 400) {
                               turns_when_sent = turns;
                               EXPECT_EQ(::send(quiet.theirs, "x", 1, 0), 1);
                             }
                           },
                           {},
                           {}});
    }
  });
  for (const auto& pair : pairs)
    writers.emplace_back([&over, fd = pair->theirs] {
      std::string much(256 * 1024, 'f');
      while (!over && ::send(fd, much.data(), much.size(), MSG_NOSIGNAL) > 0)
        ;
    });
  auto [waited, largest] = await(result);
  EXPECT_LE(waited, 2 * floods) << "turns of the flooding pipes before the quiet one was heard";
  EXPECT_LE(largest, read_turn_bytes);
  over = true;
  on_reactor([&] { pipes.clear(); });
  for (auto& writer : writers)
    writer.join();
}

TEST_F(reactor_test, a_paused_pipe_holds_its_peer_back) {
  socket_pair pair;
  std::unique_ptr<byte_pipe> pipe;
  std::size_t got = 0;
  std::promise<void> all;
  auto done = all.get_future();
  std::string much(8 << 20, 'p');
  on_reactor([&] {
    pipe = io.adopt(pair.ours);
    pipe->start({[&](auto bytes) {
                   got += bytes.size();
                   if (got == much.size())
                     all.set_value();
                 },
                 {},
                 {}});
    pipe->pause_reading(true);
  });
  // What the kernel takes without a reader is far less than everything.
  std::size_t sent = 0;
  for (ssize_t n; (n = ::send(pair.theirs, much.data(), much.size() - sent, MSG_DONTWAIT)) > 0;)
    sent += static_cast<std::size_t>(n);
  EXPECT_LT(sent, much.size());
  EXPECT_EQ(on_reactor([&] { return got; }), 0u);
  on_reactor([&] { pipe->pause_reading(false); });
  while (sent < much.size()) {
    auto n = ::send(pair.theirs, much.data(), much.size() - sent, 0);
    ASSERT_GT(n, 0);
    sent += static_cast<std::size_t>(n);
  }
  await(done);
}

TEST_F(reactor_test, writes_are_queued_in_order_and_told_when_drained) {
  socket_pair pair;
  std::unique_ptr<byte_pipe> pipe;
  std::promise<void> drained;
  auto done = drained.get_future();
  std::string expected;
  std::size_t queued = 0;
  on_reactor([&] {
    pipe = io.adopt(pair.ours);
    pipe->start({{}, {}, [&] {
                   EXPECT_EQ(pipe->queued(), 0u);
                   drained.set_value();
                 }});
    for (int i = 0; i < 64; ++i) {
      std::string piece(50'000, static_cast<char>('A' + i % 26));
      expected += piece;
      pipe->write(bytes_of(piece));
    }
    queued = pipe->queued();
  });
  EXPECT_GT(queued, 0u);
  EXPECT_EQ(read_text(pair.theirs, expected.size()), expected);
  await(done);
}

TEST_F(reactor_test, a_peer_that_takes_nothing_is_cut_off) {
  socket_pair pair;
  std::unique_ptr<byte_pipe> pipe;
  std::promise<std::error_code> closed;
  auto why = closed.get_future();
  on_reactor([&] {
    pipe = io.adopt(pair.ours);
    pipe->start({{}, [&](auto code) { closed.set_value(code); }, {}});
    std::string much(1 << 20, 'w');
    for (int i = 0; i < 20; ++i)
      pipe->write(bytes_of(much));
    EXPECT_LE(pipe->queued(), most_queued_bytes);
  });
  EXPECT_EQ(await(why), std::errc::no_buffer_space);
}

TEST_F(reactor_test, last_words_of_a_peer_are_heard_before_its_end) {
  socket_pair pair;
  std::unique_ptr<byte_pipe> pipe;
  std::string heard;
  std::promise<std::error_code> closed;
  auto why = closed.get_future();
  ASSERT_EQ(::send(pair.theirs, "last", 4, 0), 4);
  ::close(std::exchange(pair.theirs, -1));
  on_reactor([&] {
    pipe = io.adopt(pair.ours);
    pipe->start({[&](auto bytes) { heard += text_of(bytes); }, [&](auto code) { closed.set_value(code); }, {}});
    pipe->write(bytes_of("too late, and no SIGPIPE"));
  });
  await(why);
  EXPECT_EQ(heard, "last");
}

TEST_F(reactor_test, an_orderly_end_is_told_once_and_a_pipe_may_be_dropped_inside_its_callback) {
  socket_pair pair;
  std::unique_ptr<byte_pipe> pipe;
  std::promise<std::error_code> closed;
  auto why = closed.get_future();
  on_reactor([&] {
    pipe = io.adopt(pair.ours);
    pipe->start({[&](auto) { FAIL(); },
                 [&](auto code) {
                   pipe.reset();
                   closed.set_value(code);
                 },
                 {}});
  });
  ::close(std::exchange(pair.theirs, -1));
  EXPECT_FALSE(await(why)) << "no error: the peer has closed";
}

} // namespace
} // namespace caisson::reactor
