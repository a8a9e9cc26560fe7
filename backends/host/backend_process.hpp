#pragma once

/// The engine's end of backends/host/wire.hpp: one backend process, started when it is first needed, watched, killed
/// where it gives no sign of life, and started again. No CAF: whoever asks gets a callback on the reactor's thread.
///
///                 call                  BackendReady
///        idle ----------> starting ------------------> ready
///         ^                  |  ^                        |  socket closed, process gone, wire broken, no sign of life
///         |                  v  |                        v
///         +---- pausing <-- ending <--------------------+      ending: until the old process is really gone (SIGKILL)
///                  |                                           pausing: back-off, 100 ms doubling to 10 s
///                  +--> starting: calls wait, or VMs' owners have to be told
///
/// Every call is answered once: by the process; at its deadline, or when the process is lost after it was sent, with
/// `outcome_unknown`; when no process could be started with `host_missing` or `backend_lost`. A call that was not sent
/// by its deadline is never sent.

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "messages/backend.pb.h"

#include "backends/host/line_reader.hpp"
#include "backends/host/wire.hpp"
#include "reactor/reactor.hpp"

namespace caisson::host {

struct process_settings {
  std::string name;                   ///< the registry line: "qemu"
  std::string program;                ///< path of caisson-backend-NAME
  std::vector<std::string> arguments; ///< the four directories
  std::string pid_file;               ///< "" is none; how a new engine finds the process of one that was killed
  std::function<void(std::string_view)> log;

  std::chrono::milliseconds ready_within{20'000};
  std::chrono::milliseconds grace{1'000}; ///< after a call's deadline, before the sign of life is asked for
  std::chrono::milliseconds sign_of_life_within{10'000};
  std::chrono::milliseconds exit_within{500}; ///< between the socket's end and the process's
  std::chrono::milliseconds shortest_pause{100};
  std::chrono::milliseconds longest_pause{10'000};
  std::chrono::milliseconds calm_after{60'000}; ///< a process that has lived so long begins at the shortest pause again
};

class backend_process : public std::enable_shared_from_this<backend_process> {
public:
  using answer_function = std::function<void(v1::BackendAnswer)>;
  using event_function = std::function<void(const v1::VmEvent&)>;

  backend_process(reactor::reactor& on, process_settings settings);

  // Thread safe: each is done on the reactor's thread, in the order of the calls.
  void call(v1::BackendCall call, answer_function answer);
  /// Events of that sandbox, and KIND_BACKEND_RESTARTED, go to `heard` until unlisten(ticket).
  void listen(std::uint64_t ticket, std::string sandbox_id, event_function heard);
  void unlisten(std::uint64_t ticket);
  /// Closes the socket, on which the process ends; kills it if it has not within `at_most`. Blocks; not on the
  /// reactor's thread. Afterwards every call is answered at once with backend_lost.
  void shut_down(std::chrono::milliseconds at_most);

private:
  enum class state { idle, starting, ready, ending, pausing, shut };
  struct waiting_call {
    v1::BackendCall call;
    answer_function answer; ///< empty: answered at its deadline, but not by the process so far
    bool sent = false;
    reactor::timer overdue;
  };
  struct listener {
    std::string sandbox_id;
    event_function heard;
  };

  // Life of the process (backend_process.cpp).
  void post(std::function<void()> work);
  void start();
  void spawn();
  void open_pipes(int protocol, int output);
  void take_ready(const v1::BackendReady& ready);
  void give_up(std::string code, std::string why, bool kill_now);
  void exited(std::uint64_t generation, const reactor::exit_status& status);
  void socket_closed();
  void end_if_over();
  void pause();
  void close_all();
  std::string who() const;
  void log(const std::string& line) const;
  void write_pid_file() const;

  // Calls and what the process says (backend_calls.cpp).
  void take_call(v1::BackendCall call, answer_function answer);
  void send(waiting_call& what);
  void send_waiting();
  void at_deadline(std::uint64_t id);
  void finish(std::uint64_t id, v1::BackendAnswer with);
  void ask_for_sign_of_life();
  void heard(std::span<const std::byte> bytes);
  void take(const v1::BackendSays& says);
  void take_answer(const v1::BackendAnswer& answer);
  void tell(const v1::VmEvent& event);
  void tell_restarted();
  void answer_lost(const std::string& code, const std::string& why, bool also_unsent);

  std::mutex end_mutex_; // orders post() and shut_down(): the reactor may be gone afterwards
  bool ended_ = false;
  reactor::reactor& reactor_;
  process_settings settings_;
  state state_ = state::idle;

  std::shared_ptr<reactor::child> child_;
  std::unique_ptr<byte_pipe> pipe_;
  std::unique_ptr<byte_pipe> output_;
  frame_reader frames_;
  std::unique_ptr<line_reader> lines_;
  std::uint64_t generation_ = 0; // of the process: a late callback of an old one is told by it
  bool exited_ = true;
  bool socket_closed_ = true;
  std::string lost_code_;
  std::string lost_why_;
  bool was_ready_ = false;       // this process
  bool restart_to_tell_ = false; // a ready process was lost, the owners have not heard of the next one yet
  std::chrono::steady_clock::time_point ready_since_{};
  std::chrono::milliseconds next_pause_;

  std::uint64_t last_id_ = 0;
  std::uint64_t sign_of_life_id_ = 0; // 0: none is asked for
  std::map<std::uint64_t, waiting_call> calls_;
  std::map<std::uint64_t, listener> listeners_;
  std::multimap<std::string, std::uint64_t> by_sandbox_;

  reactor::timer phase_timer_; // ready deadline, exit, back-off: of the state
  reactor::timer life_timer_;
};

} // namespace caisson::host
