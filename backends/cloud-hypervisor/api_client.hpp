#pragma once

/// Cloud Hypervisor's REST API over its Unix socket, for one VM.
///
/// One connection, one request at a time: calls queue in the client. The VMM itself works one request at a time, too, so
/// that a ping waits behind a slow boot: a call that is late does not mean that the VMM is dead, only its pid says so.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backends/cloud-hypervisor/http_reply.hpp"
#include "backends/cloud-hypervisor/requests.hpp"

namespace caisson::reactor {
class reactor;
}

namespace caisson::cloud_hypervisor {

enum class outcome_kind {
  answered,  ///< `reply` has it, errors of the VMM included
  malformed, ///< our own schema forbids the request: a fault of ours, nothing was sent
  refused,   ///< nothing was executed: no socket, nobody listens, no free connection (the server has ten), not taken whole
  lost,      ///< sent, and the connection ended before a whole reply, or the reply was none: it may have been executed.
             ///< For vmm.shutdown that is a success once the process has ended. Read vm.info before a PUT is repeated
  late       ///< the deadline has passed; with `sent` it may yet be executed. The connection was given up
};

std::string_view name_of(outcome_kind kind); ///< "answered", ...

struct outcome {
  outcome_kind kind = outcome_kind::refused;
  http_reply reply;
  bool sent = false;               ///< the VMM may have seen the request
  std::string why;                 ///< one sentence; empty when answered with success
  std::chrono::microseconds spent{0}; ///< from the sending to the outcome, the wait in our queue not counted

  bool ok() const { return kind == outcome_kind::answered && reply.ok(); }
  bool answered(int status) const { return kind == outcome_kind::answered && reply.status == status; }
  /// Answered with an error whose chain contains `text`.
  bool says(std::string_view text) const { return kind == outcome_kind::answered && reply.says(text); }
};

/// Thread safe. Callbacks run on the reactor's thread, each once, never inside call(). Calls are sent in their order; one
/// whose deadline passes while it waits for its turn ends before the others.
class api_client {
public:
  using done_function = std::function<void(outcome)>;

  /// Connects at the first call. `socket_path`: of --api-socket. The reactor outlives the client.
  api_client(reactor::reactor& on, std::string socket_path);
  /// Ends what is pending: refused (not sent yet) or lost, on the reactor's thread, so that a callback may still come
  /// after this. Where the reactor ends instead callbacks are dropped uncalled.
  ~api_client();
  api_client(const api_client&) = delete;
  api_client& operator=(const api_client&) = delete;

  /// `deadline` counts from now, the wait behind earlier calls included. `descriptors` go along (add-net): they are
  /// duplicated here, the caller keeps its own. A GET whose connection ends is sent once more on a new one; a PUT never.
  void call(request what, std::chrono::milliseconds deadline, done_function done, const std::vector<int>& descriptors = {});

  /// Time that calls have spent at the VMM so far, and how many were sent.
  std::chrono::microseconds spent() const;
  std::uint64_t sent() const;

private:
  class state;
  std::shared_ptr<state> state_;
  reactor::reactor* on_;
};

} // namespace caisson::cloud_hypervisor
