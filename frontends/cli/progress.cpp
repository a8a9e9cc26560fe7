#include "frontends/cli/progress.hpp"

#include <unistd.h>

#include <chrono>
#include <csignal>

#include "frontends/cli/output.hpp"

namespace caisson::cli {

progress::progress(std::string text, bool json) : text_{std::move(text)} {
  if (json || !::isatty(2))
    return;
  thread_ = std::thread{[this] { run(); }};
}

progress::~progress() {
  end();
}

void progress::say(std::string text) {
  std::lock_guard hold{mutex_};
  text_ = std::move(text);
  changed_.notify_all();
}

void progress::end() {
  {
    std::lock_guard hold{mutex_};
    ended_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable())
    thread_.join();
}

void progress::run() {
  using clock = std::chrono::steady_clock;
  auto begin = clock::now();
  std::unique_lock hold{mutex_};
  bool shown = false;
  for (auto next = begin + std::chrono::seconds{1}; !ended_; next += std::chrono::seconds{1}) {
    if (changed_.wait_until(hold, next, [this] { return ended_; }))
      break;
    auto s = std::chrono::duration_cast<std::chrono::seconds>(clock::now() - begin).count();
    write_all(2, "\r\x1b[K" + text_ + " (" + std::to_string(s) + " s)");
    shown = true;
  }
  if (shown)
    write_all(2, "\r\x1b[K");
}

} // namespace caisson::cli
