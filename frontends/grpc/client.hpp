#pragma once

/// The other end of the local door: what command lines use. Thin and blocking; no gRPC header in here. Every call is
/// bounded: plain ones by a deadline, streams by pings that a stopped engine does not answer.

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>

#include "messages/doors.pb.h"
#include "messages/error.pb.h"

namespace caisson::door {

template <class T> using answer = std::variant<T, v1::Error>;

/// One process being run. read() is for one thread, write() for one other; cancel() for any.
class exec_stream {
public:
  virtual ~exec_stream() = default;
  virtual bool write(const v1::ExecInput& in) = 0; ///< false: the stream has ended
  virtual bool read(v1::ExecOutput& out) = 0;      ///< false: it has ended, finish() says how
  virtual std::optional<v1::Error> finish() = 0;   ///< after read() was false; once
  virtual void cancel() = 0;
};

class client {
public:
  /// Connects to an engine's socket and asks it who it is. nullopt: nobody listens there. Error: it does not answer, or
  /// the socket is not one that we may trust.
  static std::optional<answer<std::unique_ptr<client>>> connect(const std::string& socket);

  virtual ~client() = default;
  virtual const v1::EngineStatus& engine() const = 0; ///< as it was at connect()

  virtual answer<v1::SandboxStatus> create(const v1::CreateSandbox&) = 0;
  virtual answer<v1::SandboxStatus> get(const v1::GetSandbox&) = 0;
  virtual answer<v1::SandboxList> list(const v1::ListSandboxes&) = 0;
  virtual answer<v1::SandboxStatus> stop(const v1::StopSandbox&) = 0;
  virtual answer<v1::SandboxStatus> remove(const v1::RemoveSandbox&) = 0;
  virtual answer<v1::SandboxStatus> pause(const v1::PauseSandbox&) = 0;
  virtual answer<v1::SandboxStatus> resume(const v1::ResumeSandbox&) = 0;
  virtual answer<v1::Operation> resize(const v1::ResizeSandbox&) = 0;
  virtual answer<v1::Operation> get_operation(const v1::GetOperation&) = 0;
  virtual answer<v1::Operation> wait_operation(const v1::WaitOperation&) = 0;
  virtual answer<v1::Operation> cancel_operation(const v1::CancelOperation&) = 0;
  virtual answer<v1::ConsoleText> console(const v1::ConsoleRequest&) = 0;
  virtual answer<v1::EngineStatus> status(const v1::GetEngine&) = 0;
  virtual answer<v1::Capabilities> describe(const v1::DescribeHost&) = 0;
  virtual answer<v1::Empty> shut_down() = 0;

  virtual std::unique_ptr<exec_stream> exec() = 0;

  /// Runs until the engine ends the stream or `on_event` answers false.
  virtual std::optional<v1::Error> watch(const v1::WatchEvents&,
                                         const std::function<bool(const v1::Event&)>& on_event) = 0;
};

} // namespace caisson::door
