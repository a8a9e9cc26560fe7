#pragma once

/// One Exec stream on the server: a process and, where the stream makes it, the sandbox that goes with it.
///
/// Back pressure both ways: one piece of standard input is with the guest at a time, and the next is read from the
/// client only when it has been taken; the guest gets credit for output when gRPC has taken it for the client. However
/// the stream ends (process, client killed, server stopped), the process is hung up and an owned sandbox removed.

#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "frontends/grpc/door_context.hpp"

namespace caisson::door {

class exec_call final : public grpc::ServerBidiReactor<v1::ExecInput, v1::ExecOutput>,
                        public std::enable_shared_from_this<exec_call> {
public:
  static constexpr std::size_t most_stdin_bytes = 32 * 1024;

  static exec_call* start(std::shared_ptr<door_context> door, grpc::CallbackServerContext& context);
  exec_call(std::shared_ptr<door_context> door, grpc::CallbackServerContext& context);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

private:
  // input
  void begin(v1::ExecRequest request);
  void created(engine::outcome<v1::SandboxStatus> outcome, v1::ExecRequest request);
  void launch(v1::ExecRequest request);
  bool take_stdin(std::string bytes); // false: nothing may be read until stdin_taken()
  void give_stdin(engine::exec_session& s, std::string bytes);
  void stdin_taken();
  void read_on();
  void close_stdin();
  void input_closed();
  void hang_up();
  // the end
  void end(v1::ExecOutput last, std::optional<v1::Error> failure);
  void end_with(v1::Error e);
  void finish_with(v1::ExecOutput last, std::string not_removed);
  // output; called with mutex_ held
  void push(v1::ExecOutput out);
  void pump();

  std::shared_ptr<engine::exec_session> session();

  activity running_;
  std::shared_ptr<door_context> door_;
  grpc::CallbackServerContext& context_; // valid until finished_
  v1::ExecInput in_;                     // of the read that is under way
  std::atomic<bool> begun_ = false;

  std::mutex mutex_; // everything below; never held while the engine is called
  std::shared_ptr<engine::exec_session> session_;
  std::deque<v1::ExecOutput> waiting_;            // bounded by the credit that the guest has
  v1::ExecOutput current_;                        // of the write that is under way
  std::size_t owed_stdout_ = 0, owed_stderr_ = 0; // written before exec() had returned its session
  std::optional<std::string> stdin_waiting_;
  std::string owned_;         // id of the stream's sandbox
  std::string name_to_abort_; // of a sandbox that is being created under a name of our choice
  std::optional<v1::Error> failure_;
  bool stdin_busy_ = false, stdin_closed_ = false;
  bool writing_ = false, hung_up_ = false, cancelled_ = false;
  bool ending_ = false;       // the last message is known
  bool flushed_ends_ = false; // it is in the queue: nothing follows
  bool finished_ = false;     // Finish() was called
  std::shared_ptr<exec_call> self_;
};

} // namespace caisson::door
