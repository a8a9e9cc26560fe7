#include "guest/protocol/guest_session.hpp"

#include <algorithm>
#include <utility>

namespace caisson::guest_protocol {

namespace {

std::vector<std::byte> encode(const v1::GuestControl& message) {
  std::vector<std::byte> payload(message.ByteSizeLong());
  message.SerializeToArray(payload.data(), static_cast<int>(payload.size()));
  return payload;
}

} // namespace

guest_session::guest_session(guest_events events) : events_{std::move(events)} {}

void guest_session::forget_all() {
  mux_.clear();
  deferred_.clear();
  epoch_ = 0;
}

void guest_session::feed(std::span<const std::byte> bytes) {
  decoder_.feed(bytes, [this](const frame_view& frame) { return on_frame(frame); });
}

void guest_session::disconnected() {
  decoder_.reset();
  forget_all();
}

bool guest_session::wants_input() const noexcept { return mux_.control_bytes() < control_queue_bytes_max; }

bool guest_session::has_output() const noexcept { return is_open() && mux_.has_output(); }

std::vector<std::byte> guest_session::take_output(std::size_t limit) {
  std::vector<std::byte> out;
  if (!is_open())
    return out;
  mux_.take_output(epoch_, limit, out);
  after_output();
  return out;
}

void guest_session::after_output() {
  const auto ended = mux_.take_ended();
  for (const auto stream : ended)
    mux_.remove(stream);
  if (!ended.empty()) {
    for (auto it = deferred_.begin(); it != deferred_.end();) {
      if (std::none_of(it->streams.begin(), it->streams.end(), [&](auto n) { return mux_.known(n); })) {
        mux_.queue_control(std::move(it->payload), false);
        it = deferred_.erase(it);
      } else {
        ++it;
      }
    }
  }
  if (events_.on_writable)
    for (const auto stream : mux_.take_writable())
      events_.on_writable(stream);
}

bool guest_session::send(const v1::GuestControl& message, bool may_drop) {
  if (!is_open())
    return false;
  auto payload = encode(message);
  if (payload.size() > payload_bytes_max)
    return false;
  return mux_.queue_control(std::move(payload), may_drop);
}

void guest_session::send_hello(v1::AgentHello hello) {
  v1::GuestControl message;
  *message.mutable_hello() = std::move(hello);
  send(message, false);
}

void guest_session::send_reply(v1::AgentReply reply) {
  v1::GuestControl message;
  *message.mutable_reply() = std::move(reply);
  send(message, false);
}

bool guest_session::send_notice(v1::AgentNotice notice) {
  v1::GuestControl message;
  *message.mutable_notice() = std::move(notice);
  return send(message, true);
}

void guest_session::send_notice_after(std::vector<std::uint32_t> streams, v1::AgentNotice notice) {
  if (!is_open())
    return;
  v1::GuestControl message;
  *message.mutable_notice() = std::move(notice);
  if (std::none_of(streams.begin(), streams.end(), [&](auto n) { return mux_.known(n); })) {
    send(message, false);
    return;
  }
  deferred_.push_back({std::move(streams), encode(message)});
}

bool guest_session::add_input(std::uint32_t stream) { return is_open() && mux_.add_input(stream); }

bool guest_session::add_output(std::uint32_t stream) { return is_open() && mux_.add_output(stream); }

std::size_t guest_session::writable_bytes(std::uint32_t stream) { return mux_.writable_bytes(stream); }

std::size_t guest_session::write(std::uint32_t stream, std::span<const std::byte> bytes) {
  return mux_.write(stream, bytes);
}

void guest_session::close(std::uint32_t stream) { mux_.close(stream); }

void guest_session::stop(std::uint32_t stream) { mux_.stop(stream); }

void guest_session::consumed(std::uint32_t stream, std::size_t bytes) { mux_.consumed(stream, bytes); }

void guest_session::forget(std::uint32_t stream) { mux_.remove(stream); }

bool guest_session::on_frame(const frame_view& frame) {
  const auto stream = frame.header.stream;
  if (frame.header.type == frame_type::open) {
    forget_all();
    epoch_ = frame.header.epoch;
    if (events_.on_open)
      events_.on_open();
    return true;
  }
  if (epoch_ == 0 || frame.header.epoch != epoch_)
    return true;
  bool deliver = false;
  switch (frame.header.type) {
  case frame_type::open:
    break;
  case frame_type::control: {
    v1::HostControl message;
    if (message.ParseFromArray(frame.payload.data(), static_cast<int>(frame.payload.size())) && message.has_request() &&
        events_.on_request)
      events_.on_request(message.request());
    break;
  }
  case frame_type::data:
    mux_.take_data(stream, frame.payload.size(), deliver);
    if (deliver && events_.on_data)
      events_.on_data(stream, frame.payload);
    break;
  case frame_type::end:
    mux_.take_end(stream, deliver);
    if (deliver && events_.on_eof)
      events_.on_eof(stream);
    break;
  case frame_type::credit:
    mux_.take_credit(stream, frame.payload);
    break;
  case frame_type::stop:
    mux_.take_stop(stream, deliver);
    if (deliver && events_.on_stopped)
      events_.on_stopped(stream);
    break;
  }
  return true;
}

} // namespace caisson::guest_protocol
