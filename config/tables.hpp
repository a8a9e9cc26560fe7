#pragma once

#include <string>
#include <vector>

#include "config/load.hpp"

/// The keys of all files with their places, before it is known which hypervisor's table counts. Part of load.cpp, apart
/// for its length.
namespace caisson::config {

/// One key of one file, before it is known which hypervisor's table counts.
struct entry {
  const key* row;
  std::string hypervisor; // "" outside [hypervisor.X]
  const toml_node* node;
  std::size_t file;
};

struct table_seen {
  std::string name;
  std::size_t file;
  position at;
};

struct file_tables {
  std::vector<toml_document> documents; ///< one a file; entries point into them
  std::vector<entry> entries;           ///< known keys, in the order of the files
  std::vector<table_seen> hypervisors;  ///< [hypervisor.NAME] with a known name
};

/// Reads every file of `from`; what is no TOML, unknown keys and unknown tables become problems.
file_tables read_tables(const sources& from, const load_options& options, std::vector<problem>& problems);

} // namespace caisson::config
