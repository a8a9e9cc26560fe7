#pragma once

/// What this host has of what sandboxes need, looked up without starting anything.

#include <string>
#include <string_view>
#include <vector>

#include "config/host_facts.hpp"
#include "engine/service.hpp"

namespace caisson::cli {

struct host_check {
  std::string name;
  bool found = false;
  bool required = true; ///< false: sandboxes run without it, but slower or with less
  std::string text;     ///< where it is, or what is missing and why it matters
  std::string mend;     ///< what to do, with the package that brings it; "" where nothing is to be done
};

/// For sandboxes on `backend`, a line of the registry: what another one needs is not required.
std::vector<host_check> check_host(const engine::options& o, const engine::directories& d,
                                   const config::host_facts& host, std::string_view backend);

} // namespace caisson::cli
