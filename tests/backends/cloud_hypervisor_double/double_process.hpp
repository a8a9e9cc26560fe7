#pragma once

/// A running caisson-ch-double, as its clients see it: a process, its API socket, its event stream. Everything waits on
/// descriptors, with a limit that only a broken test meets.

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

namespace caisson::cloud_hypervisor::tests {

using json = nlohmann::ordered_json;
inline constexpr std::chrono::seconds patience{60};

/// A directory of its own, removed at the end.
class scratch {
public:
  scratch();
  ~scratch();
  scratch(const scratch&) = delete;
  [[nodiscard]] std::string path(std::string_view name = {}) const { return top_ + "/" + std::string{name}; }
  /// A file of this content; a size beyond it is filled up sparsely.
  std::string file(const std::string& name, std::string_view content, std::uint64_t size = 0) const;
  /// What passes for a kernel.
  std::string kernel() const { return file("vmlinux", "\x7f" "ELF"); }

private:
  std::string top_;
};

/// One connection, a byte stream with limits on waiting.
class stream {
public:
  explicit stream(const std::string& socket_path);
  explicit stream(int fd) : fd_{fd} {}
  stream(stream&& other) noexcept : fd_{std::exchange(other.fd_, -1)}, kept_{std::move(other.kept_)} {}
  ~stream();

  [[nodiscard]] bool connected() const noexcept { return fd_ >= 0; }
  [[nodiscard]] int fd() const noexcept { return fd_; }
  [[nodiscard]] int connect_error() const noexcept { return error_; }
  /// False: the other end is gone.
  bool send(std::string_view bytes);
  void send_with_descriptors(std::string_view bytes, const std::vector<int>& descriptors);
  void half_close();
  /// Reads until `enough` says so. "EOF", "reset" or "silence" where it does not come to that; "" otherwise.
  std::string receive(std::string& into, const std::function<bool(const std::string&)>& enough,
                      std::chrono::milliseconds limit = patience);
  /// Gives back what was received beyond what was wanted: the next receive() begins with it.
  void keep(std::string surplus) { kept_ = std::move(surplus); }
  /// Reads to the end; what ended it in `how`.
  std::string rest(std::string* how = nullptr);

private:
  int fd_ = -1, error_ = 0;
  std::string kept_;
};

struct answer {
  std::string code, body, head; ///< code "---": there was none
  std::string end;              ///< "EOF", "reset", "refused" in that case
  [[nodiscard]] json parsed() const { return json::parse(body); }
};

/// Reads one HTTP reply.
answer read_reply(stream& from);
std::string request_text(const std::string& method, const std::string& endpoint,
                         const std::optional<std::string>& body = {});

class double_process {
public:
  /// Listens on `directory`/api.sock; further arguments behind. Returns once it listens.
  double_process(std::string directory, std::vector<std::string> arguments);
  ~double_process();
  double_process(double_process&& other) noexcept;

  [[nodiscard]] const std::string& socket() const noexcept { return socket_; }
  [[nodiscard]] int pid() const noexcept { return pid_; }

  /// A request on a connection of its own.
  answer ask(const std::string& method, const std::string& endpoint, const std::optional<std::string>& body = {});
  answer put(const std::string& endpoint, const json& body) { return ask("PUT", endpoint, body.dump()); }
  answer put(const std::string& endpoint) { return ask("PUT", endpoint); }
  json info() { return ask("GET", "vm.info").parsed(); }

  /// Waits for an event of this name ("vm/booted") behind those that were waited for before; its properties.
  std::optional<json> await_event(const std::string& name, const std::function<bool(const json&)>& also = {});
  /// Everything in the event stream so far, with what is still to be read until the process ends.
  std::string events_to_the_end();
  [[nodiscard]] const std::string& event_text() const noexcept { return events_; }

  void signal(int number);
  /// Waits for the end: the exit code, or minus the signal.
  int wait();
  [[nodiscard]] bool has_ended();
  std::string errors() const;

private:
  bool read_events(std::chrono::milliseconds limit);

  std::string directory_, socket_, events_;
  std::size_t seen_ = 0; ///< of events_
  int pid_ = -1, pidfd_ = -1, event_pipe_ = -1;
  std::optional<int> status_;
};

/// Runs it to its end: exit code and both outputs.
struct finished {
  int code = 0;
  std::string out, err;
};
finished run_double(std::vector<std::string> arguments, std::vector<std::string> environment = {});

/// A configuration of one vCPU and 256 MiB that boots; members of `more` come on top.
json small_vm(const scratch& at, const json& more = json::object());

} // namespace caisson::cloud_hypervisor::tests
