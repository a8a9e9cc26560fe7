#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

/// Numbers that host and guest agree on. A change of any of them is a new protocol_version.
namespace caisson::guest_protocol {

inline constexpr std::uint32_t protocol_version = 1;

/// Name of the virtio-serial port, as the VMM declares it and as the agent finds it in /sys/class/virtio-ports/*/name.
inline constexpr std::string_view port_name = "caisson.agent.0";

/// Port of the agent's vsock socket, where the machine has no virtio-serial port of that name (Cloud Hypervisor: the host
/// connects to the VMM's Unix socket and says "CONNECT 1024").
inline constexpr std::uint32_t vsock_port = 1024;

/// A whole frame, header included, is never longer.
inline constexpr std::size_t frame_bytes_max = 64 * 1024;
inline constexpr std::size_t frame_header_bytes = 32;
inline constexpr std::size_t payload_bytes_max = frame_bytes_max - frame_header_bytes;

/// What may be under way on one stream in one direction before the receiver grants more.
inline constexpr std::uint32_t stream_window_bytes = 256 * 1024;

/// What a session keeps of one outgoing stream; `write` accepts no more.
inline constexpr std::size_t stream_buffer_bytes = 64 * 1024;

/// What a session keeps of control messages that the other side has not read yet.
inline constexpr std::size_t control_queue_bytes_max = 1024 * 1024;

/// Streams that are open at once on a connection: 256 commands with three streams each.
inline constexpr std::size_t streams_max = 768;

/// Requests that are waiting for their reply at once on a connection.
inline constexpr std::size_t requests_max = 1024;

} // namespace caisson::guest_protocol
