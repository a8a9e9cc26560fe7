#pragma once

#include "guest/agent/event_loop.hpp"
#include "guest/agent/unique_fd.hpp"

#include <chrono>
#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace caisson::agent {

/// The bytes between agent and host: a virtio-serial port, or a connected socket (vsock; AF_UNIX in tests). Everything
/// that differs from one channel to another ends here.
///
/// A socket is one connection of the host; its end is final. A port outlives the host's connections. The kernel tells of
/// a coming and going host by waking the port's waiters and by SIGIO. The two are not in order with the data: bytes can
/// arrive before the port counts as connected, and the news of an old connection's end after the first bytes of the next.
/// So a missing host is believed only when it has been missing for a while (`port_gone_after`).
class transport {
public:
  struct events {
    std::function<void(std::span<const std::byte>)> on_bytes;
    std::function<bool()> wants_bytes;                   ///< false: leave the rest in the channel for now
    std::function<std::vector<std::byte>()> next_output; ///< empty: nothing to write
    std::function<void()> on_gone;                       ///< the host has gone
  };

  enum class kind { port, socket };

  transport(event_loop& loop, unique_fd channel, kind what, events handlers);
  ~transport();

  /// Reads and writes what is possible now. Called before each sleep.
  void pump();

  /// The port's state has changed (its epoll event, or SIGIO).
  void wake() {
    readable_ = writable_ = true;
    pump();
  }

  /// Drops what was taken from next_output and not yet written: it belongs to a connection that is over.
  void drop_output() { output_.clear(), output_at_ = 0; }

private:
  bool host_is_there() const;
  bool is_closed() const { return !channel_; }
  void end();
  void read_all();
  void write_all();
  void check_host();
  void look_again();

  event_loop& loop_;
  unique_fd channel_;
  const kind kind_;
  events handlers_;
  bool readable_ = true; // edge-triggered: true until read says that there is nothing
  bool writable_ = true;
  bool told_gone_ = true;
  std::optional<event_loop::timer_id> gone_timer_, again_timer_;
  std::vector<std::byte> input_;
  std::vector<std::byte> output_;
  std::size_t output_at_ = 0;
};

/// How long a port's host has to be missing.
inline constexpr std::chrono::milliseconds port_gone_after{500};

/// A port that took nothing is tried again after this, told of room or not: a reply lost here costs its asker a deadline.
inline constexpr std::chrono::milliseconds port_look_again_after{100};

/// The device of the virtio-serial port with this name ("/dev/vport1p1"), or "" while there is none.
std::string find_port(std::string_view name);

/// Opens a port for a transport. Empty descriptor and errno when it cannot be opened.
unique_fd open_port(const std::string& device);

} // namespace caisson::agent
