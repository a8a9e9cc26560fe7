#pragma once

// What the benchmarks share: times, series of them, and an answer of the engine waited for.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <future>
#include <iostream>
#include <string_view>
#include <vector>

#include "engine/service.hpp"

namespace caisson::bench {

inline constexpr std::uint64_t mib = 1024 * 1024;
using clock_type = std::chrono::steady_clock;

inline double ms_since(clock_type::time_point start) {
  return std::chrono::duration<double, std::milli>(clock_type::now() - start).count();
}

struct series {
  std::vector<double> values;
  void add(double v) { values.push_back(v); }
  double median() const {
    if (values.empty())
      return 0;
    auto sorted = values;
    std::sort(sorted.begin(), sorted.end());
    auto n = sorted.size();
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
  }
  double least() const { return values.empty() ? 0 : *std::min_element(values.begin(), values.end()); }
  double most() const { return values.empty() ? 0 : *std::max_element(values.begin(), values.end()); }
};

/// The engine's answer; an error ends the program.
template <class Reply, class Call> Reply blocking(std::string_view doing, Call call) {
  std::promise<engine::outcome<Reply>> promise;
  call([&](engine::outcome<Reply> o) { promise.set_value(std::move(o)); });
  auto out = promise.get_future().get();
  if (auto* why = std::get_if<v1::Error>(&out)) {
    std::cerr << doing << ": " << why->text() << '\n';
    for (const auto& line : why->console_tail())
      std::cerr << "    " << line << '\n';
    std::exit(1);
  }
  return std::get<Reply>(std::move(out));
}

} // namespace caisson::bench
