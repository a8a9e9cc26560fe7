#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/host_facts.hpp"

/// Which names may stand in [hypervisor.NAME] and in hypervisor_name: every backend of this build by its own name, and
/// Kata's names, each of which is a backend's alias or refused by name.
namespace caisson::config {

struct hypervisor_name {
  std::string name;    ///< "clh"
  std::string backend; ///< line of the registry; "": known, and refused
  bool usable = false; ///< this build has the backend
};

class hypervisor_names {
public:
  /// Without a list of backends: those that the rules know, QEMU and Cloud Hypervisor.
  hypervisor_names() : hypervisor_names(std::span<const backend_line>{}) {}
  explicit hypervisor_names(std::span<const backend_line> backends);

  const hypervisor_name* find(std::string_view name) const;     ///< null: no such name
  std::span<const hypervisor_name> all() const { return names_; } ///< Kata's first, then the registry's

  std::string nearest_to(std::string_view name) const; ///< the name that is spelt most like it; ""
  std::string allowed() const;  ///< "one of qemu, clh, cloud-hypervisor": what this build can run
  std::string tables() const;   ///< "[hypervisor.qemu], [hypervisor.clh]": the same as tables
  std::string backends() const; ///< "qemu, cloud-hypervisor"

private:
  std::vector<hypervisor_name> names_;
  std::vector<std::string> backends_;
};

} // namespace caisson::config
