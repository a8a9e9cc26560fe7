#include "backends/host/server.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <deque>
#include <mutex>
#include <utility>

namespace caisson::host {
namespace {

// An engine that reads nothing for so long is no engine any more.
constexpr std::size_t most_unsent_bytes = 64u << 20;
constexpr int log_lines_per_window = 200;
constexpr std::chrono::seconds log_window{5};

// What answers, events and log lines share with serve(): they outlive it.
class outbox final : public emitter {
public:
  outbox() : wake_fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  ~outbox() override { ::close(wake_fd_); }
  outbox(const outbox&) = delete;
  outbox& operator=(const outbox&) = delete;

  int wake_fd() const { return wake_fd_; }

  void send(const v1::BackendSays& says) {
    auto frame = to_frame(says);
    if (!frame) {
      if (!says.has_answer())
        return;
      v1::BackendSays instead;
      *instead.mutable_answer() =
          failure("internal", "the answer is larger than 1 MiB, the most that one message may hold");
      instead.mutable_answer()->set_id(says.answer().id());
      frame = to_frame(instead);
    }
    std::lock_guard lock{mutex_};
    if (closed_)
      return;
    unsent_bytes_ += frame->size();
    frames_.push_back(std::move(*frame));
    wake();
  }

  void event(v1::VmEvent event) override {
    v1::BackendSays says;
    *says.mutable_event() = std::move(event);
    send(says);
  }

  void log_line(std::string_view line) override {
    int left_out = 0;
    {
      std::lock_guard lock{mutex_};
      auto now = std::chrono::steady_clock::now();
      if (now - window_start_ > log_window) {
        window_start_ = now;
        lines_in_window_ = 0;
      }
      if (++lines_in_window_ > log_lines_per_window) {
        ++left_out_;
        return;
      }
      left_out = std::exchange(left_out_, 0);
    }
    if (left_out > 0)
      send_line(std::to_string(left_out) + " log lines were left out: more than 200 in 5 s");
    send_line(std::string{line.substr(0, max_log_line_bytes)});
  }

  /// Takes the next frame into `into` when that is empty. False: nothing to send.
  bool next(std::string& into) {
    std::lock_guard lock{mutex_};
    if (into.empty() && !frames_.empty()) {
      into = std::move(frames_.front());
      frames_.pop_front();
      unsent_bytes_ -= into.size();
    }
    return !into.empty();
  }

  bool overfull() {
    std::lock_guard lock{mutex_};
    return unsent_bytes_ > most_unsent_bytes;
  }

  void close() {
    std::lock_guard lock{mutex_};
    closed_ = true;
    frames_.clear();
  }

private:
  void send_line(std::string line) {
    v1::BackendSays says;
    says.set_log_line(std::move(line));
    send(says);
  }

  void wake() {
    std::uint64_t one = 1;
    [[maybe_unused]] auto n = ::write(wake_fd_, &one, sizeof one);
  }

  std::mutex mutex_;
  std::deque<std::string> frames_;
  std::size_t unsent_bytes_ = 0;
  bool closed_ = false;
  int wake_fd_;
  std::chrono::steady_clock::time_point window_start_{};
  int lines_in_window_ = 0;
  int left_out_ = 0;
};

// Shared by the copies of one answer_function.
class open_call {
public:
  open_call(std::shared_ptr<outbox> out, std::uint64_t id, std::string what)
      : out_(std::move(out)), id_(id), what_(std::move(what)) {}
  open_call(const open_call&) = delete;
  open_call& operator=(const open_call&) = delete;
  ~open_call() { answer(failure("internal", what_ + ": the backend has dropped the call without an answer")); }

  void answer(v1::BackendAnswer with) {
    if (answered_.exchange(true))
      return;
    with.set_id(id_);
    v1::BackendSays says;
    *says.mutable_answer() = std::move(with);
    out_->send(says);
  }

private:
  std::shared_ptr<outbox> out_;
  std::uint64_t id_;
  std::string what_;
  std::atomic<bool> answered_{false};
};

// False: the message is no call.
bool take_call(std::string_view bytes, driver& to, const std::shared_ptr<outbox>& out) {
  v1::BackendCall call;
  if (!call.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return false;
  std::string what{verb_name(call)};
  if (auto sandbox = sandbox_of(call); !sandbox.empty())
    what += " of sandbox " + sandbox;
  auto open = std::make_shared<open_call>(out, call.id(), what);
  if (call.verb_case() == v1::BackendCall::VERB_NOT_SET) {
    open->answer(failure("unsupported", "the call has no verb that this backend knows (contract version " +
                                            std::to_string(wire_contract_version) + ")"));
    return true;
  }
  set_deadline_ms(call, deadline_ms_of(call));
  try {
    to.submit(std::move(call), [open](v1::BackendAnswer with) { open->answer(std::move(with)); });
  } catch (const std::exception& e) {
    open->answer(failure("internal", what + ": " + e.what()));
  }
  return true;
}

// Reads once. 1: go on, 0: the engine has gone, -1: broken.
int read_calls(int fd, frame_reader& frames, driver& to, const std::shared_ptr<outbox>& out) {
  std::array<std::byte, 64 * 1024> buffer;
  auto n = ::recv(fd, buffer.data(), buffer.size(), MSG_DONTWAIT);
  if (n == 0)
    return 0;
  if (n < 0)
    return errno == EAGAIN || errno == EINTR ? 1 : errno == ECONNRESET ? 0 : -1;
  if (!frames.feed(std::span{buffer}.first(static_cast<std::size_t>(n))))
    return -1;
  while (auto message = frames.next())
    if (!take_call(*message, to, out))
      return -1;
  return 1;
}

// The same results. Leaves in `current` what the socket did not take.
int write_answers(int fd, std::string& current, outbox& out) {
  while (out.next(current)) {
    auto n = ::send(fd, current.data(), current.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0)
      return errno == EAGAIN || errno == EINTR ? 1 : errno == EPIPE || errno == ECONNRESET ? 0 : -1;
    current.erase(0, static_cast<std::size_t>(n));
  }
  return 1;
}

int converse(int fd, driver& to, const std::shared_ptr<outbox>& out) {
  frame_reader frames;
  std::string current;
  for (;;) {
    if (out->overfull())
      return -1;
    std::array<pollfd, 2> ready{{{fd, POLLIN, 0}, {out->wake_fd(), POLLIN, 0}}};
    if (out->next(current))
      ready[0].events |= POLLOUT;
    if (::poll(ready.data(), ready.size(), -1) < 0 && errno != EINTR)
      return -1;
    if (ready[1].revents & POLLIN) {
      std::uint64_t count = 0;
      [[maybe_unused]] auto n = ::read(out->wake_fd(), &count, sizeof count);
    }
    if (auto rc = write_answers(fd, current, *out); rc != 1)
      return rc;
    if (ready[0].revents & (POLLIN | POLLHUP | POLLERR))
      if (auto rc = read_calls(fd, frames, to, out); rc != 1)
        return rc;
  }
}

} // namespace

std::optional<arguments> parse_arguments(int argc, const char* const* argv, std::string& error) {
  arguments out;
  auto place = [&](std::string_view name) -> std::string* {
    return name == "--state"   ? &out.state_directory
           : name == "--run"   ? &out.run_directory
           : name == "--cache" ? &out.cache_directory
           : name == "--log"   ? &out.log_directory
                               : nullptr;
  };
  for (int i = 1; i < argc; i += 2) {
    auto* into = place(argv[i]);
    if (!into || i + 1 == argc) {
      error = std::string{argv[0]} + ": \"" + argv[i] +
              "\": expected --state DIR --run DIR --cache DIR --log DIR, as the engine gives them; this program is "
              "started by the engine and speaks on descriptor 3";
      return std::nullopt;
    }
    *into = argv[i + 1];
  }
  if (out.state_directory.empty() || out.run_directory.empty() || out.cache_directory.empty() ||
      out.log_directory.empty()) {
    error = std::string{argc > 0 ? argv[0] : "caisson-backend"} +
            ": one of --state DIR, --run DIR, --cache DIR, --log DIR is missing; this program is started by the engine";
    return std::nullopt;
  }
  return out;
}

int serve(int fd, driver& driver) {
  auto out = std::make_shared<outbox>();
  ::fcntl(fd, F_SETFD, FD_CLOEXEC);
  auto ready = driver.start(out);
  if (ready.contract_version() == 0)
    ready.set_contract_version(wire_contract_version);
  v1::BackendSays says;
  *says.mutable_ready() = std::move(ready);
  // Whatever start() has emitted comes after the greeting.
  auto greeting = to_frame(says);
  auto sent = greeting ? ::send(fd, greeting->data(), greeting->size(), MSG_NOSIGNAL) : -1;
  auto rc = greeting && sent == static_cast<ssize_t>(greeting->size()) ? converse(fd, driver, out) : -1;
  out->close();
  ::close(fd);
  return rc == 0 ? 0 : 1;
}

v1::BackendAnswer failure(std::string_view code, std::string text) {
  v1::BackendAnswer out;
  out.mutable_error()->set_code(std::string{code});
  out.mutable_error()->set_text(std::move(text));
  return out;
}

v1::BackendAnswer success(v1::VmObserved observed) {
  v1::BackendAnswer out;
  *out.mutable_observed() = std::move(observed);
  return out;
}

v1::BackendAnswer success(v1::Capabilities capabilities) {
  v1::BackendAnswer out;
  *out.mutable_capabilities() = std::move(capabilities);
  return out;
}

v1::BackendAnswer success(v1::VmList list) {
  v1::BackendAnswer out;
  *out.mutable_list() = std::move(list);
  return out;
}

} // namespace caisson::host
