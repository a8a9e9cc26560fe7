#include "reactor/reactor.hpp"

#include <signal.h>
#include <unistd.h>

#include <boost/asio/post.hpp>

#include <future>
#include <utility>

#include "reactor/core.hpp"

namespace caisson::reactor {

core::core(std::function<void(std::string_view)> log) : log_(std::move(log)) {}

void core::run() {
  for (;;) {
    try {
      io.run();
      return;
    } catch (const std::exception& e) {
      if (log_)
        log_(std::string{"reactor: a callback has thrown: "} + e.what());
    } catch (...) {
      if (log_)
        log_("reactor: a callback has thrown something that is no std::exception");
    }
  }
}

bool core::post(std::function<void()> work) {
  // What was let in before `ending` still runs: run() returns when its queue is empty.
  std::lock_guard lock{mutex_};
  if (ending)
    return false;
  asio::post(io, std::move(work));
  return true;
}

void core::shut_down() {
  {
    std::lock_guard lock{mutex_};
    ending = true;
  }
  for (auto left = std::exchange(things_, {}); const auto& thing : left)
    thing->end();
  guard_.reset();
}

timer_state::timer_state(std::shared_ptr<core> on, std::function<void()> work)
    : core_(std::move(on)), timer_(core_->io), work_(std::move(work)) {}

void timer_state::arm(std::chrono::steady_clock::time_point at) {
  if (cancelled_ || core_->ending)
    return;
  core_->enlist(shared_from_this());
  timer_.expires_at(at);
  timer_.async_wait([self = std::static_pointer_cast<timer_state>(shared_from_this())](auto) { self->fired(); });
}

void timer_state::fired() {
  core_->dismiss(shared_from_this());
  auto work = std::exchange(work_, {});
  if (!cancelled_.exchange(true) && work)
    work();
}

void timer_state::end() {
  cancelled_ = true;
  timer_.cancel();
}

void timer_state::cancel() {
  if (cancelled_.exchange(true))
    return;
  if (core_->on_thread())
    timer_.cancel();
  else
    core_->post([self = std::static_pointer_cast<timer_state>(shared_from_this())] { self->timer_.cancel(); });
}

timer& timer::operator=(timer&& other) noexcept {
  if (this != &other) {
    cancel();
    state_ = std::move(other.state_);
  }
  return *this;
}

void timer::cancel() {
  if (state_)
    std::exchange(state_, {})->cancel();
}

namespace {

// Signals belong to the program that embeds the engine: none is handled on our thread.
std::thread start_without_signals(const std::shared_ptr<core>& on) {
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  std::promise<void> started;
  auto running = started.get_future();
  std::thread out{[on, &started] {
    ::pthread_setname_np(::pthread_self(), "caisson-reactor");
    on->thread_id = std::this_thread::get_id();
    started.set_value();
    on->run();
  }};
  running.wait();
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return out;
}

} // namespace

reactor::reactor(std::function<void(std::string_view)> log)
    : core_(std::make_shared<core>(std::move(log))), thread_(start_without_signals(core_)) {}

reactor::~reactor() {
  if (on_thread()) {
    core_->shut_down();
    thread_.detach();
    return;
  }
  core_->post([on = core_.get()] { on->shut_down(); });
  thread_.join();
}

void reactor::post(std::function<void()> work) {
  core_->post(std::move(work));
}

bool reactor::on_thread() const {
  return core_->on_thread();
}

void reactor::open(const std::string& endpoint, std::function<void(std::unique_ptr<byte_pipe>, std::string)> done) {
  core_->post([on = core_, endpoint, done = std::move(done)] { open_endpoint(on, endpoint, done); });
}

std::unique_ptr<byte_pipe> reactor::adopt(int fd) {
  return make_pipe(core_, fd);
}

timer reactor::after(std::chrono::milliseconds delay, std::function<void()> work) {
  auto state = std::make_shared<timer_state>(core_, std::move(work));
  auto at = std::chrono::steady_clock::now() + delay;
  if (on_thread())
    state->arm(at);
  else
    core_->post([state, at] { state->arm(at); });
  return timer{std::move(state)};
}

} // namespace caisson::reactor
