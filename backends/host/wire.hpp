#pragma once

/// THE WIRE between the engine and a backend that lives in a process of its own, written so that one can be made in any
/// language. No CAF, no libvirt in here.
///
/// Starting. The engine starts `caisson-backend-NAME --state DIR --run DIR --cache DIR --log DIR` (the
/// directories of backends::environment). Descriptor 3 is one end of a connected SOCK_STREAM Unix socket pair, 0 is
/// /dev/null, 1 and 2 go to the engine's log line by line. The process has a session of its own. There is one process
/// an engine and kind of backend; it serves all of the engine's VMs.
///
/// Framing. Both directions are a sequence of frames: a length of four bytes, big endian, then that many bytes (at most
/// 1 MiB) of one serialized protobuf message of messages/backend.proto: BackendCall from the engine, BackendSays from
/// the backend. A longer frame, or one that does not parse, is a broken peer: the engine kills the process and starts
/// another one, the backend ends.
///
/// Conversation.
/// 1. The backend's first message is BackendReady with its contract version, at the latest 20 s after its start. A slow
///    library is opened afterwards, inside the first verb that needs it.
/// 2. Calls arrive at any time, several at once; answers leave in any order, each with its call's id, one for each.
///    While a verb on a VM is pending, `inspect` and `destroy` of that VM and everything about other VMs still have
///    to be worked on. What each verb means is in backends/backend.hpp.
/// 3. `list` is also the sign of life: when a call is not answered at its deadline and `list` is not answered either
///    (or with `outcome_unknown`), the process is killed (SIGKILL) and started again. Calls that were pending are then
///    unknown to the engine, which inspects.
/// 4. VmEvent and log_line are sent at any time, unasked.
/// 5. When the engine's end closes (it has ended, or was killed), the process ends at once. Its VMs live on; the next
///    process, started with the same directories, has to find them again.
///
/// An Error in an answer needs only `code` (a row's name of messages/error.hpp, e.g. "backend_refused") and `text`.
///
/// The whole reading side in Python:
///     size, = struct.unpack(">I", sock.recv(4, socket.MSG_WAITALL))
///     call = backend_pb2.BackendCall.FromString(sock.recv(size, socket.MSG_WAITALL))

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace google::protobuf {
class MessageLite;
}

namespace caisson::v1 {
class BackendCall;
}

namespace caisson::host {

/// Version of the verbs and of this wire; BackendReady carries the backend's. 1: without attach and detach. A backend of
/// another version than the engine's is ended at its BackendReady, and every call is answered with `backend_lost` and
/// both versions: half a contract would fail later, in the middle of somebody's work.
inline constexpr std::uint32_t wire_contract_version = 2;
/// The descriptor of the socket in the backend's process.
inline constexpr int protocol_fd = 3;
inline constexpr std::size_t max_message_bytes = 1u << 20;
/// Of BackendSays.log_line; longer ones are cut.
inline constexpr std::size_t max_log_line_bytes = 1024;

/// The message with its length in front; nothing where it is larger than max_message_bytes.
std::optional<std::string> to_frame(const google::protobuf::MessageLite& message);

/// Cuts a stream of bytes into messages. Keeps at most one message and one read's bytes.
class frame_reader {
public:
  /// False as soon as the peer has announced a message over max_message_bytes; nothing is taken any more then.
  [[nodiscard]] bool feed(std::span<const std::byte> bytes);
  /// The next whole message, without its length; valid until the next call of a member. Nothing: feed more.
  std::optional<std::string_view> next();
  bool broken() const { return broken_; }

private:
  std::string buffer_;
  std::size_t at_ = 0;
  bool broken_ = false;
};

/// "create", "inspect", ...: of the verb that is set; "nothing" where none is.
std::string_view verb_name(const v1::BackendCall& call);
/// The sandbox that the call is about; "" for describe and list.
std::string sandbox_of(const v1::BackendCall& call);
/// The call's deadline as it was sent, 0 replaced by the contract's 30 000 and bounded at ten minutes.
std::uint32_t deadline_ms_of(const v1::BackendCall& call);
void set_deadline_ms(v1::BackendCall& call, std::uint32_t deadline_ms);

} // namespace caisson::host
