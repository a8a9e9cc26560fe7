#pragma once

#include "guest/protocol/frame.hpp"

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <span>
#include <vector>

namespace caisson::guest_protocol {

/// The streams of one connection with their credit, and the order in which frames leave: control, credit, data in turn.
/// Inside of host_session and guest_session; nobody else needs it.
class stream_mux {
public:
  enum class verdict { ok, stray, over_credit, malformed };

  /// Forgets everything.
  void clear();

  /// False: number 0, in use, or streams_max reached.
  bool add_input(std::uint32_t stream);
  bool add_output(std::uint32_t stream);
  void remove(std::uint32_t stream);
  [[nodiscard]] bool known(std::uint32_t stream) const { return streams_.contains(stream); }
  [[nodiscard]] std::size_t size() const noexcept { return streams_.size(); }

  // Outgoing. Unknown and finished streams take everything and drop it.
  std::size_t write(std::uint32_t stream, std::span<const std::byte> bytes);
  [[nodiscard]] std::size_t writable_bytes(std::uint32_t stream);
  void close(std::uint32_t stream);
  /// True once the stream's end has left (or it is unknown).
  [[nodiscard]] bool ended(std::uint32_t stream) const;

  // Incoming.
  void consumed(std::uint32_t stream, std::size_t bytes);
  void stop(std::uint32_t stream);

  /// Frames of the other side. `deliver` is set when on_data, on_eof or on_stopped is to be told.
  verdict take_data(std::uint32_t stream, std::size_t bytes, bool& deliver);
  verdict take_end(std::uint32_t stream, bool& deliver);
  verdict take_credit(std::uint32_t stream, std::span<const std::byte> payload);
  verdict take_stop(std::uint32_t stream, bool& deliver);

  /// Queues one control message; false when the queue is full and `may_refuse`.
  bool queue_control(std::vector<std::byte> payload, bool may_refuse);
  [[nodiscard]] std::size_t control_bytes() const noexcept { return control_bytes_; }

  [[nodiscard]] bool has_output() const noexcept { return !control_.empty() || !ready_.empty(); }
  void take_output(std::uint64_t epoch, std::size_t limit, std::vector<std::byte>& out);

  /// Outputs that have room again since a write was cut short; empties the list.
  std::vector<std::uint32_t> take_writable();

  /// Outputs whose end has left since the last call; empties the list.
  std::vector<std::uint32_t> take_ended();

private:
  struct stream_state {
    bool outgoing = false;
    bool queued = false;   // is in ready_
    bool starved = false;  // a write was cut short
    bool closing = false;  // end is to be sent after the buffer
    bool ended = false;    // end was sent (outgoing)
    bool stopped = false;  // nobody reads it
    bool stop_due = false;
    std::uint64_t credit = 0;      // outgoing: may send; incoming: may still arrive
    std::uint32_t credit_due = 0;  // incoming: consumed, not yet granted
    std::vector<std::byte> buffer;  // outgoing
    std::size_t head = 0;           // first byte of buffer that has not left

    [[nodiscard]] std::size_t buffered() const noexcept { return buffer.size() - head; }
  };

  stream_state* find(std::uint32_t stream, bool outgoing);
  [[nodiscard]] static bool has_work(const stream_state& state);
  void wake(std::uint32_t stream, stream_state& state);

  std::map<std::uint32_t, stream_state> streams_;
  std::deque<std::vector<std::byte>> control_;
  std::size_t control_bytes_ = 0;
  std::deque<std::uint32_t> ready_;  // streams that have something to send, in turn
  std::vector<std::uint32_t> writable_;
  std::vector<std::uint32_t> ended_;
};

} // namespace caisson::guest_protocol
