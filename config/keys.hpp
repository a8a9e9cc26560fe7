#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

/// The key table: every key that may stand in a configuration.toml, with type, unit, default, range and what Caisson
/// does with it. Loader, validation, annotations, `config explain`, the reference page, the JSON Schema and the
/// annotated example file are all made from it. One file a TOML table: keys_hypervisor.cpp, keys_devices.cpp (the
/// hypervisor's devices), keys_agent.cpp, keys_runtime.cpp, keys_caisson.cpp ([runtime.caisson]), keys_other.cpp.
namespace caisson::config {

enum class value_type : std::uint8_t { boolean, integer, number, text, text_list, tables };

/// What Caisson does with a key.
enum class treatment : std::uint8_t {
  honoured, ///< it acts
  accepted, ///< it is read, checked, and has no meaning here; a value that asks for something is reported
  refused,  ///< a value that asks for something is an error
};

/// The TOML tables. `X` stands for the hypervisor's name.
enum class table : std::uint8_t {
  hypervisor,
  hypervisor_factory,
  factory,
  agent,
  mem_agent,
  runtime,
  runtime_caisson,
  proxy,
  shim,
  netmon
};

/// Bits of key::backends.
namespace on {
inline constexpr std::uint8_t qemu = 1;
inline constexpr std::uint8_t cloud_hypervisor = 2;
inline constexpr std::uint8_t both = 3;
inline constexpr std::uint8_t none = 0; // only for hypervisors that Caisson has no backend for
} // namespace on

/// Who the key comes from, for the reference page.
enum class family : std::uint8_t { kata, kata_go, kata_rs, kata_1x, caisson };

struct key {
  table in{};
  std::string_view name;
  value_type type{};
  std::string_view unit = {};          ///< "MiB", "s", "ms", "bytes", "%", ...; empty: a plain value
  std::string_view preset = {};        ///< value where nothing sets it, as TOML; empty: not set
  std::string_view page_preset = {};   ///< the same in the dialect "page", where it is another one
  std::int64_t low = 0;                ///< integer, number: smallest value
  std::int64_t high = 4294967295;      ///< integer, number: largest value
  std::string_view choices = {};       ///< text: the allowed values, separated by '|'; empty: any
  std::uint8_t backends = on::both;    ///< backends for which it has a meaning
  std::string_view architectures = {}; ///< architectures for which it has a meaning; empty: all
  family from = family::kata;
  std::string_view annotation = {}; ///< "=": the key's own name; else the annotation's base name; empty: none
  treatment what = treatment::honoured;
  std::string_view inert = {}; ///< accepted, refused: values besides the preset that ask for nothing, by '|'; "*": all
  std::string_view why = {};   ///< accepted, refused: the reason
  std::string_view doc = {};   ///< one line for a person
};

/// All keys, in the order of the reference page. The address of a row is its identity; index_of() is its place.
std::span<const key> all_keys();

/// The row of `name` in `in`, or null.
const key* find_key(table in, std::string_view name);

/// The row of "hypervisor.default_memory", "runtime.sizing_rule", or of a bare name where only one table has it (the
/// hypervisor's first). Also takes "hypervisor.NAME.default_memory", whatever the name, and "agent.kata.dial_timeout".
/// Null: unknown.
const key* find_key_by_path(std::string_view path);

/// The NAME of "hypervisor.NAME.default_memory"; "" where the path names none.
std::string_view hypervisor_in(std::string_view path);

/// The row whose annotation is io.katacontainers.config.`group`.`name`, or null. `group`: hypervisor, runtime, agent.
const key* find_key_by_annotation(std::string_view group, std::string_view name);

std::size_t index_of(const key& row);

/// "hypervisor", "hypervisor.factory", "agent", "agent.mem_agent", "runtime", "runtime.caisson", ...
std::string_view table_name(table in);

/// "hypervisor.default_memory": how a key is called where the hypervisor's name does not matter.
std::string path_of(const key& row);

/// Everything that the row allows, in words: "256 to 16777216 (MiB)", "true or false", "one of no-port, root-port".
std::string allowed_of(const key& row);

/// The rows of one file of the table.
std::span<const key> hypervisor_keys();
std::span<const key> device_keys();
std::span<const key> agent_keys();
std::span<const key> runtime_keys();
std::span<const key> caisson_keys();
std::span<const key> other_keys();

} // namespace caisson::config
