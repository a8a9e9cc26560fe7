#pragma once

/// The QEMU backend: the contract's verbs (backends/backend.hpp) on libvirt.
///
/// Threads: serve()'s thread only sorts calls in; `verbs_` runs the verbs of a VM one after another, VMs beside each other;
/// `asides_` runs what must not wait for them (inspect, destroy, list, describe, questions to a monitor); the service
/// thread has the deadlines and reaps; libvirt's event thread only hands events on.

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "backends/host/server.hpp"
#include "backends/qemu/library.hpp"
#include "backends/qemu/monitor_reading.hpp"
#include "backends/qemu/processes.hpp"
#include "backends/qemu/records.hpp"
#include "backends/qemu/vm.hpp"
#include "backends/qemu/worker_pool.hpp"

namespace caisson::qemu {

class driver : public host::driver {
public:
  /// reaper::become_subreaper() has been called, SIGPIPE is ignored.
  explicit driver(host::arguments where);
  ~driver() override;

  v1::BackendReady start(std::shared_ptr<host::emitter> out) override;
  void submit(v1::BackendCall call, host::answer_function answer) override;

private:
  using verb = std::function<v1::VmObserved(const vm_ptr&, const call_ptr&)>;

  /// What the monitor said, or why it said nothing.
  struct monitor_answer {
    memory_devices memory;
    std::uint64_t boot_bytes = 0;
    std::uint32_t vcpus = 0;
    std::map<std::string, std::string> addresses;  ///< PCI addresses in the guest by QEMU's names of devices
    std::string silent;  ///< "" or why the figures above are not there
    std::uint64_t library_us = 0;
  };

  // driver.cpp
  void run_verb(const vm_ptr& vm, const call_ptr& call, verb todo);
  /// The VMM that this VM had is gone, or on its way.
  static bool vmm_has_ended(const vm_ptr& vm);
  void run_aside(const call_ptr& call, std::function<v1::BackendAnswer()> todo);
  void arm_deadline(const call_ptr& call);
  void wait_for_children();
  void bound_logs();
  vm_ptr vm_of(const std::string& sandbox_id);
  vm_ptr known_vm(const std::string& sandbox_id);
  void forget(const vm_ptr& vm);
  v1::Capabilities describe(const v1::DescribeBackend& question);
  v1::VmList list();
  void on_lifecycle(const std::string& domain, int event, int detail);
  void on_device(const std::string& domain, const std::string& alias, bool removed);
  void on_memory_size(const std::string& domain, const std::string& alias, std::uint64_t size_bytes);
  void tell(const std::string& sandbox_id, v1::VmEvent::Kind kind, std::string text, std::string device_id = {},
            std::uint64_t size_bytes = 0);
  void log(const std::string& line);

  // vm_verbs.cpp
  v1::VmObserved create(const vm_ptr& vm, const call_ptr& call, const v1::VmSpec& spec);
  v1::VmObserved apply_memory_step(const vm_ptr& vm, const call_ptr& call, const v1::ApplyMemoryStep& step);
  v1::VmObserved pause(const vm_ptr& vm, const call_ptr& call, bool paused);
  v1::VmObserved destroy(const vm_ptr& vm, const call_ptr& call);
  domain_handle living_domain(const vm_ptr& vm);
  void remove_files(const vm_ptr& vm);
  /// How long a verb may take for reading back what it has done.
  static std::chrono::milliseconds read_back_budget(const pending_call& call);

  // vcpu_verbs.cpp
  v1::VmObserved set_vcpus(const vm_ptr& vm, const call_ptr& call, std::uint32_t count);
  void plug_vcpus(const vm_ptr& vm, const call_ptr& call, virDomainPtr domain, std::uint32_t plugged, std::uint32_t count);
  /// Asks the guest to let go the last ones; it does so a moment later.
  void ask_for_vcpus(virDomainPtr domain, std::uint32_t plugged, std::uint32_t count);

  // device_verbs.cpp
  v1::VmObserved attach(const vm_ptr& vm, const call_ptr& call, const v1::AttachDevice& asked);
  v1::VmObserved detach(const vm_ptr& vm, const call_ptr& call, const std::string& id);
  /// Throws failure (host_missing) where the host does not have what stands behind a device.
  static void check_devices(const v1::VmSpec& spec);
  /// Throws what libvirt's return code means for this VM; nothing where it is 0.
  static void must(virDomainPtr domain, int rc, const std::string& doing);

  // inspect.cpp
  v1::VmObserved inspect(const vm_ptr& vm, const call_ptr& call);
  v1::VmObserved read_back(const vm_ptr& vm, virDomainPtr domain, std::chrono::milliseconds budget);
  monitor_answer ask_monitor(const vm_ptr& vm, virDomainPtr domain, std::chrono::milliseconds budget,
                             bool with_addresses);
  void follow_virtio_mem(const vm_ptr& vm);
  void look_at_virtio_mem(const vm_ptr& vm, std::uint64_t turn, unsigned look);
  void tell_memory_size(const vm_ptr& vm, std::uint64_t size_bytes);
  domain_handle find_domain(const vm_ptr& vm);
  process vmm_of(const vm_ptr& vm);
  std::string last_words(const vm_ptr& vm);

  const host::arguments where_;
  const records records_;
  std::shared_ptr<host::emitter> out_;
  reaper reaper_;

  std::mutex vms_mutex_;
  std::map<std::string, vm_ptr> vms_;

  boost::asio::io_context service_;
  boost::asio::posix::stream_descriptor child_signals_{service_};
  boost::asio::steady_timer log_timer_{service_};
  std::thread service_thread_;

  library library_;
  worker_pool verbs_{64};
  worker_pool asides_{256};
};

} // namespace caisson::qemu
