#pragma once

/// The host's taps, which are made and removed by whoever named them, never here and never by the VMM: the VMM gets a
/// descriptor of the tap (vm.add-net), since a name that it does not find it would make itself, connected to nothing.

#include <string>
#include <utility>

#include "backends/cloud-hypervisor/spec.hpp"

namespace caisson::cloud_hypervisor {

/// What keeps this interface from being a VM's: it is not there or is no tap (host_missing). An empty code: nothing.
/// Looks in sysfs alone, so that a tap that somebody else holds passes.
problem tap_problem(const std::string& name);

/// One queue of a tap, or why there is none. Closed with the object; the tap stays where its maker made it stay.
class attached_tap {
public:
  explicit attached_tap(int fd) : fd_(fd) {}
  explicit attached_tap(problem why) : why_(std::move(why)) {}
  attached_tap(attached_tap&& other) noexcept : fd_(std::exchange(other.fd_, -1)), why_(std::move(other.why_)) {}
  attached_tap& operator=(attached_tap&&) = delete;
  ~attached_tap();

  int fd() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  /// `code`: host_missing, host_denied, or backend_refused (somebody else holds it, above all).
  const problem& why_not() const { return why_; }

private:
  int fd_ = -1;
  problem why_;
};

/// Opens a queue of a tap that is there and brings it up where it is down. What else the VMM needs of it (the size of
/// the virtio header, offloads, no blocking) the VMM sets itself.
attached_tap attach_tap(const std::string& name);

} // namespace caisson::cloud_hypervisor
