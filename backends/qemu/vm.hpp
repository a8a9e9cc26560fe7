#pragma once

/// What the driver keeps of one VM and of one call. All of a VM can be made again from libvirt and its record.

#include <chrono>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "backends/host/server.hpp"
#include "backends/qemu/processes.hpp"

namespace caisson::qemu {

/// A call that is to be answered once: by its verb, by its deadline, or by a destroy.
class pending_call {
public:
  using clock = std::chrono::steady_clock;

  pending_call(std::string verb_name, std::string sandbox, std::uint32_t time_ms, host::answer_function answer)
      : verb(std::move(verb_name)), sandbox_id(std::move(sandbox)), deadline_ms(time_ms),
        deadline(clock::now() + std::chrono::milliseconds{time_ms}), answer_(std::move(answer)) {}

  /// False where it has been answered before.
  bool finish(v1::BackendAnswer answer) {
    host::answer_function send;
    {
      std::lock_guard lock{mutex_};
      send.swap(answer_);
    }
    if (send)
      send(std::move(answer));
    return static_cast<bool>(send);
  }

  bool open() const {
    std::lock_guard lock{mutex_};
    return static_cast<bool>(answer_);
  }

  std::chrono::milliseconds left() const {
    auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - clock::now());
    return ms.count() < 0 ? std::chrono::milliseconds{0} : ms;
  }

  const std::string verb;
  const std::string sandbox_id;
  const std::uint32_t deadline_ms;
  const clock::time_point deadline;

private:
  mutable std::mutex mutex_;
  host::answer_function answer_;
};

using call_ptr = std::shared_ptr<pending_call>;

struct vm {
  explicit vm(std::string sandbox_id) : id(std::move(sandbox_id)) {}

  const std::string id;

  std::atomic<std::uint64_t> library_us{0};  ///< spent in libvirt for this VM's verbs

  std::mutex mutex;  ///< of everything below; never held over a call of libvirt
  std::condition_variable changed;
  std::vector<std::weak_ptr<pending_call>> pending;  ///< verbs that a destroy answers
  int running = 0;            ///< verbs that are inside libvirt
  int destroying = 0;
  bool monitor_busy = false;  ///< a question to the monitor is still open
  bool recorded = false;      ///< has a record: was created here and not destroyed
  std::uint64_t virtio_mem_turn = 0;  ///< counts requests: an older one is no longer followed
  std::uint64_t told_size_bytes = 0;  ///< of virtio-mem, last told to the listener
  std::set<std::string> leaving;  ///< devices that the guest was asked for and has not let go
  std::string stop_reason;    ///< "" as long as the VMM runs, as far as is known
  std::string libvirt_uri;
  std::string run_directory;
  process vmm;
  /// Its memory without what was plugged, which stays as long as the process: read once. 0: not yet.
  std::uint64_t boot_bytes = 0;
  std::int64_t boot_bytes_of_pid = 0;
};

using vm_ptr = std::shared_ptr<vm>;

} // namespace caisson::qemu
