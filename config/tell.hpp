#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/load.hpp"
#include "messages/config.pb.h"

/// What the configuration has to say to a person: the substance of `caisson config ...`. Pure functions; text out.
namespace caisson::config {

/// The row as a message, for --json.
v1::ConfigKey describe(const key& row);

/// One key in a few lines.
std::string explain(const key& row);

/// Known keys that are spelt like `name`, best first, at most five: for "unknown key".
std::vector<std::string> similar_keys(std::string_view name);

/// Every value with its origin, one a line; what the host changed stands under its line.
std::string show(const layered& config, const std::vector<adaptation>& adaptations);

/// The same as ResolvedConfig carries it (all keys, not only those that act).
std::vector<v1::ConfigValue> values_of(const layered& config);

/// Every key whose value is another one. The hypervisor's name does not matter, but is compared too.
std::vector<v1::ConfigDiff> differences(const layered& before, const layered& after);

/// One line a difference; "" where there is none.
std::string to_text(const std::vector<v1::ConfigDiff>& diffs);

/// The same meaning as a file of Caisson's own dialect, with a comment for everything that is not taken over. Only for
/// a configuration without errors. A file that names no dialect is read as Kata's: load it with runtime.dialect =
/// "kata".
std::string migrate(const layered& config);

/// Paths whose change means that the configuration has to be read again: the file as named, where its links lead,
/// config.d and the files in it. Directories stand before their files, so that a watcher that takes the first N has the
/// essentials.
std::vector<std::string> watch_set(const std::string& path, const sources& from);

/// The generated documents: docs/configuration.md, config/configuration.toml, the JSON Schema (with the tables of these
/// hypervisors).
std::string reference_page();
std::string example_file();
std::string json_schema(const hypervisor_names& names = {});

} // namespace caisson::config
