#pragma once

#include "guest/protocol/host_session.hpp"

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace caisson::guest_protocol {

/// A small blocking host for tests: one connected socket, a host_session, and poll() with a deadline. Ends the test
/// program's wait, not the program, when something doesn't come: every `wait` returns false then.
class agent_client {
public:
  using milliseconds = std::chrono::milliseconds;

  struct command {
    std::uint64_t request = 0, exec_id = 0;
    std::uint32_t in = 0, out = 0, err = 0;
    std::string output, errors;
    std::size_t unread = 0; // bytes kept from the guest's credit while `reading` is false
    std::optional<v1::ExecExited> exited;
    std::optional<v1::AgentFailure> failure;
  };

  /// Takes the descriptor over. Greets at once.
  explicit agent_client(int fd);
  ~agent_client();
  agent_client(const agent_client&) = delete;

  /// Runs the channel until `done` is true or the time is over.
  bool wait(milliseconds limit, const std::function<bool()>& done);

  std::uint64_t send(v1::AgentRequest request);
  std::optional<v1::AgentReply> ask(v1::AgentRequest request, milliseconds limit);

  /// Starts a command; its streams are numbered by the client.
  command& start(std::vector<std::string> argv, const std::function<void(v1::ExecStart&)>& adjust = nullptr);
  bool finish(command& c, milliseconds limit);

  /// Writes all of it, as the guest grants credit.
  bool write(command& c, const std::string& text, milliseconds limit);
  void close_input(command& c) { session.close(c.in); }

  bool reading = true; ///< false: output is not consumed, so that the guest runs out of credit
  std::optional<v1::AgentHello> hello;
  std::map<std::uint64_t, v1::AgentReply> replies;
  std::vector<v1::AgentNotice> notices;
  std::vector<std::uint32_t> stopped;
  std::string protocol_error;
  bool closed = false; ///< the other side has closed the channel
  host_session session;

private:
  host_events events();
  command* by_stream(std::uint32_t stream);

  int fd_;
  std::vector<std::byte> output_;
  std::size_t output_at_ = 0;
  std::uint64_t next_request_ = 1;
  std::uint32_t next_stream_ = 1;
  std::map<std::uint64_t, command> commands_; // by request id
};

/// A program at the other end of a socketpair (`--test-socket FD` comes before its other arguments); reaped by the caller.
pid_t start_with_socket(std::vector<std::string> arguments, int& our_end);

} // namespace caisson::guest_protocol
