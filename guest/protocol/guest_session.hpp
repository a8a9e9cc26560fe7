#pragma once

#include "guest/protocol/frame.hpp"
#include "guest/protocol/stream_mux.hpp"
#include "messages/agent.pb.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace caisson::guest_protocol {

/// What the guest's session tells its owner (the agent, the simulated guest). Called from inside `feed` or
/// `take_output`; a handler may call the session. Empty functions are skipped.
struct guest_events {
  /// A host has opened a new connection: what the earlier one started has lost its streams. Answer with send_hello.
  std::function<void()> on_open;
  std::function<void(const v1::AgentRequest&)> on_request;
  /// Bytes for a stream that add_input opened; at most stream_window_bytes before `consumed`.
  std::function<void(std::uint32_t stream, std::span<const std::byte>)> on_data;
  /// The input has ended; its number is free again.
  std::function<void(std::uint32_t stream)> on_eof;
  /// An output stream has room again after a `write` that was not accepted whole, or after writable_bytes was 0.
  std::function<void(std::uint32_t stream)> on_writable;
  /// The host reads this output no more: close the pipe. Nothing more needs to be written.
  std::function<void(std::uint32_t stream)> on_stopped;
};

/// The guest's end of the channel: no descriptors, no clock. Whatever the host sends that makes no sense is dropped
/// (the host is trusted; the session only must not lose its place). Not thread-safe.
class guest_session {
public:
  explicit guest_session(guest_events events);

  void feed(std::span<const std::byte> bytes);

  /// The host has gone (the port says so): drops all queues and waits for the next `open`.
  void disconnected();

  [[nodiscard]] bool is_open() const noexcept { return epoch_ != 0; }
  [[nodiscard]] std::uint64_t epoch() const noexcept { return epoch_; }

  /// False while the host doesn't read the replies that wait for it: then read no more requests from it.
  [[nodiscard]] bool wants_input() const noexcept;
  [[nodiscard]] bool has_output() const noexcept;
  [[nodiscard]] std::vector<std::byte> take_output(std::size_t limit = 64 * 1024);

  /// Each is dropped while no host is connected. A notice is dropped too when the queue is full; false says so.
  void send_hello(v1::AgentHello hello);
  void send_reply(v1::AgentReply reply);
  bool send_notice(v1::AgentNotice notice);

  /// Sends the notice once all these output streams have sent their last byte and their end (ExecExited's promise).
  void send_notice_after(std::vector<std::uint32_t> streams, v1::AgentNotice notice);

  /// Opens the streams that an ExecStart names. False: number 0, in use, or too many.
  bool add_input(std::uint32_t stream);
  bool add_output(std::uint32_t stream);

  /// How much `write` would take now. 0: on_writable follows.
  [[nodiscard]] std::size_t writable_bytes(std::uint32_t stream);
  std::size_t write(std::uint32_t stream, std::span<const std::byte> bytes);
  /// The last byte was written.
  void close(std::uint32_t stream);
  /// The command reads its input no more.
  void stop(std::uint32_t stream);
  void consumed(std::uint32_t stream, std::size_t bytes);
  /// Forgets a stream without a word (an input whose command has ended).
  void forget(std::uint32_t stream);

private:
  struct deferred_notice {
    std::vector<std::uint32_t> streams;
    std::vector<std::byte> payload;
  };

  bool on_frame(const frame_view& frame);
  bool send(const v1::GuestControl& message, bool may_drop);
  void after_output();
  void forget_all();

  guest_events events_;
  frame_decoder decoder_;
  stream_mux mux_;
  std::uint64_t epoch_ = 0;
  std::vector<deferred_notice> deferred_;
};

} // namespace caisson::guest_protocol
