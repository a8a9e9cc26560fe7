#include "backends/host/backend_process.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>

namespace caisson::host {
namespace {

constexpr std::chrono::seconds stale_gone_within{5};

// Both ends close on exec; what the child gets is a copy.
struct socket_pair {
  std::array<int, 2> fds{-1, -1};
  socket_pair() {
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()) != 0)
      fds = {-1, -1};
  }
  socket_pair(const socket_pair&) = delete;
  socket_pair& operator=(const socket_pair&) = delete;
  ~socket_pair() {
    for (int fd : fds)
      if (fd >= 0)
        ::close(fd);
  }
  int take_ours() { return std::exchange(fds[0], -1); }
};

} // namespace

backend_process::backend_process(reactor::reactor& on, process_settings settings)
    : reactor_(on), settings_(std::move(settings)), next_pause_(settings_.shortest_pause) {}

void backend_process::post(std::function<void()> work) {
  std::lock_guard lock{end_mutex_};
  if (!ended_)
    reactor_.post(std::move(work));
}

void backend_process::listen(std::uint64_t ticket, std::string sandbox_id, event_function heard) {
  post([self = shared_from_this(), ticket, sandbox_id = std::move(sandbox_id), heard = std::move(heard)] {
    self->by_sandbox_.emplace(sandbox_id, ticket);
    self->listeners_[ticket] = {sandbox_id, heard};
  });
}

void backend_process::unlisten(std::uint64_t ticket) {
  post([self = shared_from_this(), ticket] {
    auto at = self->listeners_.find(ticket);
    if (at == self->listeners_.end())
      return;
    auto [from, to] = self->by_sandbox_.equal_range(at->second.sandbox_id);
    self->by_sandbox_.erase(std::find_if(from, to, [&](const auto& entry) { return entry.second == ticket; }));
    self->listeners_.erase(at);
  });
}

std::string backend_process::who() const {
  return "the process of backend " + settings_.name + (child_ ? " (pid " + std::to_string(child_->pid()) + ")" : "");
}

void backend_process::log(const std::string& line) const {
  if (settings_.log)
    settings_.log("backend " + settings_.name + ": " + line);
}

// An engine that was killed may have left a process behind that is stopped or stalled and still holds the directories.
void backend_process::start() {
  state_ = state::starting;
  was_ready_ = false;
  pid_t pid = 0;
  std::uint64_t ticks = 0;
  if (!settings_.pid_file.empty())
    std::ifstream{settings_.pid_file} >> pid >> ticks;
  auto stale = pid <= 0 ? nullptr : reactor_.watch(pid, ticks, [weak = weak_from_this()](auto) {
    if (auto self = weak.lock(); self && self->state_ == state::starting)
      self->spawn();
  });
  if (!stale)
    return spawn();
  log("killing process " + std::to_string(pid) + ", left behind by an earlier engine (its VMs live on)");
  stale->kill(SIGKILL);
  phase_timer_ = reactor_.after(stale_gone_within, [this, pid] {
    give_up("backend_lost",
            "process " + std::to_string(pid) +
                " of an earlier engine still holds the backend's directories and "
                "does not end, although it was killed; see why the system keeps it (ps -o stat,wchan)",
            true);
  });
}

void backend_process::spawn() {
  socket_pair protocol;
  socket_pair output;
  ++generation_;
  frames_ = {};
  lines_ = std::make_unique<line_reader>([this](std::string_view line) { log(std::string{line}); });
  reactor::program what{settings_.program,
                        settings_.arguments,
                        {},
                        {{output.fds[1], 1}, {output.fds[1], 2}, {protocol.fds[1], protocol_fd}}};
  std::string error;
  std::error_code ignored;
  if (protocol.fds[1] < 0 || output.fds[1] < 0)
    return give_up("host_resources",
                   std::string{"no socket for the backend's process: "} + std::strerror(errno) +
                       "; raise the limit of open files (ulimit -n)",
                   true);
  child_ = reactor_.start(
      what,
      [weak = weak_from_this(), generation = generation_](auto status) {
        if (auto self = weak.lock())
          self->exited(generation, status);
      },
      error);
  if (!child_)
    return give_up("host_missing",
                   error + "; it is the process of backend " + settings_.name +
                       " and stands beside the engine's own programs: build it, install its package, or choose "
                       "another hypervisor",
                   true);
  exited_ = false;
  socket_closed_ = false;
  write_pid_file();
  open_pipes(protocol.take_ours(), output.take_ours());
  phase_timer_ = reactor_.after(settings_.ready_within, [this] {
    give_up("backend_lost",
            who() + " has not said that it is ready within " + std::to_string(settings_.ready_within.count()) +
                " ms; its last lines are in the engine's log",
            true);
  });
}

void backend_process::open_pipes(int protocol, int output) {
  auto weak = weak_from_this();
  pipe_ = reactor_.adopt(protocol);
  pipe_->start({[weak](auto bytes) {
                  if (auto self = weak.lock())
                    self->heard(bytes);
                },
                [weak, generation = generation_](auto) {
                  if (auto self = weak.lock(); self && self->generation_ == generation)
                    self->socket_closed();
                },
                {}});
  output_ = reactor_.adopt(output);
  output_->start({[weak](auto bytes) {
                    if (auto self = weak.lock())
                      self->lines_->feed(bytes);
                  },
                  {},
                  {}});
}

void backend_process::take_ready(const v1::BackendReady& ready) {
  if (state_ != state::starting)
    return;
  if (ready.contract_version() != wire_contract_version)
    return give_up("backend_lost",
                   settings_.program + " speaks version " + std::to_string(ready.contract_version()) +
                       " of the backend contract, this engine version " + std::to_string(wire_contract_version) +
                       "; install the two from one build (a backend of one's own: docs/backends/writing-one.md says what "
                       "each version has added)",
                   true);
  phase_timer_.cancel();
  state_ = state::ready;
  was_ready_ = true;
  ready_since_ = std::chrono::steady_clock::now();
  log("ready (pid " + std::to_string(child_->pid()) + ", " + clean_line(ready.library_version(), 100) + ")");
  if (std::exchange(restart_to_tell_, false))
    tell_restarted();
  send_waiting();
}

// The process is not worth anything any more. What it has still in its socket is read unless it is killed.
void backend_process::give_up(std::string code, std::string why, bool kill_now) {
  if (state_ != state::starting && state_ != state::ready)
    return;
  state_ = state::ending;
  lost_code_ = std::move(code);
  lost_why_ = std::move(why);
  life_timer_.cancel();
  sign_of_life_id_ = 0;
  if (kill_now) {
    phase_timer_.cancel();
    if (child_)
      child_->kill(SIGKILL);
    pipe_.reset();
    socket_closed_ = true;
    return end_if_over();
  }
  phase_timer_ = reactor_.after(settings_.exit_within, [this] {
    if (!exited_)
      child_->kill(SIGKILL);
    pipe_.reset();
    socket_closed_ = true;
    end_if_over();
  });
  end_if_over();
}

void backend_process::exited(std::uint64_t generation, const reactor::exit_status& status) {
  if (generation != generation_ || state_ == state::shut)
    return;
  exited_ = true;
  if (state_ == state::ending)
    lost_why_ += lost_why_.ends_with(" ended") ? ": it " + status.text() : "";
  give_up("backend_lost", who() + " " + status.text(), false);
  end_if_over();
}

void backend_process::socket_closed() {
  socket_closed_ = true;
  give_up("backend_lost", who() + " has ended", false);
  end_if_over();
}

void backend_process::end_if_over() {
  if (state_ != state::ending || !exited_ || !socket_closed_)
    return;
  auto why = lost_why_;
  if (lines_ && !was_ready_ && !lines_->last_lines().empty())
    why += "; its last lines: " + lines_->last_lines();
  log("lost: " + why);
  restart_to_tell_ |= was_ready_;
  close_all();
  pause();
  // Unsent calls wait for the next process, unless there is reason to believe that it will not come either.
  answer_lost(lost_code_, why, !was_ready_);
}

void backend_process::close_all() {
  phase_timer_.cancel();
  life_timer_.cancel();
  pipe_.reset();
  output_.reset();
  child_.reset();
}

void backend_process::pause() {
  if (was_ready_ && std::chrono::steady_clock::now() - ready_since_ >= settings_.calm_after)
    next_pause_ = settings_.shortest_pause;
  state_ = state::pausing;
  phase_timer_ = reactor_.after(next_pause_, [this] {
    if (!calls_.empty() || (restart_to_tell_ && !listeners_.empty()))
      start();
    else
      state_ = state::idle;
  });
  next_pause_ = std::min(next_pause_ * 2, settings_.longest_pause);
}

void backend_process::write_pid_file() const {
  if (!settings_.pid_file.empty())
    std::ofstream{settings_.pid_file, std::ios::trunc} << child_->pid() << ' ' << child_->start_ticks() << '\n';
}

void backend_process::shut_down(std::chrono::milliseconds at_most) {
  // Shared, so that a reactor that has ended already breaks the promise instead of leaving us waiting.
  auto closed = std::make_shared<std::promise<std::shared_ptr<reactor::child>>>();
  auto left = closed->get_future();
  post([this, closed = std::move(closed)] {
    state_ = state::shut;
    phase_timer_.cancel();
    life_timer_.cancel();
    pipe_.reset();
    answer_lost("backend_lost", "the engine is ending", true);
    listeners_.clear();
    by_sandbox_.clear();
    closed->set_value(child_);
  });
  std::shared_ptr<reactor::child> process;
  try {
    process = left.get();
  } catch (const std::future_error&) {
    return;
  }
  {
    std::lock_guard lock{end_mutex_};
    ended_ = true;
  }
  if (process && !process->await_exit(at_most)) {
    log("does not end by itself: killed (its VMs live on)");
    process->kill(SIGKILL);
    process->await_exit(at_most);
  }
  std::error_code ignored;
  if (process && !settings_.pid_file.empty())
    std::filesystem::remove(settings_.pid_file, ignored);
}

} // namespace caisson::host
