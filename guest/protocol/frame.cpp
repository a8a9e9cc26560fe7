#include "guest/protocol/frame.hpp"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>

namespace caisson::guest_protocol {

namespace {

constexpr std::array<std::byte, 4> magic{std::byte{0xC5}, std::byte{'C'}, std::byte{'S'}, std::byte{'N'}};

template <class T> void put(std::byte* at, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i)
    at[i] = static_cast<std::byte>(value >> (8 * i));
}

template <class T> T get(const std::byte* at) {
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i)
    value |= static_cast<T>(std::to_integer<std::uint8_t>(at[i])) << (8 * i);
  return value;
}

// FNV-1a on words of eight bytes: one multiplication a word, which matters in an emulated guest. It is there to notice
// a frame that was cut off, not to resist anybody.
std::uint32_t checksum(std::span<const std::byte> bytes) {
  std::uint64_t sum = 0xcbf29ce484222325u ^ bytes.size();
  const auto mix = [&](std::uint64_t word) {
    sum = (sum ^ word) * 0x100000001b3u;
    sum ^= sum >> 29;
  };
  std::size_t at = 0;
  for (; at + 8 <= bytes.size(); at += 8)
    mix(get<std::uint64_t>(bytes.data() + at));
  std::uint64_t rest = 0;
  for (std::size_t shift = 0; at < bytes.size(); ++at, shift += 8)
    rest |= static_cast<std::uint64_t>(std::to_integer<std::uint8_t>(bytes[at])) << shift;
  mix(rest);
  return static_cast<std::uint32_t>(sum ^ (sum >> 32));
}

} // namespace

void append_frame(std::vector<std::byte>& out, std::uint64_t epoch, frame_type type, std::uint32_t stream,
                  std::span<const std::byte> payload) {
  assert(payload.size() <= payload_bytes_max);
  std::array<std::byte, frame_header_bytes> header{};
  std::copy(magic.begin(), magic.end(), header.begin());
  put<std::uint64_t>(&header[4], epoch);
  header[12] = static_cast<std::byte>(type);
  put<std::uint32_t>(&header[16], stream);
  put<std::uint32_t>(&header[20], static_cast<std::uint32_t>(payload.size()));
  put<std::uint32_t>(&header[24], checksum(payload));
  put<std::uint32_t>(&header[28], checksum(std::span{header}.first(28)));
  out.reserve(out.size() + header.size() + payload.size());
  out.insert(out.end(), header.begin(), header.end());
  out.insert(out.end(), payload.begin(), payload.end());
}

void frame_decoder::reset() {
  pending_ = {};
  synced_ = false;
  dead_ = false;
}

// Looks at what stands at the front of `bytes`; `taken` is what is done with.
frame_decoder::found frame_decoder::parse(std::span<const std::byte> bytes, std::size_t& taken, const visitor& visit) {
  const bool strict = epoch_ != 0 && synced_;
  const auto seen = std::min(bytes.size(), magic.size());
  if (std::memcmp(bytes.data(), magic.data(), seen) != 0) {
    if (strict) {
      failure_ = "bytes that are no frame came from the guest in the middle of a connection";
      return found::failure;
    }
    const auto* next =
        bytes.size() > 1 ? std::memchr(bytes.data() + 1, std::to_integer<int>(magic[0]), bytes.size() - 1) : nullptr;
    taken = next ? static_cast<std::size_t>(static_cast<const std::byte*>(next) - bytes.data()) : bytes.size();
    return found::garbage;
  }
  if (bytes.size() < frame_header_bytes)
    return found::more_needed;
  frame_header header;
  header.epoch = get<std::uint64_t>(&bytes[4]);
  const auto type = std::to_integer<std::uint8_t>(bytes[12]);
  header.type = static_cast<frame_type>(type);
  header.stream = get<std::uint32_t>(&bytes[16]);
  header.length = get<std::uint32_t>(&bytes[20]);
  const bool whole = get<std::uint32_t>(&bytes[28]) == checksum(bytes.first(28));
  const bool known = type >= static_cast<std::uint8_t>(frame_type::open) &&
                     type <= static_cast<std::uint8_t>(frame_type::stop) && header.epoch != 0;
  const bool ours = epoch_ == 0 || header.epoch == epoch_;
  if (!whole || !ours || !known || header.length > payload_bytes_max) {
    if (whole && ours && epoch_ != 0) {
      failure_ = header.length > payload_bytes_max
                     ? "the guest announced a frame with a payload of " + std::to_string(header.length) +
                           " bytes; at most " + std::to_string(payload_bytes_max) + " are allowed"
                     : "the guest sent a frame of unknown type " + std::to_string(type);
      return found::failure;
    }
    if (strict) {
      failure_ = whole ? "the guest sent a frame of another connection" : "the guest sent a damaged frame header";
      return found::failure;
    }
    taken = 1;
    return found::garbage;
  }
  synced_ = true;
  const auto total = frame_header_bytes + header.length;
  if (bytes.size() < total)
    return found::more_needed;
  taken = total;
  const auto payload = bytes.subspan(frame_header_bytes, header.length);
  if (get<std::uint32_t>(&bytes[24]) != checksum(payload)) {
    if (epoch_ == 0)
      return found::garbage;
    failure_ = "the guest sent a frame whose payload is damaged";
    return found::failure;
  }
  if (!visit(frame_view{header, payload})) {
    dead_ = true;
    return found::failure;
  }
  return found::frame;
}

// Returns how many bytes at the front are done with.
std::size_t frame_decoder::consume(std::span<const std::byte> bytes, const visitor& visit) {
  std::size_t at = 0;
  while (at < bytes.size()) {
    std::size_t taken = 0;
    switch (parse(bytes.subspan(at), taken, visit)) {
    case found::frame:
      at += taken;
      break;
    case found::garbage:
      at += taken;
      skipped_bytes_ += taken;
      break;
    case found::more_needed:
      return at;
    case found::failure:
      dead_ = true;
      return bytes.size();
    }
  }
  return at;
}

std::optional<std::string> frame_decoder::feed(std::span<const std::byte> bytes, const visitor& visit) {
  if (dead_)
    return std::nullopt;
  failure_.clear();
  // An incomplete frame is completed piece by piece, so that never more than one frame is kept.
  while (!pending_.empty() && !bytes.empty() && !dead_) {
    const auto piece = bytes.first(std::min(bytes.size(), frame_bytes_max));
    pending_.insert(pending_.end(), piece.begin(), piece.end());
    bytes = bytes.subspan(piece.size());
    auto held = std::move(pending_);
    pending_ = {};
    const auto done = consume(held, visit);
    if (done < held.size()) {
      held.erase(held.begin(), held.begin() + static_cast<std::ptrdiff_t>(done));
      pending_ = std::move(held);
    }
  }
  if (!dead_ && !bytes.empty()) {
    const auto done = consume(bytes, visit);
    if (done < bytes.size())
      pending_.assign(bytes.begin() + static_cast<std::ptrdiff_t>(done), bytes.end());
  }
  if (dead_)
    pending_ = {};
  if (failure_.empty())
    return std::nullopt;
  return failure_;
}

} // namespace caisson::guest_protocol
