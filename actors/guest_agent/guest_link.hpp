#pragma once

/// One connection to one guest: the pipe, the host's end of the protocol, and the streams of running commands. Control
/// messages go to the guest_agent actor; stdio goes straight between a door and the pipe and never through an actor.
///
/// Public members may be called from any thread; the work is done on the executor of the pipe's opener, where all
/// callbacks run too. No callback runs after close() has been executed there, except each command's `on_end`.

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "guest/protocol/host_session.hpp"
#include "messages/agent.pb.h"
#include "messages/error.pb.h"
#include "messages/local.hpp"

namespace caisson {

/// What a door hears of its command. `on_end` is the last call and comes always.
struct guest_exec_events {
  std::function<void()> on_started;
  std::function<void(std::span<const std::byte>)> on_stdout;
  std::function<void(std::span<const std::byte>)> on_stderr;
  std::function<void(std::variant<v1::ExecExited, v1::Error>)> on_end;
};

class guest_exec;

class guest_link : public std::enable_shared_from_this<guest_link> {
public:
  struct events {
    std::function<void(v1::GuestControl)>
        on_control;                               ///< hello, replies to request(), notices (bounded, see notice_taken)
    std::function<void(std::string why)> on_lost; ///< once: never opened, closed by the peer, or a broken protocol
  };

  guest_link(pipe_opener& opener, events handlers);
  ~guest_link();

  /// Once. `epoch` is random and not 0.
  void open(const std::string& endpoint, std::uint64_t epoch);
  void close();

  /// For request(): ids are never used twice on a link.
  std::uint64_t next_request_id() noexcept { return ++last_request_id_; }
  /// A request that cannot be sent is answered with a failure reply.
  void request(v1::AgentRequest message);
  /// The actor has handled a notice. A guest that floods has its notices dropped while 16 are unhandled.
  void notice_taken() noexcept { --notices_in_flight_; }

  /// Starts a command; stream numbers are chosen here. The command is hung up when the last reference goes.
  std::shared_ptr<guest_exec> exec(v1::ExecStart start, guest_exec_events handlers);

  bool lost() const noexcept { return lost_; }

private:
  friend class guest_exec;
  struct running; // one command, on the executor

  void on_executor(std::function<void(guest_link&)> work);
  void begin(std::unique_ptr<byte_pipe> pipe, std::uint64_t epoch);
  void pump();
  void lose(const std::string& why);
  void handle_reply(const v1::AgentReply& reply);
  void handle_notice(const v1::AgentNotice& notice);
  void end_exec(const std::shared_ptr<running>& it, std::variant<v1::ExecExited, v1::Error> how);
  void push_stdin(running& it);
  std::uint32_t free_stream();

  pipe_opener& opener_;
  events handlers_;
  guest_protocol::host_session session_;
  std::unique_ptr<byte_pipe> pipe_;
  std::atomic<std::uint64_t> last_request_id_{0};
  std::atomic<int> notices_in_flight_{0};
  std::atomic<bool> lost_{false};
  bool closed_ = false;
  std::uint32_t last_stream_ = 0;
  std::map<std::uint64_t, std::shared_ptr<running>> starting_; // by request id
  std::map<std::uint64_t, std::shared_ptr<running>> execs_;    // by the guest's exec id
  std::map<std::uint32_t, std::shared_ptr<running>> by_stream_;
};

/// A door's handle on a command. Thread safe.
class guest_exec {
public:
  guest_exec(std::shared_ptr<guest_link> link, std::shared_ptr<guest_link::running> it);
  ~guest_exec(); ///< hangs up: SIGHUP, stdin closed, output dropped
  guest_exec(const guest_exec&) = delete;
  guest_exec& operator=(const guest_exec&) = delete;

  void write_stdin(std::string bytes, std::function<void()> taken);
  void close_stdin();
  void resize(std::uint32_t rows, std::uint32_t columns);
  void signal(int number);
  void consumed_stdout(std::size_t bytes);
  void consumed_stderr(std::size_t bytes);

private:
  void ask(std::function<void(v1::AgentRequest&, std::uint64_t exec_id)> fill);

  std::shared_ptr<guest_link> link_;
  std::shared_ptr<guest_link::running> it_;
};

} // namespace caisson
