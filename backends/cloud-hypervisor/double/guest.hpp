#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backends/cloud-hypervisor/double/host.hpp"
#include "backends/cloud-hypervisor/double/knobs.hpp"
#include "backends/simulated/model_guest.hpp"
#include "backends/simulated/model_machine.hpp"

namespace caisson::cloud_hypervisor::api_double {

/// What a guest is booted with.
struct guest_hardware {
  std::uint64_t boot_bytes = 0, hotplug_bytes = 0;
  bool acpi = true;            ///< plugged memory comes as DIMMs; otherwise by virtio-mem
  bool sees_dimms = true;      ///< its firmware describes memory hotplug
  std::uint32_t boot_vcpus = 1, max_vcpus = 1;
  std::string command_line;
};

/// The guest behind the API: the model machine and the model agent that the simulated backend has too, made to behave
/// like a Cloud Hypervisor guest: it takes the boot time of the knobs, reacts to what is hot-plugged, gives vCPUs and
/// devices back, moves its balloon, and answers the agent's protocol over vsock. Each boot makes a new one.
class guest {
public:
  struct telling {
    std::function<void()> up;           ///< the kernel and its drivers run
    std::function<void()> powered_off;  ///< by itself or by the power button
    std::function<void()> reset;        ///< it wants a reboot
    std::function<void()> panicked;
    std::function<void(const std::string& line)> console; ///< a kernel message, with its newline
    std::function<void()> moved;        ///< an open channel may go on
  };

  guest(const guest_hardware& hardware, const knobs& k, backends::simulated::timeline& time, telling tell);
  ~guest();

  void power_on();
  void pause();
  void resume();

  void dimm_added(std::uint64_t bytes);
  void virtio_mem_requested(std::uint64_t bytes);
  void vcpus_added(std::uint32_t present);
  /// `done` once the guest has given them back; never where the knobs say so.
  void eject_vcpus(std::uint32_t target, std::function<void()> done);
  void eject_device(std::function<void()> done);
  /// Runs `what` once the guest has noticed a new device.
  void notice(std::function<void()> what) { react(std::move(what)); }
  void set_balloon(std::uint64_t bytes);
  void power_button();

  [[nodiscard]] bool is_up() const noexcept { return up_; }
  [[nodiscard]] std::uint64_t virtio_mem_bytes() const noexcept { return machine_->virtio_mem_bytes(); }
  [[nodiscard]] std::uint64_t balloon_bytes() const noexcept { return balloon_; }
  [[nodiscard]] const backends::simulated::model_machine& machine() const noexcept { return *machine_; }

  /// A vsock connection to `port`; nothing where the guest does not listen. A second one to the agent ends the first.
  std::unique_ptr<guest_channel> connect(std::uint32_t port);

private:
  class agent_channel;

  void come_up();
  void react(std::function<void()> what);
  void after(std::uint32_t ms, std::function<void()> what);
  void move_balloon();

  guest_hardware hardware_;
  knobs knobs_;
  telling tell_;
  std::shared_ptr<backends::simulated::model_machine> machine_;
  std::unique_ptr<backends::simulated::model_guest> agent_;
  agent_channel* channel_ = nullptr;
  std::vector<std::function<void()>> waiting_; ///< what it reacts to once it is up
  std::uint64_t balloon_ = 0, balloon_target_ = 0;
  std::uint32_t dimms_ = 0;
  bool up_ = false, balloon_moves_ = false;
};

} // namespace caisson::cloud_hypervisor::api_double
