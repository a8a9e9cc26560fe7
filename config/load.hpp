#pragma once

#include <map>
#include <string>
#include <vector>

#include "config/hypervisors.hpp"
#include "config/keys.hpp"
#include "config/problem.hpp"
#include "config/value.hpp"

/// Texts in, a layered configuration out. Pure: nothing here touches a file or the host.
namespace caisson::config {

struct source_file {
  std::string path; ///< as messages name it
  std::string text;
};

/// What was read for one configuration: the main file first, then its drop-ins in the order in which they apply.
struct sources {
  std::string path; ///< main file, symlinks resolved; "": built-in values alone
  std::vector<source_file> files;
  std::vector<problem> problems; ///< what the reading itself found
};

enum class origin : std::uint8_t { built_in, file, drop_in, annotation, command_line };

/// The value of one key and who set it.
struct setting {
  value content; ///< monostate: not set, and the row has no preset
  origin from = origin::built_in;
  place where;
  std::string written; ///< as the file, annotation or command line has it
  bool is_set() const { return from != origin::built_in; }
};

struct load_options {
  bool lenient = false;                           ///< unknown keys and tables are warnings
  std::map<std::string, std::string> annotations; ///< only io.katacontainers.config.* counts
  std::vector<std::pair<std::string, std::string>> overrides;
  hypervisor_names hypervisors; ///< which there are; resolve() and check() take the host's
};

/// Every key with the value in force, for one hypervisor.
struct layered {
  std::vector<setting> settings; ///< by index_of(row)
  std::string hypervisor;        ///< name of the table in force: "qemu", "clh"
  std::string backend;           ///< line of the registry; "" where Caisson has none for it
  std::string dialect = "page";

  const setting& at(table in, std::string_view name) const;
  std::int64_t integer(table in, std::string_view name) const;    ///< 0 where not set
  double number(table in, std::string_view name) const;           ///< 0 where not set
  bool flag(table in, std::string_view name) const;               ///< false where not set
  const std::string& text(table in, std::string_view name) const; ///< "" where not set
  const std::vector<std::string>& list(table in, std::string_view name) const;
  /// "hypervisor.qemu.default_memory": the key as the file in force would write it.
  std::string full_name(const key& row) const;
};

struct load_result {
  layered config;
  std::vector<problem> problems; ///< errors and warnings, by file and line
};

/// Reads, layers and checks everything that needs no host: types, ranges, unknown keys, contradictions, annotations.
load_result load(const sources& from, const load_options& options);

/// The rules that look at more than one key (rules.cpp).
void check_rules(const layered& config, std::vector<problem>& problems);

/// Applies annotations (annotations.cpp) over the files; the gate is enable_annotations and the valid_*_paths.
void apply_annotations(layered& config, const load_options& options, std::vector<problem>& problems);

/// Applies the command line over everything.
void apply_overrides(layered& config, const load_options& options, std::vector<problem>& problems);

/// The override `architecture` (architecture.cpp): "x86_64" or "aarch64" for `machine_type` and `path` together.
void apply_architecture(layered& config, const std::string& asked, std::vector<problem>& problems);

/// Checks one value against its row and stores it; false (and a problem) where it is not allowed.
bool take(layered& config, const key& row, value content, origin from, place where, std::string written,
          std::string_view kind, std::vector<problem>& problems);

/// A glob of Kata's valid_*_paths: `*` and `?` stay within a path component, [sets] work. Linear in both lengths.
bool glob_match(std::string_view pattern, std::string_view path);

} // namespace caisson::config
