#include "guest/agent/workload.hpp"

#include "guest/agent/files.hpp"
#include "guest/agent/report.hpp"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <optional>
#include <string_view>
#include <utility>

namespace caisson::agent {

namespace {

using clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr std::uint32_t wait_ms_max = 60'000;
constexpr std::uint32_t most_waiting = 64;
// Between two looks at the time; also the least that counts as progress is a part of it.
constexpr std::uint64_t reclaim_piece = std::uint64_t{32} << 20;
constexpr std::uint64_t least_progress = std::uint64_t{256} << 10;
constexpr std::uint32_t cpu_period_us = 100'000;
constexpr std::uint64_t quick_distance = std::uint64_t{32} << 20;

std::uint64_t number(std::string_view text) {
  std::uint64_t n = 0;
  std::from_chars(text.data(), text.data() + text.size(), n);
  return n;
}

// "max" is 0.
std::uint64_t read_number(const std::string& path) { return number(read_line(path)); }

std::string limit_text(std::uint64_t bytes) { return bytes == 0 ? "max" : std::to_string(bytes); }

/// What one request asks of the group. Where something has to be reclaimed for it, each of these writes may take seconds:
/// that is done in a child process.
class limits_job {
public:
  limits_job(std::string directory, const v1::SetWorkloadLimits& wanted, clock::time_point deadline)
      : directory_{std::move(directory)}, deadline_{deadline} {
    if (wanted.has_high_bytes())
      high_ = wanted.high_bytes();
    if (wanted.has_max_bytes())
      max_ = wanted.max_bytes();
    if (wanted.has_reclaim_to_bytes())
      reclaim_to_ = wanted.reclaim_to_bytes();
    if (wanted.has_cpu_milli())
      cpu_milli_ = wanted.cpu_milli();
  }

  /// Nothing has to be reclaimed. With a distance, because the workload goes on meanwhile.
  bool is_quick() const {
    const auto held = current() + quick_distance;
    return (!high_ || *high_ == 0 || held <= *high_) && (!reclaim_to_ || held <= *reclaim_to_) && (!max_ || *max_ == 0);
  }

  int run() {
    if (cpu_milli_)
      write("cpu.max", (*cpu_milli_ == 0 ? "max" : std::to_string(std::uint64_t{*cpu_milli_} * cpu_period_us / 1000)) +
                           " " + std::to_string(cpu_period_us));
    if (high_)
      write("memory.high", limit_text(*high_));
    if (reclaim_to_)
      reclaim(*reclaim_to_);
    if (max_)
      set_max(*max_);
    return first_error_;
  }

private:
  std::string path(const char* file) const { return directory_ + "/" + file; }
  std::uint64_t current() const { return read_number(path("memory.current")); }

  void write(const char* file, const std::string& text) {
    if (const int failed = write_file(path(file), text); failed != 0 && first_error_ == 0)
      first_error_ = failed;
  }

  // As far as it goes; what cannot be reclaimed is no error.
  void reclaim(std::uint64_t to) {
    for (auto held = current(); held > to && clock::now() < deadline_;) {
      const int failed = write_file(path("memory.reclaim"), std::to_string(std::min(held - to, reclaim_piece)));
      const auto now = current();
      if ((failed != 0 && failed != EAGAIN && failed != EINTR) || now + least_progress > held)
        return;
      held = now;
    }
  }

  // The kernel kills where memory.max comes below what is held and cannot be reclaimed. So it is lowered only when the
  // workload is below it, with memory.high there meanwhile, which keeps it from growing above in this moment.
  void set_max(std::uint64_t max) {
    const auto before = read_number(path("memory.max"));
    if (max == 0 || (before != 0 && max >= before))
      return write("memory.max", limit_text(max));
    const auto high = read_number(path("memory.high"));
    const bool guarded = high == 0 || high > max;
    if (guarded)
      write("memory.high", std::to_string(max));
    reclaim(max);
    if (current() <= max)
      write("memory.max", std::to_string(max));
    if (guarded)
      write("memory.high", limit_text(high));
  }

  std::string directory_;
  clock::time_point deadline_;
  std::optional<std::uint64_t> high_, max_, reclaim_to_;
  std::optional<std::uint32_t> cpu_milli_;
  int first_error_ = 0;
};

} // namespace

workload::workload(event_loop& loop, std::string directory, std::string overcommit, limits_answer on_limits,
                   std::function<void(v1::MemoryPressure)> on_pressure)
    : loop_{loop}, directory_{std::move(directory)}, overcommit_{std::move(overcommit)},
      on_limits_{std::move(on_limits)}, on_pressure_{std::move(on_pressure)}, writer_{loop} {}

// Containers will have groups of their own below it, and a group that gives controllers away holds no process itself.
void workload::make() {
  ::mkdir(directory_.c_str(), 0755);
  for (const auto* controller : {"+memory", "+cpu", "+pids", "+io", "+cpuset"})
    write_file(directory_ + "/cgroup.subtree_control", controller);
  ::mkdir((directory_ + "/exec").c_str(), 0755);
  if (!usable())
    report("the kernel has no memory controller for control groups: the workload is not limited");
}

bool workload::usable() const { return exists(directory_ + "/memory.high"); }

std::string workload::leaf() const {
  const auto path = directory_ + "/exec";
  return exists(path) ? path : std::string{};
}

void workload::add_facts(v1::AgentFacts& facts) const {
  if (!usable())
    return;
  auto& memory = *facts.mutable_memory();
  memory.set_workload_bytes(read_number(directory_ + "/memory.current"));
  memory.set_workload_high_bytes(read_number(directory_ + "/memory.high"));
  memory.set_workload_max_bytes(read_number(directory_ + "/memory.max"));
  const auto cpu = read_line(directory_ + "/cpu.max"); // "150000 100000" or "max 100000"
  const auto period = number(std::string_view{cpu}.substr(std::min(cpu.find(' ') + 1, cpu.size())));
  if (period > 0)
    facts.set_cpu_quota_milli(static_cast<std::uint32_t>((number(cpu) * 1000 + period / 2) / period));
}

// Only from the kernel's default, 0, and back: what somebody else has chosen stays.
void workload::allow_overcommit(bool on) {
  if (overcommit_.empty() || overcommit_changed_ == on || read_line(overcommit_) != (on ? "0" : "1")) {
    overcommit_changed_ = overcommit_changed_ && on;
    return;
  }
  if (const int failed = write_file(overcommit_, on ? "1" : "0"); failed != 0)
    report("cannot set vm.overcommit_memory", failed);
  else
    overcommit_changed_ = on;
}

bool workload::set_limits(std::uint64_t request_id, const v1::SetWorkloadLimits& wanted) {
  if (waiting_ >= most_waiting)
    return false;
  if (wanted.has_high_bytes() && !wanted.has_reclaim_to_bytes())
    allow_overcommit(wanted.high_bytes() > 0);
  const milliseconds wait{std::min(wanted.wait_ms(), wait_ms_max)};
  // The job looks at the time itself; only one that is stuck in the kernel is killed.
  constexpr milliseconds beyond{2'000};
  limits_job job{directory_, wanted, clock::now() + wait};
  if (waiting_ == 0 && job.is_quick()) { // a child costs an emulated guest ten milliseconds
    on_limits_(request_id, job.run());
    return true;
  }
  ++waiting_;
  writer_.run([job]() mutable { return job.run(); },
              wait + beyond, [this, request_id, host = host_](int failed) {
                --waiting_;
                if (host == host_)
                  on_limits_(request_id, failed == ETIMEDOUT ? 0 : failed);
              });
  return true;
}

int workload::watch_pressure(const v1::WatchPressure& wanted) {
  end_watch();
  if (wanted.stall_us() == 0)
    return 0;
  unique_fd trigger{::open((directory_ + "/memory.pressure").c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC)};
  if (!trigger)
    return errno;
  // The kernel wants the end of the string too.
  const auto text = "some " + std::to_string(wanted.stall_us()) + " " + std::to_string(wanted.window_us());
  if (::write(trigger.get(), text.c_str(), text.size() + 1) < 0)
    return errno;
  const bool watched = loop_.watch(trigger.get(), EPOLLPRI, [this](std::uint32_t events) {
    if ((events & EPOLLERR) != 0) // the group is gone
      end_watch();
    else
      tell_pressure();
  });
  if (!watched)
    return errno;
  trigger_ = std::move(trigger);
  return 0;
}

void workload::end_watch() {
  if (!trigger_)
    return;
  loop_.forget(trigger_.get());
  trigger_.reset();
}

// "some avg10=12.34 avg60=... avg300=... total=123456"; the kernel wakes at most once a window.
void workload::tell_pressure() {
  const auto line = read_line(directory_ + "/memory.pressure");
  const auto field = [&line](std::string_view name) {
    const auto at = line.find(name);
    return at == std::string::npos ? std::string_view{} : std::string_view{line}.substr(at + name.size());
  };
  v1::MemoryPressure pressure;
  pressure.set_stalled_us(number(field("total=")));
  const auto average = field("avg10=");
  const auto point = average.find('.');
  if (point != std::string_view::npos)
    pressure.set_some_avg10_centi(
        static_cast<std::uint32_t>(number(average) * 100 + number(average.substr(point + 1, 2))));
  on_pressure_(std::move(pressure));
}

void workload::forget_host() {
  end_watch();
  ++host_;
}

} // namespace caisson::agent
