#pragma once

#include "guest/protocol/version.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

/// The frames that host and guest exchange, and how either side finds its place in the bytes.
///
/// A frame is a header of 32 bytes and a payload. All numbers are little-endian:
///
///     offset  bytes  field
///          0      4  magic: C5 'C' 'S' 'N'
///          4      8  epoch: chosen at random by the host for each connection, never 0
///         12      1  type (frame_type)
///         13      3  zero
///         16      4  stream: 0 for open and control, else the stream's number
///         20      4  length of the payload, at most payload_bytes_max
///         24      4  checksum of the payload
///         28      4  checksum of the 28 bytes before
///
/// Resynchronisation. The channel outlives both ends' connections, so either side may first see the rest of something
/// that was meant for somebody else.
///  - The host begins with frame_bytes_max zero bytes, then `open` with a new epoch. Zeros complete whatever frame a
///    dead engine left half written (its payload checksum is then wrong and the guest drops it whole; or it lacked
///    zeros only, and is what that engine meant to say), and what follows is seen at a frame's border. The guest never
///    looks for a header inside a payload, so nothing that a user pipes into a command can pass for a header.
///  - The guest drops everything until `open`, forgets the earlier epoch's queues, and stamps every frame with the new
///    one.
///  - The host drops every byte until a header with its own epoch. What was written before the guest saw `open` cannot
///    contain that random number. From the first such header on the bytes are exact: anything else is a protocol error.
namespace caisson::guest_protocol {

enum class frame_type : std::uint8_t {
  open = 1,    ///< host to guest: a new connection; the header's epoch is the new one. No payload.
  control = 2, ///< payload is one HostControl or GuestControl
  data = 3,    ///< payload is 1.. bytes of the stream
  end = 4,     ///< the sender has no more bytes for this stream. No payload.
  credit = 5,  ///< payload is u32: so many bytes more may be sent on this stream
  stop = 6,    ///< the receiver reads no more of this stream: the sender answers with `end`. No payload.
};

struct frame_header {
  std::uint64_t epoch = 0;
  frame_type type = frame_type::control;
  std::uint32_t stream = 0;
  std::uint32_t length = 0;
};

/// A frame as the decoder shows it; the payload is valid during the call only.
struct frame_view {
  frame_header header;
  std::span<const std::byte> payload;
};

/// Appends a whole frame to `out`. `payload` is at most payload_bytes_max long (checked by an assertion).
void append_frame(std::vector<std::byte>& out, std::uint64_t epoch, frame_type type, std::uint32_t stream,
                  std::span<const std::byte> payload);

/// Cuts bytes that arrive in any pieces into frames. Keeps at most one incomplete frame.
class frame_decoder {
public:
  /// What the visitor answers: false ends the current `feed`, and the decoder takes nothing more until `reset`.
  using visitor = std::function<bool(const frame_view&)>;

  /// The guest's decoder: frames of any epoch, garbage between frames is skipped, damaged frames are dropped.
  frame_decoder() = default;

  /// The host's decoder: everything before the first header with `epoch` is skipped, everything else after it is an
  /// error.
  explicit frame_decoder(std::uint64_t epoch) : epoch_{epoch} {}

  /// Takes all of `bytes` and calls `visit` for each frame that is complete. Returns what is wrong with the bytes, if
  /// something is; from then on everything is dropped.
  std::optional<std::string> feed(std::span<const std::byte> bytes, const visitor& visit);

  /// Forgets the incomplete frame (the guest's, when its port says that the host has gone).
  void reset();

  /// Bytes skipped so far because they belonged to no frame of ours.
  [[nodiscard]] std::uint64_t skipped_bytes() const noexcept { return skipped_bytes_; }

private:
  enum class found { frame, more_needed, garbage, failure };
  found parse(std::span<const std::byte> bytes, std::size_t& taken, const visitor& visit);
  std::size_t consume(std::span<const std::byte> bytes, const visitor& visit);

  std::uint64_t epoch_ = 0; // 0: any
  bool synced_ = false;
  bool dead_ = false;
  std::uint64_t skipped_bytes_ = 0;
  std::string failure_;
  std::vector<std::byte> pending_;
};

} // namespace caisson::guest_protocol
