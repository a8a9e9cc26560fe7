#include "guest/protocol/host_session.hpp"

#include <type_traits>
#include <utility>

namespace caisson::guest_protocol {

namespace {

// Frames for streams that are not known. A few may cross with a command's end; more is a flood.
constexpr std::uint32_t strays_max = 64;
constexpr std::size_t greeting_text_max = 128;
constexpr std::size_t failure_text_max = 1024;
constexpr std::size_t process_name_max = 64;

template <class... Args>
void call(const std::function<void(Args...)>& f, std::type_identity_t<Args>... args) {
  if (f)
    f(args...);
}

void cut(std::string& text, std::size_t most) {
  if (text.size() <= most)
    return;
  // proto3 strings are UTF-8: don't cut a character in two.
  while (most > 0 && (static_cast<unsigned char>(text[most]) & 0xC0) == 0x80)
    --most;
  text.resize(most);
}

} // namespace

host_session::host_session(host_events events) : events_{std::move(events)} {}

void host_session::open(std::uint64_t epoch) {
  epoch_ = epoch;
  ++connection_;
  decoder_ = frame_decoder{epoch};
  mux_.clear();
  waiting_.clear();
  execs_.clear();
  strays_left_ = strays_max;
  open_ = true;
  opening_ = true;
  greeted_ = false;
  dead_ = false;
}

bool host_session::fail(std::string text) {
  if (!dead_) {
    dead_ = true;
    mux_.clear();
    call(events_.on_protocol_error, text);
  }
  return false;
}

void host_session::feed(std::span<const std::byte> bytes) {
  if (!is_open())
    return;
  // A handler may open the next connection: what is left of these bytes then belongs to nobody, nor does their decoder.
  const auto connection = connection_;
  auto decoder = std::move(decoder_);
  auto failure = decoder.feed(bytes, [&](const frame_view& frame) {
    return connection_ == connection && !dead_ && on_frame(frame) && connection_ == connection;
  });
  if (connection_ != connection)
    return;
  decoder_ = std::move(decoder);
  if (failure)
    fail(std::move(*failure));
}

bool host_session::has_output() const noexcept { return is_open() && (opening_ || mux_.has_output()); }

std::vector<std::byte> host_session::take_output(std::size_t limit) {
  std::vector<std::byte> out;
  if (!is_open())
    return out;
  if (opening_) {
    opening_ = false;
    out.assign(frame_bytes_max, std::byte{0});
    append_frame(out, epoch_, frame_type::open, 0, {});
    limit += out.size();
  }
  mux_.take_output(epoch_, limit, out);
  mux_.take_ended();
  for (const auto stream : mux_.take_writable())
    call(events_.on_writable, stream);
  return out;
}

std::optional<std::string> host_session::send_request(const v1::AgentRequest& request) {
  if (!is_open())
    return "there is no connection to the guest agent";
  if (waiting_.size() >= requests_max)
    return "the guest agent has left " + std::to_string(requests_max) + " requests unanswered";
  if (waiting_.contains(request.id()))
    return "request id " + std::to_string(request.id()) + " is in use";
  v1::HostControl message;
  *message.mutable_request() = request;
  const auto size = message.ByteSizeLong();
  if (size > payload_bytes_max)
    return "the request has " + std::to_string(size) + " bytes; the guest agent takes at most " +
           std::to_string(payload_bytes_max) + " (arguments and environment together)";
  exec_streams streams;
  if (request.has_exec_start()) {
    const auto& exec = request.exec_start();
    streams = {exec.stdin_stream(), exec.stdout_stream(), exec.stderr_stream()};
    if (mux_.size() + 3 > streams_max)
      return "too many commands run in this guest at once: " + std::to_string(streams_max / 3) + " are possible";
    const auto free = [&](std::uint32_t n) { return n != 0 && !mux_.known(n); };
    if (!free(streams.in) || !free(streams.out) || !free(streams.err) || streams.in == streams.out ||
        streams.in == streams.err || streams.out == streams.err)
      return "a stream number is 0 or in use";
  }
  std::vector<std::byte> payload(size);
  message.SerializeToArray(payload.data(), static_cast<int>(size));
  if (!mux_.queue_control(std::move(payload), true))
    return "the guest agent doesn't read its requests: " + std::to_string(mux_.control_bytes()) +
           " bytes are waiting to be sent";
  if (streams.in != 0) {
    mux_.add_output(streams.in);
    mux_.add_input(streams.out);
    mux_.add_input(streams.err);
  }
  waiting_.emplace(request.id(), streams);
  return std::nullopt;
}

std::size_t host_session::write(std::uint32_t stream, std::span<const std::byte> bytes) {
  return mux_.write(stream, bytes);
}

void host_session::close(std::uint32_t stream) { mux_.close(stream); }

void host_session::stop(std::uint32_t stream) { mux_.stop(stream); }

void host_session::consumed(std::uint32_t stream, std::size_t bytes) { mux_.consumed(stream, bytes); }

bool host_session::on_frame(const frame_view& frame) {
  const auto stream = frame.header.stream;
  if (frame.header.type != frame_type::control && !greeted_)
    return fail("the guest sent stream frames before its hello");
  bool deliver = false;
  auto verdict = stream_mux::verdict::ok;
  switch (frame.header.type) {
  case frame_type::open:
    return fail("the guest sent a frame that only the host may send");
  case frame_type::control:
    return on_control(frame.payload);
  case frame_type::data:
    verdict = mux_.take_data(stream, frame.payload.size(), deliver);
    if (deliver)
      call(events_.on_data, stream, frame.payload);
    break;
  case frame_type::end:
    verdict = frame.payload.empty() ? mux_.take_end(stream, deliver) : stream_mux::verdict::malformed;
    if (deliver)
      call(events_.on_eof, stream);
    break;
  case frame_type::credit:
    verdict = mux_.take_credit(stream, frame.payload);
    break;
  case frame_type::stop:
    verdict = frame.payload.empty() ? mux_.take_stop(stream, deliver) : stream_mux::verdict::malformed;
    if (deliver)
      call(events_.on_stopped, stream);
    break;
  }
  const auto name = "stream " + std::to_string(stream);
  switch (verdict) {
  case stream_mux::verdict::ok:
    return true;
  case stream_mux::verdict::stray:
    if (strays_left_-- > 0)
      return true;
    return fail("the guest sent more than " + std::to_string(strays_max) + " frames for streams that are not open (" +
                name + " was the last)");
  case stream_mux::verdict::over_credit:
    return fail("the guest sent more on " + name + " than it was allowed to");
  case stream_mux::verdict::malformed:
    return fail("the guest sent a malformed frame on " + name);
  }
  return false;
}

bool host_session::on_control(std::span<const std::byte> payload) {
  v1::GuestControl message;
  if (!message.ParseFromArray(payload.data(), static_cast<int>(payload.size())))
    return fail("the guest sent a control message that cannot be read");
  if (message.has_hello()) {
    if (greeted_)
      return fail("the guest greeted twice on one connection");
    auto& hello = *message.mutable_hello();
    if (hello.protocol_version() != protocol_version)
      return fail("the guest agent speaks protocol " + std::to_string(hello.protocol_version()) +
                  ", this engine speaks " + std::to_string(protocol_version) + ": build the guest image again");
    for (auto* text : {hello.mutable_agent_version(), hello.mutable_kernel_release(), hello.mutable_architecture()})
      cut(*text, greeting_text_max);
    greeted_ = true;
    call(events_.on_hello, hello);
    return true;
  }
  if (!greeted_)
    return fail("the guest spoke before its hello");
  if (message.has_reply())
    return on_reply(*message.mutable_reply());
  if (message.has_notice())
    return on_notice(*message.mutable_notice());
  return fail("the guest sent an empty control message");
}

bool host_session::on_reply(v1::AgentReply& reply) {
  const auto it = waiting_.find(reply.id());
  if (it == waiting_.end())
    return fail("the guest answered request " + std::to_string(reply.id()) + ", which waits for no answer");
  const auto streams = it->second;
  waiting_.erase(it);
  if (reply.has_failure())
    cut(*reply.mutable_failure()->mutable_text(), failure_text_max);
  if (reply.answer_case() == v1::AgentReply::ANSWER_NOT_SET)
    return fail("the guest sent an empty answer to request " + std::to_string(reply.id()));
  if (reply.has_exec_started() != (streams.in != 0) && !reply.has_failure())
    return fail("the guest sent an answer of the wrong kind to request " + std::to_string(reply.id()));
  if (reply.has_exec_started()) {
    if (!execs_.emplace(reply.exec_started().exec_id(), streams).second)
      return fail("the guest started two commands with one id");
  } else if (streams.in != 0) {
    for (const auto stream : {streams.in, streams.out, streams.err})
      mux_.remove(stream);
  }
  call(events_.on_reply, reply);
  return true;
}

bool host_session::on_notice(v1::AgentNotice& notice) {
  switch (notice.notice_case()) {
  case v1::AgentNotice::kExecExited: {
    auto& exited = *notice.mutable_exec_exited();
    const auto it = execs_.find(exited.exec_id());
    if (it == execs_.end())
      return fail("the guest reported the end of a command that doesn't run");
    if (exited.exit_code() < 0 || exited.exit_code() > 255 || exited.signal() < 0 || exited.signal() > 64)
      return fail("the guest reported an impossible exit status");
    if (mux_.known(it->second.out) || mux_.known(it->second.err))
      return fail("the guest reported a command's end before the end of its output");
    mux_.remove(it->second.in);
    execs_.erase(it);
    strays_left_ = strays_max;
    break;
  }
  case v1::AgentNotice::kOom:
    cut(*notice.mutable_oom()->mutable_process(), process_name_max);
    break;
  case v1::AgentNotice::kFactsChanged:
  case v1::AgentNotice::kPressure:
    break;
  case v1::AgentNotice::NOTICE_NOT_SET:
    return fail("the guest sent an empty notice");
  }
  call(events_.on_notice, notice);
  return true;
}

} // namespace caisson::guest_protocol
