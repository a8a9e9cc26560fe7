#pragma once

#include <optional>
#include <vector>

#include "config/host_facts.hpp"
#include "config/load.hpp"
#include "messages/config.pb.h"

/// The configuration's one door for the engine: a request becomes the effective figures of one sandbox, or everything
/// that is wrong with it.
namespace caisson::config {

struct outcome {
  std::optional<v1::ResolvedConfig> config; ///< set exactly when no problem is an error
  std::vector<problem> problems;            ///< errors; warnings too where there is no config (else they are in config)
};

/// Pure: decides from texts and host facts alone. The same input gives the same output.
outcome resolve(const v1::ResolveConfig& request, const sources& from, const host_facts& host);

/// Reads the files of request.path (or of the search order) and resolves. Called by the config actor, once a sandbox.
outcome resolve(const v1::ResolveConfig& request, const host_facts& host);

/// `caisson config check`: the same without a sandbox. What this host or this build lacks is a warning or an
/// adaptation.
v1::ConfigReport check(const sources& from, const load_options& options, const host_facts& host);

/// Reads a file with its drop-ins. path "": the search order of `host`. Never throws; what goes wrong is in problems.
sources read_sources(const std::string& path, bool allow_writable, const host_facts& host);

/// This host, with an empty list of backends (the caller knows them) and the usual search order.
host_facts read_host_facts();

/// Problems of severity WARNING as the messages of ResolvedConfig.
std::vector<warning> warnings_of(const std::vector<problem>& problems);

} // namespace caisson::config
