#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <deque>
#include <optional>

#include "reactor/core.hpp"

namespace caisson::reactor {
namespace {

constexpr std::size_t write_turn_bytes = 256 * 1024;

std::error_code system_error(int number) {
  return {number, std::generic_category()};
}

// One socket. Every wait holds a reference; the pipe in front of it only decides when it closes.
class connection final : public open_thing {
public:
  connection(std::shared_ptr<core> on, int fd) : core_(std::move(on)), fd_(core_->io) {
    if (core_->ending) {
      ::close(fd);
      closed_ = true;
    } else {
      fd_.assign(fd);
    }
  }

  std::shared_ptr<connection> self() { return std::static_pointer_cast<connection>(shared_from_this()); }

  void start(byte_pipe::callbacks callbacks) {
    if (failed_before_start_ && callbacks.on_closed)
      core_->post([told = std::move(callbacks.on_closed), why = *failed_before_start_] { told(why); });
    if (closed_)
      return;
    callbacks_ = std::make_shared<byte_pipe::callbacks>(std::move(callbacks));
    await_readable();
  }

  void write(std::span<const std::byte> bytes) {
    if (closed_ || write_failed_ || bytes.empty())
      return;
    if (queue_.empty()) {
      auto n = ::send(fd_.native_handle(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n < 0 && errno != EAGAIN && errno != EINTR)
        return fail_writing(errno);
      if (n > 0)
        bytes = bytes.subspan(static_cast<std::size_t>(n));
      if (bytes.empty())
        return tell_drained();
    }
    if (queued_ + bytes.size() > most_queued_bytes)
      return fail_writing(ENOBUFS);
    queued_ += bytes.size();
    queue_.emplace_back(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    await_writable();
  }

  std::size_t queued() const { return queued_; }

  void pause_reading(bool paused) {
    paused_ = paused;
    if (callbacks_)
      await_readable();
  }

  void close() {
    if (closed_)
      return;
    closed_ = true;
    boost::system::error_code ignored;
    fd_.close(ignored);
    queue_.clear();
    queued_ = 0;
    callbacks_.reset();
    core_->dismiss(shared_from_this());
  }

  void end() override { finish(system_error(ECANCELED)); }

private:
  void await_readable() {
    if (closed_ || paused_ || awaits_readable_)
      return;
    awaits_readable_ = true;
    // One wait, one read, then to the end of the queue: this is what makes the turns fair.
    fd_.async_wait(asio::posix::stream_descriptor::wait_read, [self = self()](auto) {
      self->awaits_readable_ = false;
      if (!self->closed_ && !self->paused_ && self->read_once())
        self->await_readable();
    });
  }

  // False: closed now.
  bool read_once() {
    auto& buffer = core_->read_buffer;
    auto n = ::recv(fd_.native_handle(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (n < 0)
      return errno == EAGAIN || errno == EINTR || finish(system_error(errno));
    if (n == 0)
      return finish({});
    auto keep = callbacks_;
    if (keep->on_bytes)
      keep->on_bytes(std::span{buffer}.first(static_cast<std::size_t>(n)));
    return !closed_;
  }

  void await_writable() {
    if (closed_ || awaits_writable_)
      return;
    awaits_writable_ = true;
    fd_.async_wait(asio::posix::stream_descriptor::wait_write, [self = self()](auto) {
      self->awaits_writable_ = false;
      if (!self->closed_ && !self->write_failed_)
        self->write_turn();
    });
  }

  void write_turn() {
    for (std::size_t taken = 0; !queue_.empty() && taken < write_turn_bytes;) {
      auto& front = queue_.front();
      auto n =
          ::send(fd_.native_handle(), front.data() + front_at_, front.size() - front_at_, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n < 0 && (errno == EAGAIN || errno == EINTR))
        break;
      if (n < 0)
        return fail_writing(errno);
      taken += static_cast<std::size_t>(n);
      queued_ -= static_cast<std::size_t>(n);
      front_at_ += static_cast<std::size_t>(n);
      if (front_at_ == front.size()) {
        queue_.pop_front();
        front_at_ = 0;
      }
    }
    if (queue_.empty())
      tell_drained();
    else
      await_writable();
  }

  void tell_drained() {
    if (std::exchange(drained_is_posted_, true))
      return;
    core_->post([self = self()] {
      self->drained_is_posted_ = false;
      auto keep = self->callbacks_;
      if (!self->closed_ && self->queue_.empty() && keep && keep->on_drained)
        keep->on_drained();
    });
  }

  // What the peer has said before it went is still delivered, then the pipe is closed. Never inside write().
  void fail_writing(int number) {
    write_failed_ = true;
    queue_.clear();
    queued_ = 0;
    core_->post([self = self(), number] {
      for (int turns = 0; turns < 16 && !self->closed_ && !self->paused_ && self->callbacks_; ++turns) {
        char probe;
        if (::recv(self->fd_.native_handle(), &probe, 1, MSG_PEEK | MSG_DONTWAIT) <= 0)
          break;
        self->read_once();
      }
      if (!self->closed_)
        self->finish(system_error(number));
    });
  }

  bool finish(std::error_code why) {
    auto keep = callbacks_;
    close();
    if (!keep)
      failed_before_start_ = why;
    if (keep && keep->on_closed)
      keep->on_closed(why);
    return false;
  }

  std::shared_ptr<core> core_;
  asio::posix::stream_descriptor fd_;
  std::shared_ptr<byte_pipe::callbacks> callbacks_;
  std::optional<std::error_code> failed_before_start_;
  std::deque<std::string> queue_;
  std::size_t front_at_ = 0;
  std::size_t queued_ = 0;
  bool paused_ = false;
  bool closed_ = false;
  bool awaits_readable_ = false;
  bool awaits_writable_ = false;
  bool drained_is_posted_ = false;
  bool write_failed_ = false;
};

class pipe final : public byte_pipe {
public:
  pipe(std::shared_ptr<core> on, std::shared_ptr<connection> to) : core_(std::move(on)), to_(std::move(to)) {}
  pipe(const pipe&) = delete;
  pipe& operator=(const pipe&) = delete;
  ~pipe() override { close(); }

  void start(callbacks with) override { to_->start(std::move(with)); }
  void write(std::span<const std::byte> bytes) override { to_->write(bytes); }
  std::size_t queued() const override { return to_->queued(); }
  void pause_reading(bool paused) override { to_->pause_reading(paused); }

  void close() override {
    if (core_->on_thread())
      to_->close();
    else // an owner that ends elsewhere; after the reactor's end there is nothing left to close
      core_->post([to = to_] { to->close(); });
  }

private:
  std::shared_ptr<core> core_;
  std::shared_ptr<connection> to_;
};

} // namespace

std::unique_ptr<byte_pipe> make_pipe(const std::shared_ptr<core>& on, int fd) {
  auto to = std::make_shared<connection>(on, fd);
  if (!on->ending)
    on->enlist(to);
  return std::make_unique<pipe>(on, std::move(to));
}

} // namespace caisson::reactor
