#include "frontends/cli/session.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <mutex>
#include <thread>

#include "frontends/cli/output.hpp"
#include "frontends/cli/progress.hpp"
#include "frontends/cli/terminal.hpp"

namespace caisson::cli {
namespace {

using clock = std::chrono::steady_clock;

// What goes towards the engine: standard input, one piece at a time, and signals past it.
class input_side {
public:
  input_side(door::exec_stream& stream, signal_pipe& signals, const session_options& options)
      : stream_{stream}, signals_{signals}, options_{options},
        stdin_open_{options.stdin_attached}, wake_fd_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)} {}

  ~input_side() {
    ended_ = true;
    wake();
    if (thread_.joinable())
      thread_.join();
    ::close(wake_fd_);
  }

  void start() {
    thread_ = std::thread{[this] { run(); }};
  }

  void process_started() {
    started_ = true;
    may_send_ = true;
    wake();
  }

  void stdin_taken() {
    may_send_ = true;
    wake();
  }

  /// Ends the process for a reason of our own; `signal` becomes the exit status.
  void hang_up(int signal) {
    if (ended_by_.exchange(signal) != 0)
      return;
    v1::ExecInput in;
    in.set_hang_up(true);
    write(in);
  }

  int ended_by() const { return ended_by_; }

private:
  void wake() {
    std::uint64_t one = 1;
    [[maybe_unused]] auto n = ::write(wake_fd_, &one, sizeof one);
  }

  bool write(const v1::ExecInput& in) {
    std::lock_guard hold{write_mutex_};
    return stream_.write(in);
  }

  void run() {
    while (!ended_) {
      bool read_stdin = stdin_open_ && started_ && may_send_;
      pollfd fds[3] = {{signals_.fd(), POLLIN, 0}, {wake_fd_, POLLIN, 0}, {read_stdin ? 0 : -1, POLLIN, 0}};
      if (::poll(fds, 3, timeout_ms()) < 0 && errno != EINTR)
        return;
      if (fds[1].revents != 0) {
        std::uint64_t n = 0;
        [[maybe_unused]] auto got = ::read(wake_fd_, &n, sizeof n);
      }
      while (int number = signals_.next())
        on_signal(number);
      if (hang_up_at_ && clock::now() >= *hang_up_at_) {
        hang_up_at_.reset();
        hang_up(last_signal_);
      }
      if (started_ && !options_.stdin_attached && !std::exchange(stdin_closed_, true))
        close_stdin();
      if (read_stdin && fds[2].revents != 0)
        pass_stdin();
    }
  }

  int timeout_ms() const {
    if (!hang_up_at_)
      return -1;
    auto left = std::chrono::duration_cast<std::chrono::milliseconds>(*hang_up_at_ - clock::now()).count();
    return static_cast<int>(std::clamp<std::int64_t>(left + 1, 0, 10'000));
  }

  void pass_stdin() {
    char buffer[32 * 1024];
    auto n = ::read(0, buffer, sizeof buffer);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
      return;
    if (n <= 0) {
      stdin_open_ = false;
      close_stdin();
      return;
    }
    may_send_ = false;
    v1::ExecInput in;
    in.set_stdin_bytes(buffer, static_cast<std::size_t>(n));
    write(in);
  }

  void close_stdin() {
    v1::ExecInput in;
    in.set_stdin_closed(true);
    write(in);
  }

  void on_signal(int number) {
    if (number == SIGWINCH) {
      auto size = terminal_size();
      if (!options_.terminal || !started_ || !size)
        return;
      v1::ExecInput in;
      in.mutable_resize()->set_rows(size->first);
      in.mutable_resize()->set_columns(size->second);
      write(in);
      return;
    }
    if (ended_by_ != 0) { // hung up already, and still here: the person insists
      stream_.cancel();
      return;
    }
    bool again = std::exchange(last_signal_, number) != 0;
    if (number == SIGHUP || again || !started_) {
      hang_up(number);
      return;
    }
    v1::ExecInput in;
    in.set_signal(number);
    write(in);
    hang_up_at_ = clock::now() + std::chrono::seconds{10};
  }

  door::exec_stream& stream_;
  signal_pipe& signals_;
  const session_options& options_;
  std::atomic<bool> ended_ = false, started_ = false, may_send_ = false;
  std::atomic<int> ended_by_ = 0;
  bool stdin_open_, stdin_closed_ = false;
  int last_signal_ = 0;
  std::optional<clock::time_point> hang_up_at_;
  int wake_fd_;
  std::mutex write_mutex_;
  std::thread thread_;
};

// The stream broke and its sandbox may still be there: an engine that starts now removes it, we ask for it too.
void remove_left_over(const command_context& context, const std::string& sandbox) {
  try {
    auto engine = context.engine();
    if (sandbox.empty())
      return;
    v1::RemoveSandbox request;
    request.set_sandbox(sandbox);
    request.set_force(true);
    auto removed = engine->remove(request);
    auto* e = std::get_if<v1::Error>(&removed);
    if (e && e->code() != "not_found")
      print_notice("sandbox " + sandbox + " could not be removed: " + e->text(), context.global.json);
  } catch (const failed& f) {
    print_notice("sandbox " + sandbox + " may still be there: " + f.error.text(), context.global.json);
  }
}

} // namespace

int run_session(const command_context& context, v1::ExecRequest request, const session_options& options) {
  auto engine = context.engine();
  bool json = context.global.json;
  signal_pipe signals;
  auto stream = engine->exec();
  progress shown{options.owns_sandbox ? "booting the sandbox" : "starting the process", json};
  {
    v1::ExecInput first;
    *first.mutable_start() = std::move(request);
    stream->write(first);
  }
  std::optional<v1::ExecExited> exited;
  std::optional<v1::Error> failure;
  std::string sandbox, notice;
  int ended_by = 0;
  {
    raw_terminal raw{options.terminal && options.stdin_attached};
    input_side input{*stream, signals, options};
    input.start();
    v1::ExecOutput out;
    bool readable = true; // somebody still takes our output
    auto pass_on = [&](int fd, std::string_view bytes) {
      if (readable && !write_all(fd, bytes)) {
        readable = false;
        input.hang_up(SIGPIPE);
      }
    };
    while (stream->read(out)) {
      switch (out.output_case()) {
      case v1::ExecOutput::kSandbox:
        sandbox = out.sandbox().id();
        shown.say("starting the process");
        break;
      case v1::ExecOutput::kStarted:
        shown.end();
        input.process_started();
        break;
      case v1::ExecOutput::kStdoutBytes:
        pass_on(1, out.stdout_bytes());
        break;
      case v1::ExecOutput::kStderrBytes:
        pass_on(2, out.stderr_bytes());
        break;
      case v1::ExecOutput::kStdinTaken:
        input.stdin_taken();
        break;
      case v1::ExecOutput::kNotice:
        notice = out.notice();
        break;
      case v1::ExecOutput::kExited:
        exited = out.exited();
        break;
      case v1::ExecOutput::kError:
        failure = out.error();
        break;
      case v1::ExecOutput::OUTPUT_NOT_SET:
        break;
      }
    }
    ended_by = input.ended_by();
  }
  auto status = stream->finish();
  shown.end();
  if (status && !failure)
    failure = std::move(status);
  if (!notice.empty())
    print_notice(notice, json);
  bool broken = failure && (failure->code() == "backend_lost" || failure->code() == "deadline_exceeded");
  if (options.owns_sandbox && !exited && broken && ended_by == 0)
    remove_left_over(context, sandbox);
  if (exited)
    return exited->exit_code() == 0 && exited->signal() != 0 ? 128 + exited->signal() : exited->exit_code();
  if (ended_by != 0)
    return 128 + ended_by;
  if (failure)
    throw failed{std::move(*failure)};
  fail("internal", "the engine ended the stream without saying how the process ended");
}

} // namespace caisson::cli
