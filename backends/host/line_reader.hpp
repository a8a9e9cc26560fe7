#pragma once

/// Lines out of the output of a backend's process: cut, stripped of what a terminal would obey, and rate bounded.

#include <chrono>
#include <deque>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace caisson::host {

/// Printable ASCII stays, everything else becomes a question mark (a tab: a blank); cuts at `most` bytes.
std::string clean_line(std::string_view line, std::size_t most);

class line_reader {
public:
  using clock = std::chrono::steady_clock;
  explicit line_reader(std::function<void(std::string_view)> out) : out_(std::move(out)) {}
  void feed(std::span<const std::byte> bytes, clock::time_point now = clock::now());
  /// The last few lines, whether they were let through or not: for an error's text.
  std::string last_lines() const;

private:
  void line(std::string_view text, clock::time_point now);
  std::function<void(std::string_view)> out_;
  std::string partial_;
  std::deque<std::string> last_;
  clock::time_point window_start_{};
  int in_window_ = 0;
  int left_out_ = 0;
};

} // namespace caisson::host
