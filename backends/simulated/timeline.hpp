#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <utility>

namespace caisson::backends::simulated {

/// What is going to happen in a simulated world, in order. It has no clock of its own: whoever owns it says how late it
/// is. Not thread safe.
class timeline {
public:
  using time = std::chrono::nanoseconds;         ///< since the world's beginning
  using ticket = std::pair<time, std::uint64_t>; ///< names one planned function
  using work = std::function<void()>;

  [[nodiscard]] time now() const noexcept { return now_; }
  [[nodiscard]] std::size_t size() const noexcept { return planned_.size(); }

  ticket at(time due, work what) {
    const ticket t{due < now_ ? now_ : due, ++last_};
    const bool first = planned_.empty() || t < planned_.begin()->first;
    planned_.emplace(t, std::move(what));
    if (first && on_earlier)
      on_earlier(t.first);
    return t;
  }

  ticket after(time delay, work what) { return at(now_ + delay, std::move(what)); }

  void cancel(const ticket& t) { planned_.erase(t); }

  [[nodiscard]] std::optional<time> next() const {
    return planned_.empty() ? std::nullopt : std::optional{planned_.begin()->first.first};
  }

  /// Runs everything that is due by `until`, each at its own time; then it is `until`. An earlier time changes nothing.
  void run_until(time until) {
    while (!planned_.empty() && planned_.begin()->first.first <= until) {
      auto node = planned_.extract(planned_.begin());
      if (node.key().first > now_)
        now_ = node.key().first;
      node.mapped()();
    }
    if (until > now_)
      now_ = until;
  }

  /// Told when something is planned before everything else.
  std::function<void(time)> on_earlier;

private:
  time now_{0};
  std::uint64_t last_ = 0;
  std::map<ticket, work> planned_;
};

/// Eight bytes of seeded chance (splitmix64): one a machine, so that ten thousand of them cost nothing.
class dice {
public:
  explicit dice(std::uint64_t seed = 1) : state_{seed} {}

  std::uint64_t next() {
    auto z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }

  /// Evenly from least..most.
  std::uint64_t between(std::uint64_t least, std::uint64_t most) {
    return most <= least ? least : least + next() % (most - least + 1);
  }

  bool chance(double p) { return p > 0 && static_cast<double>(next() >> 11) * 0x1.0p-53 < p; }

private:
  std::uint64_t state_;
};

} // namespace caisson::backends::simulated
