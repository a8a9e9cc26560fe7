#pragma once

/// What `cloud-hypervisor --version` says. Asked once for each state of the file.

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backends/cloud-hypervisor/spec.hpp"
#include "reactor/reactor.hpp"

namespace caisson::cloud_hypervisor {

struct program_facts {
  std::string version; ///< "53.0.0" or "53.0"
  bool model = false;  ///< it says that it is no hypervisor: the API double, which needs no KVM
  problem wrong;       ///< code "" where there is none
};

/// On the reactor's thread.
class version_probe : public std::enable_shared_from_this<version_probe> {
public:
  explicit version_probe(reactor::reactor& on) : on_{on} {}
  void ask(const std::string& program, std::function<void(const program_facts&)> then);

private:
  void finish(const std::string& key, const program_facts& facts);

  reactor::reactor& on_;
  std::map<std::string, program_facts> known_;
  std::map<std::string, std::vector<std::function<void(const program_facts&)>>> asking_;
};

/// The facts in the program's output.
program_facts read_version(const std::string& program, const std::string& output);

} // namespace caisson::cloud_hypervisor
