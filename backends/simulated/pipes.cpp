#include "backends/simulated/pipes.hpp"

#include <deque>
#include <utility>

namespace caisson::backends::simulated {
namespace {

constexpr std::size_t piece_bytes = 32 * 1024;

caf::behavior runner(caf::event_based_actor*) {
  return {[](const job& j) { j.work(); }};
}

/// One connection. Members in the first group belong to the connection's own actor, those in the second to the
/// executor.
class wire : public std::enable_shared_from_this<wire> {
public:
  wire(caf::actor_system& system, std::shared_ptr<world> where, std::shared_ptr<actor_executor> on)
      : world_{std::move(where)}, line_{system.spawn<caf::hidden>(runner)}, executor_{std::move(on)} {}

  bool connect(world::user_id user, const std::string& endpoint, std::string& problem) {
    const auto on_line = [weak = weak_from_this()](void (wire::*what)()) {
      if (auto self = weak.lock())
        self->on_line([self, what] { ((*self).*what)(); });
    };
    connection_events events;
    events.on_readable = [on_line] { on_line(&wire::read); };
    events.on_writable = [on_line] { on_line(&wire::flush); };
    events.on_closed = [weak = weak_from_this()](std::string, std::vector<std::byte> rest) {
      auto self = weak.lock();
      if (!self)
        return;
      self->on_line([self, rest = std::move(rest)]() mutable {
        self->gone_ = true;
        self->outgoing_.clear();
        self->on_executor([self, rest = std::move(rest)] {
          self->deliver(rest);
          self->ended();
        });
      });
    };
    connection_ = world_->connect(user, endpoint, std::move(events), problem);
    return connection_ != 0;
  }

  // ---- on the executor ----

  void start(byte_pipe::callbacks c) {
    callbacks_ = std::move(c);
    started_ = true;
    resume();
  }

  void write(std::span<const std::byte> bytes) {
    if (closed_ || bytes.empty())
      return;
    queued_ += bytes.size();
    on_line([self = shared_from_this(), piece = std::vector<std::byte>{bytes.begin(), bytes.end()}]() mutable {
      self->outgoing_.push_back(std::move(piece));
      self->flush();
    });
  }

  std::size_t queued() const { return queued_; }

  void pause_reading(bool paused) {
    paused_ = paused;
    if (!paused)
      resume();
  }

  void close() {
    if (std::exchange(closed_, true))
      return;
    // The caller may be one of the callbacks, so they go later.
    on_executor([self = shared_from_this()] { self->callbacks_ = {}; });
    on_line([self = shared_from_this()] {
      self->gone_ = true;
      self->outgoing_.clear();
      self->world_->disconnect(self->connection_);
    });
  }

private:
  void on_line(std::function<void()> work) {
    if (!executor_->closed())
      caf::anon_send(line_, job{std::move(work)});
  }
  void on_executor(std::function<void()> work) { executor_->post(std::move(work)); }

  // ---- on the connection's actor ----

  void read() {
    if (gone_ || reading_)
      return;
    auto bytes = world_->read(connection_, piece_bytes);
    if (bytes.empty())
      return;
    reading_ = true; // until the executor has taken it
    on_executor([self = shared_from_this(), bytes = std::move(bytes)] {
      self->deliver(bytes);
      self->on_line([self] {
        self->reading_ = false;
        if (self->hold_)
          return;
        self->read();
      });
    });
  }

  void flush() {
    std::size_t taken = 0;
    while (!gone_ && !outgoing_.empty() && world_->write(connection_, outgoing_.front())) {
      taken += outgoing_.front().size();
      outgoing_.pop_front();
    }
    if (taken == 0)
      return;
    on_executor([self = shared_from_this(), taken] {
      self->queued_ -= taken;
      if (self->queued_ == 0 && !self->closed_ && self->callbacks_.on_drained)
        self->callbacks_.on_drained();
    });
  }

  // ---- on the executor ----

  void deliver(const std::vector<std::byte>& bytes) {
    if (closed_ || bytes.empty())
      return;
    if (!started_ || paused_)
      held_.insert(held_.end(), bytes.begin(), bytes.end());
    else if (callbacks_.on_bytes)
      callbacks_.on_bytes(bytes);
    set_hold(!started_ || paused_);
  }

  void set_hold(bool hold) {
    on_line([self = shared_from_this(), hold] { self->hold_ = hold; });
  }

  void resume() {
    on_executor([self = shared_from_this()] {
      if (self->closed_ || self->paused_ || !self->started_)
        return;
      if (!self->held_.empty() && self->callbacks_.on_bytes) {
        const auto bytes = std::exchange(self->held_, {});
        self->callbacks_.on_bytes(bytes);
      }
      if (self->end_due_)
        return self->ended();
      self->on_line([self] {
        self->hold_ = false;
        self->read();
      });
    });
  }

  void ended() {
    if (closed_)
      return;
    if (!started_ || paused_) {
      end_due_ = true;
      return;
    }
    closed_ = true;
    if (callbacks_.on_closed)
      callbacks_.on_closed({});
    on_executor([self = shared_from_this()] { self->callbacks_ = {}; });
  }

  std::shared_ptr<world> world_;
  caf::actor line_;
  std::shared_ptr<actor_executor> executor_;
  world::connection_id connection_ = 0;

  // Of the connection's actor.
  std::deque<std::vector<std::byte>> outgoing_;
  bool gone_ = false, reading_ = false, hold_ = false;

  // Of the executor.
  byte_pipe::callbacks callbacks_;
  std::size_t queued_ = 0;
  std::vector<std::byte> held_;
  bool started_ = false, paused_ = false, closed_ = false, end_due_ = false;
};

class world_pipe final : public byte_pipe {
public:
  explicit world_pipe(std::shared_ptr<wire> w) : wire_{std::move(w)} {}
  ~world_pipe() override { wire_->close(); }
  void start(callbacks c) override { wire_->start(std::move(c)); }
  void write(std::span<const std::byte> bytes) override { wire_->write(bytes); }
  std::size_t queued() const override { return wire_->queued(); }
  void pause_reading(bool paused) override { wire_->pause_reading(paused); }
  void close() override { wire_->close(); }

private:
  std::shared_ptr<wire> wire_;
};

} // namespace

actor_executor::actor_executor(caf::actor_system& system) : runner_{system.spawn<caf::hidden>(runner)} {}

void actor_executor::post(std::function<void()> work) {
  if (door_->closed)
    return;
  caf::anon_send(runner_, job{[door = door_, work = std::move(work)] {
                   std::lock_guard running{door->running};
                   if (!door->closed)
                     work();
                 }});
}

void actor_executor::close() {
  std::lock_guard running{door_->running};
  door_->closed = true;
}

world_opener::world_opener(caf::actor_system& system, std::shared_ptr<world> where, world::user_id user)
    : system_{system}, world_{std::move(where)}, user_{user}, executor_{std::make_shared<actor_executor>(system)} {}

world_opener::~world_opener() {
  executor_->close();
}

void world_opener::open(const std::string& endpoint,
                        std::function<void(std::unique_ptr<byte_pipe>, std::string error)> done) {
  auto w = std::make_shared<wire>(system_, world_, executor_);
  std::string problem;
  const bool ok = w->connect(user_, endpoint, problem);
  // Copyable for std::function; the pipe is made where it is used, so that one nobody takes still closes.
  executor_->post([w = std::move(w), ok, problem, done = std::move(done)] {
    if (ok)
      done(std::make_unique<world_pipe>(w), {});
    else
      done(nullptr, problem);
  });
}

} // namespace caisson::backends::simulated
