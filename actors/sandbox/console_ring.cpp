#include "actors/sandbox/console_ring.hpp"

#include "messages/validate.hpp"

namespace caisson::sandbox {

void console_ring::open(const std::string& endpoint) {
  opener_.runs_on().post([self = shared_from_this(), endpoint] {
    self->opener_.open(endpoint, [self](std::unique_ptr<byte_pipe> pipe, const std::string&) {
      // Without a console the sandbox works all the same; its text is then empty.
      if (self->closed_ || !pipe)
        return;
      self->pipe_ = std::move(pipe);
      std::weak_ptr<console_ring> weak = self;
      self->pipe_->start({.on_bytes =
                              [weak](std::span<const std::byte> bytes) {
                                if (auto ring = weak.lock())
                                  ring->append(bytes);
                              },
                          .on_closed = [](std::error_code) {},
                          .on_drained = {}});
    });
  });
}

void console_ring::close() {
  opener_.runs_on().post([self = shared_from_this()] {
    self->closed_ = true;
    if (self->pipe_)
      self->pipe_->close();
    self->pipe_.reset();
  });
}

void console_ring::append(std::span<const std::byte> bytes) {
  std::lock_guard lock{mutex_};
  ring_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (ring_.size() > 2 * limit_bytes) // cut rarely, so that a flood costs little
    ring_.erase(0, ring_.size() - limit_bytes);
}

std::string console_ring::text() const {
  std::string out;
  for (const auto& line : tail(SIZE_MAX))
    out += line + '\n';
  return out;
}

std::vector<std::string> console_ring::tail(std::size_t lines) const {
  std::string copy;
  {
    std::lock_guard lock{mutex_};
    copy = ring_.size() > limit_bytes ? ring_.substr(ring_.size() - limit_bytes) : ring_;
  }
  std::vector<std::string> out;
  for (auto end = copy.size(); end > 0 && out.size() < lines;) {
    auto start = copy.rfind('\n', end - 1);
    auto from = start == std::string::npos ? 0 : start + 1;
    auto line = copy.substr(from, end - from);
    while (!line.empty() && (line.back() == '\r' || line.back() == '\n'))
      line.pop_back();
    if (!line.empty())
      out.push_back(escape_guest_text(line, 240));
    end = from > 0 ? from - 1 : 0;
  }
  return {out.rbegin(), out.rend()};
}

} // namespace caisson::sandbox
