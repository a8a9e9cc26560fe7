#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backends/simulated/model_machine.hpp"
#include "backends/simulated/model_workload.hpp"
#include "guest/protocol/guest_session.hpp"
#include "messages/agent.pb.h"

namespace caisson::backends::simulated {

/// A guest agent in a model machine: speaks the agent's protocol through the agent's own session, shows the machine's
/// memory and processors as its kernel's, and runs a handful of commands:
///
///     true | false | exit N | echo WORDS | cat (stdin) | cat /proc/meminfo | nproc | sleep SECONDS | sh -c "one of
///     these" | hold MIB [SECONDS] (memory of the workload; says "held MIB" when it has all, and keeps it)
///
/// No actors, no clock: the machine's guest time. Must not outlive the machine. Not thread safe.
class model_guest {
public:
  model_guest(model_machine& machine, std::string architecture);
  model_guest(const model_guest&) = delete;
  model_guest& operator=(const model_guest&) = delete;

  std::function<void()> on_output; ///< there may be something to take; called from inside the other members too

  /// False: the guest does not read now, nothing was taken. Try again when on_output has been served.
  bool receive(std::span<const std::byte> bytes);
  void host_left();
  [[nodiscard]] bool has_output() const noexcept { return session_.has_output(); }
  [[nodiscard]] std::vector<std::byte> take_output(std::size_t limit = 64 * 1024) {
    return session_.take_output(limit);
  }

  /// The machine's memory or processors have changed (model_machine::on_guest_change).
  void machine_changed();

private:
  struct waiting {
    std::uint64_t request_id;
    std::uint64_t at_least, at_most; // memory
    std::uint32_t cpus;              // != 0: waits for processors instead
    timeline::ticket end;
  };
  struct process {
    std::uint32_t in = 0, out = 0, err = 0;
    bool echoes = false; // cat: standard input goes to standard output
    bool eof = false;
    std::string pending;    // output that the session has not taken yet
    std::uint32_t owed = 0; // bytes of standard input in `pending`, not yet given back as credit
    int exit_code = 0;
    std::uint32_t held_mib = 0;
    bool ends = false; // when `pending` is out
  };

  void on_request(const v1::AgentRequest& request);
  void await_memory(const v1::AgentRequest& request);
  void set_online_cpus(const v1::AgentRequest& request);
  void memory_blocks(std::uint64_t request_id, std::uint64_t address, std::uint64_t size_bytes, std::string why);
  void offline_memory(const v1::AgentRequest& request);
  void set_limits(const v1::AgentRequest& request);
  void watch_pressure(const v1::AgentRequest& request);
  bool settle_workload(); ///< true: somebody waits for memory
  void tell_pressure();
  void exec(const v1::AgentRequest& request);
  void signal(const v1::AgentRequest& request);
  void run(std::uint64_t exec_id, process& p, std::vector<std::string> argv);
  void flush(std::uint64_t exec_id);
  void finish(std::uint64_t exec_id, int exit_code, int signal);
  void add_waiting(waiting w, std::uint32_t wait_ms);
  [[nodiscard]] bool satisfied(const waiting& w);
  void answer(const waiting& w);
  void fail(std::uint64_t request_id, int guest_errno, std::string text);
  void done(std::uint64_t request_id);
  void notify_facts();
  process* by_stream(std::uint32_t stream, std::uint64_t& exec_id);
  [[nodiscard]] v1::AgentFacts facts() const;
  [[nodiscard]] std::string meminfo() const;
  void forget_host();
  timeline::ticket later(timeline::time delay, timeline::work what);
  void output();

  model_machine& machine_;
  std::string architecture_;
  guest_protocol::guest_session session_;
  std::vector<waiting> waiting_;
  std::map<std::uint64_t, process> processes_;
  std::uint64_t last_exec_id_ = 0;
  bool notice_planned_ = false;
  model_workload workload_;
  std::uint64_t host_ = 0;              // answers to a host that has left are dropped
  timeline::time pressure_window_{0};   // 0: nobody wants to know
  bool pressure_planned_ = false;
  std::uint64_t stalled_us_ = 0;
  std::shared_ptr<char> alive_ = std::make_shared<char>(); // planned functions look whether the guest is still there
};

} // namespace caisson::backends::simulated
