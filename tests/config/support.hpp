#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "config/resolve.hpp"

namespace caisson::config::testing {

/// A host of 8 GiB and 4 processors where /usr/bin/qemu-system-x86_64 and /dev/urandom exist.
host_facts host(std::vector<std::string> more_files = {});

/// One file "c.toml" with this text.
sources one(std::string text);

/// "c.toml" and drop-ins "d0.toml", "d1.toml", ...
sources files(std::vector<std::string> texts);

/// The texts of all problems, one a line.
std::string texts(const std::vector<problem>& problems);

/// How many problems are errors.
int errors(const std::vector<problem>& problems);

/// The value in force of "hypervisor.default_memory" and the like, as TOML.
std::string value_of(const layered& config, std::string_view path);

} // namespace caisson::config::testing
