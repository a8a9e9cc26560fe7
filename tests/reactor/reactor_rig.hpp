#pragma once

#include <gtest/gtest.h>

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <filesystem>
#include <future>
#include <thread>

#include "reactor/file_watch.hpp"
#include "reactor/reactor.hpp"

namespace caisson::reactor {

using namespace std::chrono_literals;

inline std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span{text.data(), text.size()});
}

inline std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

template <class T> T await(std::future<T>& from) {
  if (from.wait_for(20s) != std::future_status::ready)
    throw std::runtime_error("nothing within 20 s");
  return from.get();
}

// One byte at a time is slow and exact; bounded by a poll.
inline std::string read_text(int fd, std::size_t size) {
  std::string out;
  while (out.size() < size) {
    pollfd ready{fd, POLLIN, 0};
    if (::poll(&ready, 1, 20'000) != 1)
      break;
    char buffer[65536];
    auto n = ::recv(fd, buffer, std::min(sizeof buffer, size - out.size()), 0);
    if (n <= 0)
      break;
    out.append(buffer, static_cast<std::size_t>(n));
  }
  return out;
}

struct socket_pair {
  int ours = -1;
  int theirs = -1;
  socket_pair() {
    std::array<int, 2> fds{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()) != 0)
      throw std::runtime_error("socketpair");
    ours = fds[0];
    theirs = fds[1];
  }
  ~socket_pair() {
    if (theirs >= 0)
      ::close(theirs);
  }
};

class reactor_test : public ::testing::Test {
protected:
  // Runs on the reactor's thread and waits for it.
  template <class F> auto on_reactor(F f) {
    std::promise<decltype(f())> done;
    auto result = done.get_future();
    io.post([&] {
      if constexpr (std::is_void_v<decltype(f())>) {
        f();
        done.set_value();
      } else {
        done.set_value(f());
      }
    });
    return await(result);
  }

  struct opened {
    std::unique_ptr<byte_pipe> pipe;
    std::string error;
  };
  opened open(const std::string& endpoint) {
    std::promise<opened> done;
    auto result = done.get_future();
    io.open(endpoint, [&](auto pipe, auto error) { done.set_value({std::move(pipe), std::move(error)}); });
    return await(result);
  }

  int listen_at(const std::string& path) {
    int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, path.size());
    EXPECT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0) << path;
    EXPECT_EQ(::listen(fd, 4), 0);
    return fd;
  }

  void SetUp() override {
    char name[] = "/tmp/caisson-reactor-XXXXXX";
    directory = ::mkdtemp(name);
  }
  void TearDown() override { std::filesystem::remove_all(directory); }

  std::string directory;
  reactor io;
};

} // namespace caisson::reactor
