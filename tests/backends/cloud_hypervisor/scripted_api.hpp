#pragma once

// A double of the API server's socket: the test's own thread accepts, reads what was asked and answers byte by byte, so
// that a fault happens exactly where the test says. Every wait is bounded.

#include <gtest/gtest.h>

#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "backends/cloud-hypervisor/api_client.hpp"

namespace caisson::cloud_hypervisor::testing {

using namespace std::chrono_literals;

inline void await_readable(int fd, const char* what) {
  pollfd ready{fd, POLLIN, 0};
  if (::poll(&ready, 1, 60'000) != 1)
    throw std::runtime_error(std::string{what} + ": nothing within a minute");
}

class peer {
public:
  explicit peer(int fd) : fd_(fd) {}
  peer(peer&& other) noexcept : fd_(std::exchange(other.fd_, -1)), descriptors(std::move(other.descriptors)) {}
  peer& operator=(peer&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(descriptors, other.descriptors);
    return *this;
  }
  ~peer() {
    close();
    for (int each : descriptors)
      ::close(each);
  }

  /// One whole request, headers and body.
  std::string read() {
    std::string all;
    for (;;) {
      if (auto end = all.find("\r\n\r\n"); end != all.npos) {
        auto at = all.find("Content-Length: ");
        if (at == all.npos)
          throw std::runtime_error("a request without Content-Length: " + all);
        auto size = static_cast<std::size_t>(std::stoul(all.substr(at + 16)));
        if (all.size() >= end + 4 + size)
          return all;
      }
      if (!read_some(all))
        throw std::runtime_error("the client has closed within a request: " + all);
    }
  }

  void write(std::string_view text) {
    while (!text.empty()) {
      auto n = ::send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
      if (n < 0)
        return; // the client has given up, as some tests want it to
      text.remove_prefix(static_cast<std::size_t>(n));
    }
  }

  /// Each byte is taken by the client before the next one goes out.
  void write_slowly(std::string_view text) {
    for (char each : text) {
      write({&each, 1});
      for (int waiting = 1; waiting > 0;) {
        if (::ioctl(fd_, SIOCOUTQ, &waiting) != 0)
          throw std::runtime_error("SIOCOUTQ");
        std::this_thread::yield();
      }
    }
  }

  /// True: the client has closed. What it sent before is dropped.
  bool await_end() {
    std::string dropped;
    while (read_some(dropped))
      ;
    return true;
  }

  bool has_something() {
    pollfd ready{fd_, POLLIN, 0};
    return ::poll(&ready, 1, 0) == 1;
  }

  void take_no_more() { ::shutdown(fd_, SHUT_RD); }
  void close() {
    if (fd_ >= 0)
      ::close(std::exchange(fd_, -1));
  }

private:
  bool read_some(std::string& into) {
    await_readable(fd_, "a request");
    char buffer[4096];
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 8)];
    iovec part{buffer, sizeof buffer};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    auto n = ::recvmsg(fd_, &message, MSG_CMSG_CLOEXEC);
    if (n <= 0)
      return false;
    for (auto* h = CMSG_FIRSTHDR(&message); h != nullptr; h = CMSG_NXTHDR(&message, h)) {
      const auto count = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (std::size_t i = 0; i < count; ++i)
        descriptors.push_back(reinterpret_cast<int*>(CMSG_DATA(h))[i]);
    }
    into.append(buffer, static_cast<std::size_t>(n));
    return true;
  }

  int fd_;

public:
  std::vector<int> descriptors; ///< that came along, owned
};

class scripted_api {
public:
  scripted_api() {
    char form[] = "/tmp/ch-api-XXXXXX";
    if (::mkdtemp(form) == nullptr)
      throw std::runtime_error("mkdtemp");
    directory_ = form;
    listen();
  }
  ~scripted_api() {
    stop();
    std::filesystem::remove_all(directory_);
  }
  scripted_api(const scripted_api&) = delete;
  scripted_api& operator=(const scripted_api&) = delete;

  std::string path() const { return directory_ + "/api.sock"; }

  peer accept() {
    await_readable(fd_, "a connection");
    return peer{::accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC)};
  }
  bool somebody_waits() {
    pollfd ready{fd_, POLLIN, 0};
    return ::poll(&ready, 1, 0) == 1;
  }
  /// The socket's file stays, as after a crash.
  void stop() {
    if (fd_ >= 0)
      ::close(std::exchange(fd_, -1));
  }

private:
  void listen() {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path().copy(address.sun_path, sizeof address.sun_path - 1);
    fd_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (::bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || ::listen(fd_, 16) != 0)
      throw std::runtime_error("bind");
  }

  std::string directory_;
  int fd_ = -1;
};

/// The end of a call, for a test that waits.
class awaited {
public:
  awaited(api_client& client, request what, std::chrono::milliseconds deadline = 60s, const std::vector<int>& fds = {}) {
    auto promise = std::make_shared<std::promise<outcome>>();
    end_ = promise->get_future();
    client.call(std::move(what), deadline, [promise](outcome out) { promise->set_value(std::move(out)); }, fds);
  }
  outcome get() {
    if (end_.wait_for(60s) != std::future_status::ready)
      throw std::runtime_error("the call has not ended within a minute");
    return end_.get();
  }
  bool pending() const { return end_.wait_for(0s) != std::future_status::ready; }

private:
  std::future<outcome> end_;
};

/// As the server writes it.
inline std::string reply_text(int status, const std::string& body) {
  return "HTTP/1.1 " + std::to_string(status) +
         " \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n"
         "Content-Length: " +
         std::to_string(body.size()) + "\r\n\r\n" + body;
}
inline const std::string no_content = "HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n";
inline const std::string ping_body =
    R"({"build_version":"v53.0.0","version":"53.0.0","pid":4242,"features":["io_uring","kvm"]})";

} // namespace caisson::cloud_hypervisor::testing
