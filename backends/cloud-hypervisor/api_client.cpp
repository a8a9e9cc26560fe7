#include "backends/cloud-hypervisor/api_client.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <deque>
#include <span>
#include <utility>

#include "reactor/reactor.hpp"

namespace caisson::cloud_hypervisor {
namespace {

using clock = std::chrono::steady_clock;

// What one message of a Unix socket carries at most.
constexpr std::size_t most_descriptors = 253;

class owned_descriptors {
public:
  owned_descriptors() = default;
  owned_descriptors(owned_descriptors&& other) noexcept : all_(std::exchange(other.all_, {})) {}
  owned_descriptors& operator=(owned_descriptors&& other) noexcept {
    std::swap(all_, other.all_);
    return *this;
  }
  ~owned_descriptors() {
    for (int each : all_)
      ::close(each);
  }
  // False: errno says why.
  bool duplicate(const std::vector<int>& from) {
    for (int each : from) {
      int copy = ::fcntl(each, F_DUPFD_CLOEXEC, 3);
      if (copy < 0)
        return false;
      all_.push_back(copy);
    }
    return true;
  }
  const std::vector<int>& all() const { return all_; }

private:
  std::vector<int> all_;
};

std::string written(const request& what) {
  auto out = what.method + " " + what.path + " HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n";
  if (!what.body.empty())
    out += "Content-Type: application/json\r\n";
  return out + "Content-Length: " + std::to_string(what.body.size()) + "\r\n\r\n" + what.body;
}

// The descriptors go with the first byte. The bytes that were taken, or -1 and errno.
ssize_t send_with(int socket, std::string_view bytes, const std::vector<int>& descriptors) {
  std::vector<char> control(CMSG_SPACE(sizeof(int) * descriptors.size()));
  iovec part{const_cast<char*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  auto* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int) * descriptors.size());
  std::memcpy(CMSG_DATA(header), descriptors.data(), sizeof(int) * descriptors.size());
  return ::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

} // namespace

std::string_view name_of(outcome_kind kind) {
  switch (kind) {
  case outcome_kind::answered:
    return "answered";
  case outcome_kind::malformed:
    return "malformed";
  case outcome_kind::refused:
    return "refused";
  case outcome_kind::lost:
    return "lost";
  case outcome_kind::late:
    return "late";
  }
  return "";
}

// Everything but the constructor, call() and the figures runs on the reactor's thread.
class api_client::state : public std::enable_shared_from_this<state> {
public:
  struct waiting_call {
    std::uint64_t id = 0;
    request what;
    owned_descriptors descriptors;
    done_function done;
    std::chrono::milliseconds deadline{0};
    reactor::timer timer;
    bool sent_again = false;
  };

  state(reactor::reactor& on, std::string path) : on_(on), path_(std::move(path)) {}

  void call(request what, std::chrono::milliseconds deadline, done_function done, const std::vector<int>& descriptors) {
    auto end_with = [this, &what, &done](outcome_kind kind, const std::string& why) {
      outcome out{.kind = kind, .why = where(what) + why};
      on_.post([done = std::move(done), out = std::move(out)]() mutable { done(std::move(out)); });
    };
    if (auto wrong = violation(what); !wrong.empty())
      return end_with(outcome_kind::malformed, wrong);
    auto call = std::make_shared<waiting_call>();
    if (descriptors.size() > most_descriptors)
      return end_with(outcome_kind::malformed, std::to_string(descriptors.size()) + " descriptors do not fit, " +
                                                   std::to_string(most_descriptors) + " do");
    if (!call->descriptors.duplicate(descriptors))
      return end_with(outcome_kind::refused, std::string{"cannot duplicate a descriptor: "} + std::strerror(errno));
    call->what = std::move(what);
    call->done = std::move(done);
    call->deadline = deadline;
    const auto at = clock::now() + deadline;
    on_.post([self = shared_from_this(), call, at] { self->enqueue(call, at); });
  }

  void end() {
    ended_ = true;
    pipe_.reset();
    if (current_)
      finish(outcome_kind::lost, "the client was closed before the reply");
    while (!queue_.empty()) {
      current_ = std::move(queue_.front());
      queue_.pop_front();
      finish(outcome_kind::refused, "the client was closed before its turn");
    }
  }

  std::atomic<std::int64_t> spent_us{0};
  std::atomic<std::uint64_t> sent{0};

private:
  std::string where(const request& what) const {
    return "Cloud Hypervisor's API at " + path_ + ": " + escaped_text(what.method, 16) + " " +
           escaped_text(what.verb(), 80) + ": ";
  }

  void enqueue(const std::shared_ptr<waiting_call>& call, clock::time_point at) {
    call->id = ++last_id_;
    queue_.push_back(call);
    if (ended_)
      return end();
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(at - clock::now());
    call->timer = on_.after(std::max(left, std::chrono::milliseconds{0}),
                            [weak = weak_from_this(), id = call->id] {
                              if (auto self = weak.lock())
                                self->late(id);
                            });
    next();
  }

  void next() {
    if (current_ || queue_.empty())
      return;
    current_ = std::move(queue_.front());
    queue_.pop_front();
    send();
  }

  void send() {
    std::string why;
    if (pipe_ && !is_silent())
      pipe_.reset();
    if (!pipe_ && !connect(why))
      return finish(outcome_kind::refused, why);
    reader_.reset();
    const auto bytes = written(current_->what);
    std::string_view left{bytes};
    sent_at_ = clock::now();
    ++sent;
    if (const auto& descriptors = current_->descriptors.all(); !descriptors.empty()) {
      auto taken = send_with(fd_, left, descriptors);
      if (taken < 0 && errno != EPIPE) {
        why = std::string{"the request and its descriptors were not taken: "} + std::strerror(errno);
        pipe_.reset();
        return finish(outcome_kind::refused, why);
      }
      // Where the server has closed its end the pipe meets the same, and reads what it said before.
      left.remove_prefix(static_cast<std::size_t>(std::max<ssize_t>(taken, 0)));
    }
    pipe_->write(std::as_bytes(std::span{left}));
  }

  // Neither closed by the server since the last reply, nor is there anything that nobody has asked for.
  bool is_silent() const {
    char probe;
    return ::recv(fd_, &probe, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN;
  }

  bool connect(std::string& why) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path_.empty() || path_.size() > reactor::longest_socket_path_bytes) {
      why = "the socket's path has " + std::to_string(path_.size()) + " bytes, the system takes 1 to " +
            std::to_string(reactor::longest_socket_path_bytes) + "; choose a shorter run directory";
      return false;
    }
    path_.copy(address.sun_path, path_.size());
    int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      const int number = errno;
      if (fd >= 0)
        ::close(fd);
      why = std::string{"cannot connect: "} + std::strerror(number);
      why += number == ENOENT         ? "; the VMM has not made its socket yet, or has ended"
             : number == ECONNREFUSED ? "; nobody listens there: the VMM has ended"
             : number == EAGAIN       ? "; the VMM accepts no connection: its queue is full"
                                      : "";
      return false;
    }
    fd_ = fd; // the pipe owns it
    pipe_ = on_.adopt(fd);
    auto self = shared_from_this();
    pipe_->start({.on_bytes = [self](auto bytes) { self->read(bytes); },
                  .on_closed = [self](auto why_closed) { self->closed(why_closed); },
                  .on_drained = {}});
    return true;
  }

  void read(std::span<const std::byte> bytes) {
    if (!current_) { // nobody has asked: from here on replies and requests would not match
      pipe_.reset();
      return;
    }
    const auto at = reader_.feed({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    if (at == reply_reader::state::wants_more)
      return;
    if (at == reply_reader::state::broken || reader_.surplus() > 0)
      pipe_.reset();
    conclude(at);
  }

  void closed(std::error_code why) {
    pipe_.reset();
    if (!current_)
      return;
    const bool begun = reader_.begun();
    const auto at = reader_.end();
    if (at == reply_reader::state::complete)
      return conclude(at);
    if (current_->what.method == "GET" && !current_->sent_again && why != std::errc::operation_canceled) {
      current_->sent_again = true;
      account();
      return send();
    }
    if (why == std::errc::broken_pipe && !begun)
      return finish(outcome_kind::refused, "the VMM closed the connection before it had taken the request");
    conclude(at);
  }

  void conclude(reply_reader::state at) {
    if (at == reply_reader::state::broken)
      return finish(outcome_kind::lost, "the reply was not understood: " + reader_.error());
    auto reply = reader_.take();
    if (reply.status == 503) {
      pipe_.reset();
      return finish(outcome_kind::refused, "the VMM has no free connection (it has ten): " + reply.text());
    }
    auto why = reply.ok() ? std::string{} : reply.text();
    finish(outcome_kind::answered, why, std::move(reply));
  }

  void late(std::uint64_t id) {
    constexpr auto text = "no reply within ";
    if (current_ && current_->id == id) {
      pipe_.reset();
      return finish(outcome_kind::late, text + std::to_string(current_->deadline.count()) +
                                            " ms; the VMM works one request at a time, so a slow one keeps the others "
                                            "waiting: whether it lives only its process says");
    }
    for (auto at = queue_.begin(); at != queue_.end(); ++at) {
      if ((*at)->id != id)
        continue;
      auto call = std::move(*at);
      queue_.erase(at);
      outcome out{.kind = outcome_kind::late,
                  .why = where(call->what) + "not sent within " + std::to_string(call->deadline.count()) +
                         " ms: the calls before it have not ended"};
      return call->done(std::move(out));
    }
  }

  std::chrono::microseconds account() {
    if (sent_at_ == clock::time_point{})
      return {};
    const auto spent = std::chrono::duration_cast<std::chrono::microseconds>(clock::now() - std::exchange(sent_at_, {}));
    spent_us += spent.count();
    return spent;
  }

  void finish(outcome_kind kind, const std::string& why, http_reply reply = {}) {
    auto call = std::exchange(current_, {});
    call->timer.cancel();
    outcome out{.kind = kind, .reply = std::move(reply), .sent = sent_at_ != clock::time_point{}};
    if (kind == outcome_kind::refused)
      out.sent = false;
    out.spent = account();
    if (!why.empty())
      out.why = where(call->what) + why;
    if (!queue_.empty() && !ended_)
      on_.post([self = shared_from_this()] { self->next(); });
    call->done(std::move(out)); // last: it may throw
  }

  reactor::reactor& on_;
  const std::string path_;
  std::deque<std::shared_ptr<waiting_call>> queue_;
  std::shared_ptr<waiting_call> current_;
  std::unique_ptr<byte_pipe> pipe_;
  int fd_ = -1;
  reply_reader reader_;
  clock::time_point sent_at_{};
  std::uint64_t last_id_ = 0;
  bool ended_ = false;
};

api_client::api_client(reactor::reactor& on, std::string socket_path)
    : state_(std::make_shared<state>(on, std::move(socket_path))), on_(&on) {}

api_client::~api_client() {
  on_->post([state = state_] { state->end(); });
}

void api_client::call(request what, std::chrono::milliseconds deadline, done_function done,
                      const std::vector<int>& descriptors) {
  state_->call(std::move(what), deadline, std::move(done), descriptors);
}

std::chrono::microseconds api_client::spent() const {
  return std::chrono::microseconds{state_->spent_us.load()};
}

std::uint64_t api_client::sent() const {
  return state_->sent.load();
}

} // namespace caisson::cloud_hypervisor
