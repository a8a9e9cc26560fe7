#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backends/simulated/fault_plan.hpp"
#include "backends/simulated/timeline.hpp"

namespace caisson::backends::simulated {

/// What a model machine is made of.
struct machine_shape {
  std::uint64_t boot_bytes = 0, max_bytes = 0;
  std::uint32_t boot_vcpus = 1, max_vcpus = 1;
  std::uint32_t dimm_slots = 0;
  bool virtio_mem = false;                ///< has the one virtio-mem device
  std::uint64_t block_bytes = 128u << 20; ///< memory blocks of the guest; DIMM sizes are multiples of it
  std::uint64_t granule_bytes = 2u << 20; ///< of virtio-mem
};

/// How its guest kernel behaves about hotplug; drawn once a machine from the world's plan.
struct guest_habits {
  span_ms notice_ms, online_ms, leave_ms, power_off_ms;
  std::uint64_t online_at_most_bytes = std::numeric_limits<std::uint64_t>::max();
  std::uint32_t online_at_most_cpus = std::numeric_limits<std::uint32_t>::max();
  std::uint64_t virtio_mem_floor_bytes = 0;
  double dimm_refused = 0, dimm_ignored = 0;
};

struct machine_dimm {
  std::string id;
  std::uint64_t size_bytes = 0, address = 0;
  std::uint64_t online_bytes = 0;
  bool seen = false;    ///< the guest kernel has noticed it
  bool leaving = false; ///< it was asked back
  bool kept_offline = false; ///< by the guest's agent, so that it can leave
};

/// One block of a DIMM that the guest's kernel has noticed.
struct machine_block {
  std::uint64_t address = 0, size_bytes = 0;
  bool online = false;
};

/// A disk, a network interface or a share.
struct machine_device {
  std::string id, kind;  ///< "disk", "net", "share"
  std::string source;    ///< what stands behind it: tells the same device from another one
  bool leaving = false;  ///< it was asked back
};

/// What the machine tells unasked.
struct machine_news {
  enum class kind { device_removed, device_refused, memory_size, guest_stopped, guest_panicked } what;
  std::string device_id;
  std::uint64_t size_bytes = 0;
};

/// Memory and processors of one virtual machine, from the VMM's side and from its guest kernel's. Knows no hypervisor's
/// interface and no actors; time comes from a timeline. Calls of the VMM's side answer "" or why not. Not thread safe.
class model_machine : public std::enable_shared_from_this<model_machine> {
public:
  model_machine(machine_shape shape, guest_habits habits, timeline& time, std::uint64_t seed);

  std::function<void(const machine_news&)> on_news;
  std::function<void()> on_guest_change; ///< something that the guest's own files show is another one now

  // The VMM's side.
  std::string plug_dimm(const std::string& id, std::uint64_t size_bytes);
  std::string unplug_dimm(const std::string& id);
  std::string request_virtio_mem(std::uint64_t bytes);
  std::string set_vcpus(std::uint32_t count);
  /// The caller has looked whether the id is free.
  void attach_device(machine_device device);
  void detach_device(const std::string& id);
  void pause();
  void resume();
  /// The guest's kernel runs from now on: it notices what is plugged.
  void guest_is_up();
  void stop(); ///< nothing happens in it any more

  [[nodiscard]] const machine_shape& shape() const noexcept { return shape_; }
  [[nodiscard]] const std::vector<machine_dimm>& dimms() const noexcept { return dimms_; }
  [[nodiscard]] const std::vector<machine_device>& devices() const noexcept { return devices_; }
  [[nodiscard]] const machine_device* device(const std::string& id) const noexcept;
  [[nodiscard]] std::uint64_t plugged_bytes() const noexcept;
  [[nodiscard]] std::uint64_t virtio_mem_requested_bytes() const noexcept { return virtio_requested_; }
  [[nodiscard]] std::uint64_t virtio_mem_bytes() const noexcept { return virtio_size_; }
  [[nodiscard]] std::uint32_t plugged_vcpus() const noexcept { return vcpus_plugged_; }
  [[nodiscard]] bool paused() const noexcept { return paused_; }
  [[nodiscard]] bool stopped() const noexcept { return stopped_; }

  // The guest's side.
  [[nodiscard]] std::uint64_t boot_mem_total_bytes() const noexcept;
  [[nodiscard]] std::uint64_t mem_total_bytes() const noexcept;
  [[nodiscard]] std::uint64_t mem_available_bytes() const noexcept;
  [[nodiscard]] std::uint32_t online_blocks() const noexcept;
  [[nodiscard]] std::uint32_t offline_blocks() const noexcept;
  [[nodiscard]] std::uint32_t online_cpus() const noexcept { return vcpus_online_; }
  [[nodiscard]] std::uint32_t present_cpus() const noexcept { return vcpus_present_; }
  /// Online or offline until `count` run, as far as processors are present. Says how many run.
  std::uint32_t set_online_cpus(std::uint32_t count);
  [[nodiscard]] std::vector<machine_block> blocks(std::uint64_t address, std::uint64_t size_bytes) const;
  /// All DIMMs in this part, or none; `on_end` gets "" or why not.
  void take_offline(std::uint64_t address, std::uint64_t size_bytes,
                    std::function<void(const std::string& why)> on_end);
  /// What was taken offline and is still there.
  void bring_all_online();
  /// What the guest's workload holds for good.
  void set_workload_bytes(std::uint64_t bytes) noexcept { workload_bytes_ = bytes; }
  void power_off();
  void panic();
  /// Runs `what` after a delay of the guest's own time: it stands still while the machine is paused, and ends with it.
  timeline::ticket after(timeline::time delay, timeline::work what);
  void cancel(const timeline::ticket& t) { time_.cancel(t); }

private:
  void see_dimm(const std::string& id);
  void online_dimm(const std::string& id);
  void follow_virtio_mem();
  void move_virtio_mem();
  void see_cpus();
  [[nodiscard]] machine_dimm* find(const std::string& id);
  [[nodiscard]] std::uint64_t online_plugged_bytes() const noexcept;
  [[nodiscard]] std::uint64_t room_to_online(std::uint64_t wanted) const noexcept;
  void tell(machine_news::kind what, std::string id = {}, std::uint64_t bytes = 0);
  void changed();

  machine_shape shape_;
  guest_habits habits_;
  timeline& time_;
  dice dice_;
  std::vector<machine_dimm> dimms_;
  std::vector<machine_device> devices_;
  std::uint64_t virtio_requested_ = 0, virtio_size_ = 0, workload_bytes_ = 0;
  std::uint32_t vcpus_plugged_, vcpus_present_, vcpus_online_;
  bool paused_ = false, stopped_ = false, up_ = false, virtio_moving_ = false;
  std::vector<timeline::work> frozen_;
};

} // namespace caisson::backends::simulated
