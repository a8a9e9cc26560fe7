#include "config/keys.hpp"

#include <array>
#include <unordered_map>

namespace caisson::config {
namespace {

constexpr std::array table_names = {
    "hypervisor", "hypervisor.factory", "factory", "agent", "agent.mem_agent", "runtime", "runtime.caisson",
    "proxy", "shim", "netmon"};

std::vector<key> join() {
  std::vector<key> all;
  for (auto part : {hypervisor_keys(), device_keys(), agent_keys(), runtime_keys(), caisson_keys(), other_keys()})
    all.insert(all.end(), part.begin(), part.end());
  return all;
}

using name_map = std::unordered_map<std::string_view, const key*>;

const std::array<name_map, table_names.size()>& maps() {
  static const auto built = [] {
    std::array<name_map, table_names.size()> out;
    for (const auto& row : all_keys())
      out[static_cast<std::size_t>(row.in)].emplace(row.name, &row);
    return out;
  }();
  return built;
}

/// "hypervisor.qemu.x" -> {"hypervisor", "x"}: the name of hypervisor or agent says nothing about the key.
std::string without_instance(std::string_view path) {
  if (const auto name = hypervisor_in(path); !name.empty())
    return "hypervisor." + std::string{path.substr(name.data() + name.size() + 1 - path.data())};
  for (std::string_view head : {"agent.kata.", "proxy.kata.", "shim.kata."})
    if (path.starts_with(head))
      return std::string{head.substr(0, head.find('.') + 1)} + std::string{path.substr(head.size())};
  return std::string{path};
}

} // namespace

std::span<const key> all_keys() {
  static const std::vector<key> all = join();
  return all;
}

const key* find_key(table in, std::string_view name) {
  const auto& map = maps()[static_cast<std::size_t>(in)];
  auto at = map.find(name);
  return at == map.end() ? nullptr : at->second;
}

std::string_view hypervisor_in(std::string_view path) {
  constexpr std::string_view head = "hypervisor.";
  if (!path.starts_with(head))
    return {};
  const auto rest = path.substr(head.size());
  const auto dot = rest.find('.');
  if (dot == rest.npos || rest.substr(0, dot) == "factory")
    return {};
  return rest.substr(0, dot);
}

const key* find_key_by_path(std::string_view path) {
  if (path.find('.') == path.npos) {
    for (auto in : {table::hypervisor, table::runtime, table::runtime_caisson, table::agent, table::factory,
                    table::mem_agent})
      if (auto* row = find_key(in, path))
        return row;
    return nullptr;
  }
  const auto plain = without_instance(path);
  const auto dot = plain.rfind('.');
  for (std::size_t i = 0; i < table_names.size(); ++i)
    if (table_names[i] == std::string_view{plain}.substr(0, dot))
      return find_key(static_cast<table>(i), std::string_view{plain}.substr(dot + 1));
  return nullptr;
}

const key* find_key_by_annotation(std::string_view group, std::string_view name) {
  for (const auto& row : all_keys())
    if (!row.annotation.empty() && (row.in == table::runtime_caisson ? "runtime" : table_name(row.in)) == group &&
        (row.annotation == "=" ? row.name : row.annotation) == name)
      return &row;
  return nullptr;
}

std::size_t index_of(const key& row) {
  return static_cast<std::size_t>(&row - all_keys().data());
}

std::string_view table_name(table in) {
  return table_names[static_cast<std::size_t>(in)];
}

std::string path_of(const key& row) {
  return std::string{table_name(row.in)} + '.' + std::string{row.name};
}

std::string allowed_of(const key& row) {
  const auto unit = row.unit.empty() ? std::string{} : " (" + std::string{row.unit} + ")";
  switch (row.type) {
  case value_type::boolean:
    return "true or false";
  case value_type::integer:
    return "an integer, " + std::to_string(row.low) + " to " + std::to_string(row.high) + unit;
  case value_type::number:
    return "a number, " + std::to_string(row.low) + " to " + std::to_string(row.high) + unit;
  case value_type::text: {
    if (row.choices.empty())
      return "a string" + unit;
    std::string out = "one of ";
    std::string_view rest = row.choices;
    for (bool first = true;; first = false) {
      const auto bar = rest.find('|');
      out += (first ? "\"" : ", \"") + std::string{rest.substr(0, bar)} + '"';
      if (bar == rest.npos)
        return out;
      rest.remove_prefix(bar + 1);
    }
  }
  case value_type::text_list:
    return "an array of strings" + unit;
  case value_type::tables:
    return "an array of tables";
  }
  return {};
}

} // namespace caisson::config
