#pragma once

// What the reactor's files share. Not for others: this is where Boost.Asio is seen.

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>

#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "reactor/reactor.hpp"

namespace caisson::reactor {

namespace asio = boost::asio;

// Whatever holds an operation open in the io_context, so that the core can end it. Alive as long as it is enlisted.
class open_thing : public std::enable_shared_from_this<open_thing> {
public:
  virtual ~open_thing() = default;
  virtual void end() = 0;
};

class core : public std::enable_shared_from_this<core> {
public:
  explicit core(std::function<void(std::string_view)> log);
  void run();       // the thread
  void shut_down(); // on the thread

  bool on_thread() const { return std::this_thread::get_id() == thread_id; }
  bool post(std::function<void()> work); // false: dropped, the end has come
  void enlist(const std::shared_ptr<open_thing>& thing) { things_.insert(thing); }
  void dismiss(const std::shared_ptr<open_thing>& thing) { things_.erase(thing); }

  /// What waits for a port of a guest, by endpoint: the newest of each. On the thread.
  std::map<std::string, std::weak_ptr<open_thing>> openings;

  asio::io_context io{1};
  std::array<std::byte, read_turn_bytes> read_buffer; // one for all pipes: reads are turns of one thread
  std::atomic<bool> ending{false};
  std::thread::id thread_id;

private:
  asio::executor_work_guard<asio::io_context::executor_type> guard_{io.get_executor()};
  std::mutex mutex_; // orders post() and the end
  std::set<std::shared_ptr<open_thing>> things_;
  std::function<void(std::string_view)> log_;
};

class timer_state final : public open_thing {
public:
  timer_state(std::shared_ptr<core> on, std::function<void()> work);
  void arm(std::chrono::steady_clock::time_point at);
  void cancel();
  void end() override;

private:
  void fired();
  std::shared_ptr<core> core_;
  asio::steady_timer timer_;
  std::function<void()> work_;
  std::atomic<bool> cancelled_{false};
};

std::unique_ptr<byte_pipe> make_pipe(const std::shared_ptr<core>& on, int fd);
void open_endpoint(const std::shared_ptr<core>& on, const std::string& endpoint,
                   std::function<void(std::unique_ptr<byte_pipe>, std::string)> done);

} // namespace caisson::reactor
