#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "backends/cloud-hypervisor/double/device_tree.hpp"
#include "backends/cloud-hypervisor/double/failure.hpp"
#include "backends/cloud-hypervisor/double/guest.hpp"
#include "backends/cloud-hypervisor/double/host.hpp"
#include "backends/cloud-hypervisor/double/knobs.hpp"
#include "backends/cloud-hypervisor/double/memory.hpp"
#include "backends/cloud-hypervisor/double/profile.hpp"
#include "backends/cloud-hypervisor/double/schema.hpp"
#include "backends/cloud-hypervisor/double/vcpus.hpp"

namespace caisson::cloud_hypervisor::api_double {

struct request {
  std::string method; ///< GET, PUT or PATCH
  std::string path;   ///< "/api/v1/vm.info"
  std::optional<std::string> body;
  std::vector<int> descriptors; ///< that came with it; the model takes them over
};

struct reply {
  int code = 200;
  std::optional<std::string> body;
  std::chrono::nanoseconds after{0}; ///< how long everything else waits before it is sent
  bool panics = false;               ///< the VMM's thread died of it: no reply, the process ends with 1
  bool ends = false;                 ///< the process ends with 0 once it is sent
};

/// The state machine behind the API: what each call does in each state, and what it answers.
///
///     EMPTY --create--> CREATED --boot--> RUNNING <--pause/resume--> PAUSED
///       ^---delete------/  ^---shutdown-------/-----------------------/
///
/// No sockets, no clock of its own: the host is behind an interface, time is a timeline. Replies come from the state
/// alone. Not thread safe.
class model {
public:
  struct settings {
    profile as = profile::v53_0;
    knobs faults;
    bool no_shutdown = false; ///< a guest's power-off ends the VM, not the process
    std::int64_t pid = 0;
  };

  model(settings s, host& h, backends::simulated::timeline& time);
  ~model();

  reply handle(request r);

  /// As vmm.shutdown: for signals.
  void shut_down();
  /// The guest powered off and took the VMM with it.
  std::function<void()> on_exit;

  [[nodiscard]] const guest* the_guest() const;

private:
  enum class vm_state { created, running, paused };

  /// What holds one device's resources of the host.
  struct device_resources {
    std::unique_ptr<disk_image> image;
    std::unique_ptr<vsock_listener> vsock;
    std::unique_ptr<held_open> connection;
    bool image_read_only = false;
  };

  struct vm {
    vm(std::set<std::string> boot_ids, std::uint16_t segments, profile p, memory_ledger m)
        : memory{std::move(m)}, tree{std::move(boot_ids), segments, memory.end_of_ram(), p} {}
    vm_state state = vm_state::created;
    memory_ledger memory;
    vcpu_ledger vcpus;
    device_tree tree;
    std::map<std::string, device_resources> resources;
    std::unique_ptr<guest> inside;
  };

  struct consoles {
    std::string console_mode, serial_mode; ///< "Off", "File"...
    std::shared_ptr<console_sink> console, serial;
  };

  using answer = std::variant<std::optional<std::string>, failure>; ///< body of a success, or why not

  // model.cpp: routes and status codes
  reply route(const std::string& endpoint, request& r);
  reply finished(const std::string& outer, answer a) const;
  [[nodiscard]] int code_of(const failure& f) const;

  // lifecycle.cpp
  outcome create(json config);
  outcome boot();
  outcome pause();
  outcome resume();
  outcome shutdown();
  outcome reboot();
  outcome remove_all();
  outcome start_vm();
  outcome open_consoles();
  outcome load_kernel();
  void power_on();
  void guest_exit();

  // snapshot.cpp
  outcome snapshot(const std::string& url);
  outcome restore(const json& how);

  // resize.cpp
  outcome resize(const json& wanted);
  outcome resize_running(const json& wanted);
  outcome resize_disk(const std::string& id, std::uint64_t bytes);
  outcome resize_zone(const std::string& id, std::uint64_t bytes);
  void follow_virtio_mem();

  // devices.cpp
  outcome make_devices(vm& v);
  outcome make_disk(vm& v, json& d, bool hot);
  outcome make_net(vm& v, json& d);
  outcome make_fs(vm& v, json& d);
  outcome make_pmem(vm& v, json& d, device_tree::node& n);
  outcome make_vsock(vm& v, json& d);
  outcome lock_disks(vm& v);
  answer add_device(const std::string& list, json device, bool single = false);
  outcome remove_device(const std::string& id);
  bool remove_from_config(const std::string& id);
  void close_kept(const json& net);
  std::string named(vm& v, json& d, const std::string& prefix);

  // info.cpp
  [[nodiscard]] answer info() const;
  [[nodiscard]] answer counters() const;
  [[nodiscard]] std::string ping() const;

  void event(const std::string& name, const std::vector<std::pair<std::string, std::string>>& properties = {});
  void announce(const std::string& what, const std::string& id);
  void taken_up(const std::string& id); ///< the guest has a driver for it

  settings settings_;
  host& host_;
  backends::simulated::timeline& time_;
  schema schema_;
  std::optional<json> config_;
  std::unique_ptr<vm> vm_;
  std::optional<consoles> consoles_;
  std::chrono::nanoseconds busy_{0}; ///< how long the call under way takes
  bool panics_ = false;
  std::set<int> kept_; ///< descriptors of taps that came with vm.add-net and have become devices
  std::uint32_t boots_ = 0;
  std::shared_ptr<char> alive_ = std::make_shared<char>();
};

} // namespace caisson::cloud_hypervisor::api_double
