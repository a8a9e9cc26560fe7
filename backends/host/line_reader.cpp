#include "backends/host/line_reader.hpp"

#include <utility>

#include "backends/host/wire.hpp"

namespace caisson::host {
namespace {

constexpr std::size_t lines_kept = 3;
constexpr int lines_per_window = 200;
constexpr std::chrono::seconds window{5};

} // namespace

std::string clean_line(std::string_view line, std::size_t most) {
  std::string out{line.substr(0, most)};
  for (auto& c : out)
    if (auto byte = static_cast<unsigned char>(c); byte < 0x20 || byte >= 0x7f)
      c = c == '\t' ? ' ' : '?';
  return out;
}

void line_reader::feed(std::span<const std::byte> bytes, clock::time_point now) {
  std::string_view text{reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  while (!text.empty()) {
    auto newline = text.find('\n');
    auto piece = text.substr(0, newline);
    if (partial_.size() < max_log_line_bytes)
      partial_.append(piece.substr(0, max_log_line_bytes - partial_.size()));
    if (newline == std::string_view::npos)
      return;
    line(std::exchange(partial_, {}), now);
    text.remove_prefix(newline + 1);
  }
}

void line_reader::line(std::string_view text, clock::time_point now) {
  if (text.empty())
    return;
  auto clean = clean_line(text, max_log_line_bytes);
  last_.push_back(clean);
  if (last_.size() > lines_kept)
    last_.pop_front();
  if (now - window_start_ > window) {
    window_start_ = now;
    in_window_ = 0;
  }
  if (++in_window_ > lines_per_window) {
    ++left_out_;
    return;
  }
  if (int n = std::exchange(left_out_, 0); n > 0)
    out_(std::to_string(n) + " lines were left out: more than 200 in 5 s");
  out_(clean);
}

std::string line_reader::last_lines() const {
  std::string out;
  for (const auto& text : last_)
    out += (out.empty() ? "" : " / ") + text;
  return out;
}

} // namespace caisson::host
