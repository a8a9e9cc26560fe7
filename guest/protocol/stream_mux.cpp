#include "guest/protocol/stream_mux.hpp"

#include <algorithm>
#include <array>
#include <utility>

namespace caisson::guest_protocol {

namespace {

// One stream's turn. Small enough for fairness, large enough that the header doesn't count.
constexpr std::size_t turn_bytes = 16 * 1024;

// Grants below this are saved up: a grant is a frame of its own.
constexpr std::uint32_t grant_bytes_min = stream_window_bytes / 4;

} // namespace

void stream_mux::clear() {
  streams_.clear();
  control_.clear();
  control_bytes_ = 0;
  ready_.clear();
  writable_.clear();
  ended_.clear();
}

bool stream_mux::add_input(std::uint32_t stream) {
  if (stream == 0 || streams_.contains(stream) || streams_.size() >= streams_max)
    return false;
  streams_[stream].credit = stream_window_bytes;
  return true;
}

bool stream_mux::add_output(std::uint32_t stream) {
  if (!add_input(stream))
    return false;
  streams_[stream].outgoing = true;
  return true;
}

void stream_mux::remove(std::uint32_t stream) {
  if (streams_.erase(stream) == 0)
    return;
  std::erase(ready_, stream);
  std::erase(writable_, stream);
  std::erase(ended_, stream);
}

stream_mux::stream_state* stream_mux::find(std::uint32_t stream, bool outgoing) {
  const auto it = streams_.find(stream);
  return it == streams_.end() || it->second.outgoing != outgoing ? nullptr : &it->second;
}

bool stream_mux::has_work(const stream_state& state) {
  if (!state.outgoing)
    return state.stop_due || state.credit_due >= grant_bytes_min;
  return (state.buffered() > 0 && state.credit > 0) || (state.closing && !state.ended && state.buffered() == 0);
}

void stream_mux::wake(std::uint32_t stream, stream_state& state) {
  if (state.queued || !has_work(state))
    return;
  state.queued = true;
  // Grants and stops go ahead of data: they are short, and the other side waits for them.
  if (state.outgoing)
    ready_.push_back(stream);
  else
    ready_.push_front(stream);
}

std::size_t stream_mux::write(std::uint32_t stream, std::span<const std::byte> bytes) {
  auto* state = find(stream, true);
  if (!state || state->closing || state->stopped)
    return bytes.size();
  const auto room = stream_buffer_bytes - state->buffered();
  const auto taken = std::min(room, bytes.size());
  if (taken > 0) {
    if (state->head > 0 && state->buffer.size() + taken > stream_buffer_bytes) {
      state->buffer.erase(state->buffer.begin(), state->buffer.begin() + static_cast<std::ptrdiff_t>(state->head));
      state->head = 0;
    }
    state->buffer.insert(state->buffer.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(taken));
    wake(stream, *state);
  }
  if (taken < bytes.size())
    state->starved = true;
  return taken;
}

std::size_t stream_mux::writable_bytes(std::uint32_t stream) {
  auto* state = find(stream, true);
  if (!state || state->closing || state->stopped)
    return stream_buffer_bytes;
  const auto room = stream_buffer_bytes - state->buffered();
  if (room == 0)
    state->starved = true;
  return room;
}

void stream_mux::close(std::uint32_t stream) {
  if (auto* state = find(stream, true)) {
    state->closing = true;
    wake(stream, *state);
  }
}

bool stream_mux::ended(std::uint32_t stream) const {
  const auto it = streams_.find(stream);
  return it == streams_.end() || !it->second.outgoing || it->second.ended;
}

void stream_mux::consumed(std::uint32_t stream, std::size_t bytes) {
  auto* state = find(stream, false);
  if (!state || state->stopped)
    return;
  // More than ever arrived cannot be granted, whatever the owner says.
  const auto most = stream_window_bytes - state->credit - state->credit_due;
  state->credit_due += static_cast<std::uint32_t>(std::min<std::uint64_t>(bytes, most));
  wake(stream, *state);
}

void stream_mux::stop(std::uint32_t stream) {
  auto* state = find(stream, false);
  if (!state || state->stopped)
    return;
  state->stopped = true;
  state->stop_due = true;
  state->credit_due = 0;
  wake(stream, *state);
}

stream_mux::verdict stream_mux::take_data(std::uint32_t stream, std::size_t bytes, bool& deliver) {
  auto* state = find(stream, false);
  if (!state)
    return verdict::stray;
  if (bytes == 0)
    return verdict::malformed;
  if (bytes > state->credit)
    return verdict::over_credit;
  state->credit -= bytes;
  deliver = !state->stopped;
  return verdict::ok;
}

stream_mux::verdict stream_mux::take_end(std::uint32_t stream, bool& deliver) {
  if (!find(stream, false))
    return verdict::stray;
  deliver = true;
  remove(stream);
  return verdict::ok;
}

stream_mux::verdict stream_mux::take_credit(std::uint32_t stream, std::span<const std::byte> payload) {
  if (payload.size() != 4)
    return verdict::malformed;
  std::uint32_t grant = 0;
  for (std::size_t i = 0; i < 4; ++i)
    grant |= std::to_integer<std::uint32_t>(payload[i]) << (8 * i);
  auto* state = find(stream, true);
  if (!state)
    return verdict::stray;
  if (grant == 0 || state->credit + grant > stream_window_bytes)
    return verdict::malformed;
  state->credit += grant;
  wake(stream, *state);
  return verdict::ok;
}

stream_mux::verdict stream_mux::take_stop(std::uint32_t stream, bool& deliver) {
  auto* state = find(stream, true);
  if (!state)
    return verdict::stray;
  deliver = !state->stopped;
  state->stopped = true;
  state->closing = true;
  state->buffer = {};
  state->head = 0;
  wake(stream, *state);
  return verdict::ok;
}

bool stream_mux::queue_control(std::vector<std::byte> payload, bool may_refuse) {
  if (may_refuse && control_bytes_ + payload.size() > control_queue_bytes_max)
    return false;
  control_bytes_ += payload.size();
  control_.push_back(std::move(payload));
  return true;
}

void stream_mux::take_output(std::uint64_t epoch, std::size_t limit, std::vector<std::byte>& out) {
  while (out.size() < limit && !control_.empty()) {
    append_frame(out, epoch, frame_type::control, 0, control_.front());
    control_bytes_ -= control_.front().size();
    control_.pop_front();
  }
  while (out.size() < limit && !ready_.empty()) {
    const auto stream = ready_.front();
    ready_.pop_front();
    auto& state = streams_.at(stream);
    state.queued = false;
    if (!state.outgoing) {
      if (state.stop_due)
        append_frame(out, epoch, frame_type::stop, stream, {});
      state.stop_due = false;
      if (state.credit_due > 0 && !state.stopped) {
        std::array<std::byte, 4> grant;
        for (std::size_t i = 0; i < 4; ++i)
          grant[i] = static_cast<std::byte>(state.credit_due >> (8 * i));
        append_frame(out, epoch, frame_type::credit, stream, grant);
        state.credit += state.credit_due;
        state.credit_due = 0;
      }
      continue;
    }
    const auto bytes = static_cast<std::size_t>(std::min<std::uint64_t>({state.buffered(), state.credit, turn_bytes}));
    if (bytes > 0) {
      append_frame(out, epoch, frame_type::data, stream, std::span{state.buffer}.subspan(state.head, bytes));
      state.head += bytes;
      state.credit -= bytes;
      if (state.buffered() == 0) {
        state.buffer = {};
        state.head = 0;
      }
      if (state.starved && state.buffered() <= stream_buffer_bytes / 2) {
        state.starved = false;
        writable_.push_back(stream);
      }
    }
    if (state.closing && !state.ended && state.buffered() == 0) {
      append_frame(out, epoch, frame_type::end, stream, {});
      state.ended = true;
      ended_.push_back(stream);
    }
    wake(stream, state);
  }
}

std::vector<std::uint32_t> stream_mux::take_writable() { return std::exchange(writable_, {}); }

std::vector<std::uint32_t> stream_mux::take_ended() { return std::exchange(ended_, {}); }

} // namespace caisson::guest_protocol
