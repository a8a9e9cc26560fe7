#pragma once

#include "guest/protocol/frame.hpp"
#include "guest/protocol/stream_mux.hpp"
#include "messages/agent.pb.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

namespace caisson::guest_protocol {

/// What the host's session tells its owner. Every call comes from inside `feed` or `take_output`, on the caller's
/// thread. A handler may call the session, but must not destroy it. Empty functions are skipped.
struct host_events {
  /// Once after each `open`: the guest has answered. Texts are cut to 128 bytes.
  std::function<void(const v1::AgentHello&)> on_hello;
  /// Once for each request that was sent, unless the connection ends first (then the owner fails what it waits for).
  std::function<void(const v1::AgentReply&)> on_reply;
  /// Unasked. An ExecExited comes after on_eof of both output streams and belongs to a command that this connection
  /// started. The owner bounds the rate at which it passes the others on.
  std::function<void(const v1::AgentNotice&)> on_notice;
  /// Bytes of a command's output. The guest may send stream_window_bytes; each `consumed` lets it send more.
  std::function<void(std::uint32_t stream, std::span<const std::byte>)> on_data;
  /// The stream has ended; its number is free again.
  std::function<void(std::uint32_t stream)> on_eof;
  /// A `write` that was not accepted whole may be tried again.
  std::function<void(std::uint32_t stream)> on_writable;
  /// The command reads its standard input no more; what is written from now on is dropped.
  std::function<void(std::uint32_t stream)> on_stopped;
  /// The guest broke the protocol: the owner closes the connection. Comes once; the session is dead until `open`.
  std::function<void(const std::string& text)> on_protocol_error;
};

/// The host's end of the channel to one guest: no sockets, no clock, no threads. The owner moves bytes:
///
///     session.open(random_epoch);                            // right after connecting
///     session.feed(bytes_read);                              // whatever arrives
///     while (session.has_output()) write(session.take_output());   // whenever the socket takes more
///
/// Everything from the guest is checked: credit, sizes, order, ids. Memory is bounded by version.hpp's numbers.
/// Not thread-safe.
class host_session {
public:
  explicit host_session(host_events events);

  /// Starts a connection: forgets everything of the one before. `epoch` is random and not 0.
  void open(std::uint64_t epoch);

  /// Everything that was read from the channel, in any pieces.
  void feed(std::span<const std::byte> bytes);

  /// True when take_output would return something.
  [[nodiscard]] bool has_output() const noexcept;

  /// The next bytes to write, about `limit` at most (a little more: whole frames). Control, then credit, then data in
  /// turn by stream. Call it when the last piece was written, so that control never waits behind more than one piece.
  [[nodiscard]] std::vector<std::byte> take_output(std::size_t limit = 64 * 1024);

  /// Queues a request. Ids are the caller's, never used twice on a connection. ExecStart opens its streams: they can be
  /// written at once. Returns why not, or nothing when it is queued (not open, dead, queue full, larger than a frame,
  /// id used, stream number 0 or in use).
  [[nodiscard]] std::optional<std::string> send_request(const v1::AgentRequest& request);

  /// Standard input of a command: takes as much as fits and says how much. Less than asked: on_writable follows. A
  /// stream that was closed, stopped or is unknown takes everything and drops it.
  std::size_t write(std::uint32_t stream, std::span<const std::byte> bytes);

  /// End of standard input, after what was written.
  void close(std::uint32_t stream);

  /// The reader of a command's output has gone: the guest closes the pipe, as a shell's `head` would. on_eof follows.
  void stop(std::uint32_t stream);

  /// The owner has passed on `bytes` of the stream's on_data: lets the guest send as many more.
  void consumed(std::uint32_t stream, std::size_t bytes);

  [[nodiscard]] bool is_open() const noexcept { return open_ && !dead_; }
  [[nodiscard]] bool greeted() const noexcept { return greeted_; }
  [[nodiscard]] std::size_t requests_waiting() const noexcept { return waiting_.size(); }
  [[nodiscard]] std::uint64_t skipped_bytes() const noexcept { return decoder_.skipped_bytes(); }

private:
  struct exec_streams {
    std::uint32_t in = 0, out = 0, err = 0;
  };

  bool on_frame(const frame_view& frame);
  bool on_control(std::span<const std::byte> payload);
  bool on_reply(v1::AgentReply& reply);
  bool on_notice(v1::AgentNotice& notice);
  bool fail(std::string text);

  host_events events_;
  frame_decoder decoder_;
  stream_mux mux_;
  std::uint64_t epoch_ = 0;
  std::uint64_t connection_ = 0;
  bool open_ = false, opening_ = false, greeted_ = false, dead_ = false;
  std::uint32_t strays_left_ = 0;
  std::unordered_map<std::uint64_t, exec_streams> waiting_; // by request id; zeros for what is no ExecStart
  std::unordered_map<std::uint64_t, exec_streams> execs_;   // by exec id
};

} // namespace caisson::guest_protocol
