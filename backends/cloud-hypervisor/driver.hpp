#pragma once

/// The Cloud Hypervisor backend without actors: all VMs of one engine, on the shared reactor.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "backends/cloud-hypervisor/machine.hpp"
#include "backends/cloud-hypervisor/version_probe.hpp"
#include "reactor/file_watch.hpp"

namespace caisson::cloud_hypervisor {

struct driver_settings {
  std::string directory; ///< ours alone: records, event streams and logs of the VMs
  std::string host_architecture;
  std::string kvm_device = "/dev/kvm";
  std::function<void(std::string_view)> log;
};

class driver : public std::enable_shared_from_this<driver> {
public:
  using event_function = std::function<void(const v1::VmEvent&)>;

  driver(reactor::reactor& on, driver_settings settings);

  // Thread safe: each is done on the reactor's thread, in the order of the calls.
  /// First: finds the VMs of earlier engines.
  void start();
  /// Answered exactly once, at the latest at the verb's deadline, on the reactor's thread.
  void submit(v1::BackendCall call, answer_function answer);
  /// Events of that sandbox until unlisten(ticket).
  void listen(std::uint64_t ticket, std::string sandbox_id, event_function heard);
  void unlisten(std::uint64_t ticket);
  /// Answers what waits with backend_lost and lets go of everything; the VMs live on. Blocks; not on the reactor's
  /// thread.
  void end();

private:
  struct listener {
    std::string sandbox_id;
    event_function heard;
  };

  void take(const call_ptr& call);
  void recover();
  void describe(const call_ptr& call);
  void describe_program(const call_ptr& call, const std::string& architecture, bool firmware,
                        const program_facts& facts);
  void tell(const v1::VmEvent& event);

  reactor::reactor& on_;
  const driver_settings settings_;
  std::shared_ptr<surroundings> around_;
  std::shared_ptr<version_probe> probe_;
  std::map<std::string, std::shared_ptr<machine>> machines_;
  std::map<std::uint64_t, listener> listeners_;
  std::unique_ptr<reactor::file_watch> watch_;
  bool ended_ = false;
};

} // namespace caisson::cloud_hypervisor
