#pragma once

/// What never leaves a process: handles and byte pipes that actors pass to each other beside the protobuf messages.
/// No CAF in here, so that the reactor and the guest protocol's users stay light.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <system_error>

namespace caisson {

/// Runs functions one after another, never two at once, never inside post(). The reactor's thread in production, an
/// actor under the test scheduler in a simulation. Thread safe.
class executor {
public:
  virtual ~executor() = default;
  virtual void post(std::function<void()> work) = 0;
};

/// A connected, ordered stream of bytes. All members are called on its executor; so are the callbacks.
class byte_pipe {
public:
  struct callbacks {
    std::function<void(std::span<const std::byte>)> on_bytes;
    std::function<void(std::error_code)> on_closed;  ///< once; no callback after it
    std::function<void()> on_drained;                ///< everything written so far has been taken
  };
  virtual ~byte_pipe() = default;
  virtual void start(callbacks) = 0;                        ///< once, before any byte is delivered
  virtual void write(std::span<const std::byte> bytes) = 0; ///< queued whole; the writer bounds itself by queued()
  virtual std::size_t queued() const = 0;                   ///< bytes written and not yet taken
  virtual void pause_reading(bool paused) = 0;              ///< back pressure towards the peer
  virtual void close() = 0;                                 ///< on_closed does not follow
};

/// Opens pipes by the names that backends report (VmChannels): "unix:PATH", "hybrid-vsock:PATH:PORT", "simulated:ID".
/// `done` runs on the executor, exactly once: a pipe, or null and the reason.
class pipe_opener {
public:
  virtual ~pipe_opener() = default;
  virtual void open(const std::string& endpoint, std::function<void(std::unique_ptr<byte_pipe>, std::string error)> done) = 0;
  virtual executor& runs_on() = 0;
};

} // namespace caisson
