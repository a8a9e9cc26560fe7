#include <algorithm>

#include "config/tell.hpp"

/// The two generated documents. Prose that belongs to no key stands here; everything else comes from the table.
namespace caisson::config {
namespace {

/// What the shipped file sets; all other keys stand in it as comments.
constexpr std::pair<std::string_view, std::string_view> shipped[] = {
    {"hypervisor.path", "\"/usr/bin/qemu-system-x86_64\""},
    {"hypervisor.machine_type", "\"q35\""},
    {"hypervisor.accelerator", "\"auto\""},
    {"hypervisor.default_vcpus", "1"},
    {"hypervisor.default_maxvcpus", "0"},
    {"hypervisor.default_memory", "1024"},
    {"hypervisor.default_maxmemory", "4096"},
    {"hypervisor.memory_slots", "10"},
    {"hypervisor.memory_method", "\"auto\""},
    {"hypervisor.default_bridges", "1"},
    {"hypervisor.default_root_ports", "2"},
    {"runtime.dialect", "\"page\""},
    {"runtime.sizing_rule", "\"share\""},
    {"runtime.static_sandbox_resource_mgmt", "false"},
};

constexpr std::string_view page_head = R"(# Configuration

<!-- Generated from the key table (config/keys_*.cpp) by `caisson-config-doc page`; a test keeps it so. -->

A sandbox gets at boot what stands in a `configuration.toml`. Caisson reads the files of Kata Containers 4.1 (both its
runtimes), of Kata 1.x and openEuler, and its own keys, all in one dialect. Nothing is ignored in silence: an unknown key
is an error with file, line and the nearest known key; a value that the host changes is listed with what was asked, what
is used and why; a key that has no meaning here says so when it asks for something.

`config/configuration.toml` is an annotated file to begin with. `caisson config check FILE...` tells everything that is
wrong in one run, `config show` every value with its origin, `config explain KEY` one key, `config diff A B` what differs,
`config migrate FILE` the same meaning in Caisson's own keys, `config schema` a JSON Schema for editors.

## Where values come from

Later ones win: built-in values of the dialect, the file, its drop-ins, a pod's annotations, the command line.

- **File.** The one named by `--config`, else the first that exists of `$XDG_CONFIG_HOME/caisson/configuration.toml`
  (`~/.config/...`), `/etc/caisson/configuration.toml`, then Kata's: `/etc/kata-containers/configuration.toml`,
  `/etc/kata-containers/runtime-rs/configuration.toml`, the same two under `/usr/share/defaults/kata-containers/` and
  `/opt/kata/share/defaults/kata-containers/`. With none of them, built-in values alone. A file (or its directory, unless
  sticky) that everybody can write is refused, unless `--allow-writable` is given.
- **Drop-ins.** `config.d/*.toml` beside the file (its symbolic links resolved), in lexical order. Arrays are replaced
  whole. A file there with another name is not applied, and is mentioned.
- **Annotations.** `io.katacontainers.config.hypervisor.*`, `.runtime.*` and `.agent.*`. A hypervisor annotation has to be
  matched, as a whole, by an expression of `enable_annotations` (Kata is content with a part: there `enable_iommu` opens
  `enable_iommu_platform` too). Those that name a file of the host have to be in their `valid_*_paths`. The annotation of
  `default_maxvcpus` is `default_max_vcpus`. Sizes in MiB also take a unit: `512Mi`, `2G`.
- **Dialect.** `dialect = "page"` (the default) has the secure-container page's defaults: 1024 MiB, 10 slots, limits that
  include the boot memory. `dialect = "kata"` has upstream Kata's: 2048 MiB, limits on top of the boot memory. Only what a
  file leaves open depends on it.

## How big a sandbox is

| | `sizing_rule = "add"` | `sizing_rule = "share"` |
| --- | --- | --- |
| memory | default_memory + sum of the containers' limits | the larger of default_memory and that sum; at least 1 GiB, at most 256 GiB |
| vCPUs | default_vcpus + sum of quota / period, rounded up once; without any quota the processors of the cpusets | the same |

With `static_sandbox_resource_mgmt = false` the sandbox boots with its defaults and is resized to this size as soon as the
guest answers. With `true` it boots with this size; where `overhead_memory` or `overhead_vcpus` is set, it stands in for
the default of a resource that has a limit. (Kata's Rust runtime gives a pod that limits only its processors a VM of
`overhead_memory` alone; here such a pod keeps default_memory.) An explicit resize is honoured in both cases. A size
above `default_maxmemory` or `default_maxvcpus` is refused before anything starts.

Hypervisor names: `qemu`; `clh` or `cloud-hypervisor`; and every other backend that this build has, by the name that
`caisson backends` shows, such as `simulated` (a model, for trying things out). `dragonball`, `firecracker`, `stratovirt`
and others of Kata's are known, and refused by name. To a backend that has no rules of its own here no rule of
another applies; `path` names its program, which it looks for itself where that is not set.

## The keys

*honoured*: it acts. *no meaning*: it is read and checked; a value that asks for something is reported. *refused*: a value
that asks for something is an error. Defaults are the dialect `page`'s; the dialect `kata`'s follow where they differ.

)";

constexpr std::string_view example_head =
    R"(# Caisson: what a sandbox gets at boot. What it gets afterwards comes live: `caisson resize`.
# Generated from the key table by `caisson-config-doc example`. Every other key, Kata's and Kata 1.x' among them, is in
# docs/configuration.md; `caisson config explain KEY` tells of one. Kata Containers' own files are read as they are.
)";

struct part {
  table in;
  std::string_view title;
  std::string_view example_table;
};
constexpr part parts[] = {
    {table::hypervisor, "[hypervisor.X]", "[hypervisor.qemu]"},
    {table::hypervisor_factory, "[hypervisor.X.factory]", ""},
    {table::factory, "[factory]", ""},
    {table::agent, "[agent.kata]", "[agent.kata]"},
    {table::mem_agent, "[agent.kata.mem_agent]", ""},
    {table::runtime, "[runtime]", "[runtime]"},
    {table::runtime_caisson, "[runtime.caisson]", "[runtime.caisson]"},
    {table::proxy, "[proxy.kata]", ""},
    {table::shim, "[shim.kata]", ""},
    {table::netmon, "[netmon]", ""},
};

std::string cell(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (c == '|')
      out += '\\';
    out += c;
  }
  return out;
}

std::string short_allowed(const key& row) {
  switch (row.type) {
  case value_type::integer:
  case value_type::number:
    return std::to_string(row.low) + (row.high == 9223372036854775807 ? " up" : " to " + std::to_string(row.high)) +
           (row.unit.empty() ? "" : ' ' + std::string{row.unit});
  case value_type::text: {
    if (row.choices.empty())
      return row.unit.empty() ? "text" : std::string{row.unit};
    std::string out;
    std::string_view rest = row.choices;
    while (true) {
      const auto bar = rest.find('|');
      const auto one = rest.substr(0, bar);
      out += (out.empty() ? "" : ", ") + (one.empty() ? std::string{"empty"} : std::string{one});
      if (bar == rest.npos)
        return out;
      rest.remove_prefix(bar + 1);
    }
  }
  case value_type::text_list:
    return "list of " + std::string{row.unit.empty() ? "texts" : row.unit};
  case value_type::boolean:
    return "true, false";
  case value_type::tables:
    return "tables";
  }
  return {};
}

std::string treatment_cell(const key& row) {
  std::string out = row.what == treatment::honoured   ? "honoured"
                    : row.what == treatment::accepted ? "no meaning: "
                                                      : "refused: ";
  out += row.why;
  if (row.in == table::hypervisor && row.what == treatment::honoured && row.backends == on::qemu)
    out += " (QEMU)";
  if (row.in == table::hypervisor && row.what == treatment::honoured && row.backends == on::cloud_hypervisor)
    out += " (Cloud Hypervisor)";
  if (!row.architectures.empty())
    out += " (" + std::string{row.architectures} + ')';
  return out;
}

/// For keys without a preset: what the commented line of the example shows.
constexpr std::pair<std::string_view, std::string_view> samples[] = {
    {"hypervisor.overhead_vcpus", "0.2"},       {"hypervisor.overhead_memory", "32"},
    {"hypervisor.kernel", "\"/boot/vmlinux\""}, {"hypervisor.initrd", "\"/boot/initrd\""},
    {"agent.boot_timeout_ms", "60000"},         {"agent.dial_timeout", "60"},
    {"agent.reconnect_timeout_ms", "60000"},    {"agent.create_container_timeout", "60"},
    {"runtime.create_container_timeout", "60"},
};

std::string sample(const key& row) {
  for (const auto& [path, text] : shipped)
    if (path == path_of(row))
      return std::string{text};
  for (const auto& [path, text] : samples)
    if (path == path_of(row))
      return std::string{text};
  if (!row.page_preset.empty() || !row.preset.empty())
    return std::string{row.page_preset.empty() ? row.preset : row.page_preset};
  switch (row.type) {
  case value_type::boolean:
    return "false";
  case value_type::text:
    return "\"\"";
  case value_type::text_list:
    return "[]";
  default:
    return std::to_string(row.low);
  }
}

bool is_shipped(const key& row) {
  return std::any_of(std::begin(shipped), std::end(shipped),
                     [&](const auto& each) { return each.first == path_of(row); });
}

/// Words of a line of documentation, wrapped as comments.
std::string wrapped(std::string_view text) {
  std::string out;
  std::string line = "#";
  while (!text.empty()) {
    const auto space = text.find(' ');
    const auto word = text.substr(0, space);
    text = space == text.npos ? std::string_view{} : text.substr(space + 1);
    if (line.size() + 1 + word.size() > 112) {
      out += line + '\n';
      line = "#";
    }
    line += ' ';
    line += word;
  }
  return out + line + '\n';
}

} // namespace

std::string reference_page() {
  std::string out{page_head};
  for (const auto& each : parts) {
    out += "### `" + std::string{each.title} +
           "`\n\n| key | default | allowed | what it does | in Caisson | annotation |\n"
           "| --- | --- | --- | --- | --- | --- |\n";
    for (const auto& row : all_keys()) {
      if (row.in != each.in)
        continue;
      const auto kata = to_toml(preset_of(row, false));
      const auto page = to_toml(preset_of(row, true));
      std::string preset = page.empty() ? "" : '`' + page + '`';
      if (kata != page)
        preset += " (kata: `" + kata + "`)";
      std::string from = row.from == family::caisson   ? " (Caisson's own)"
                         : row.from == family::kata_1x ? " (Kata 1.x)"
                                                       : "";
      std::string annotation = row.annotation.empty()  ? ""
                               : row.annotation == "=" ? "yes"
                                                       : '`' + std::string{row.annotation} + '`';
      out += "| `" + std::string{row.name} + '`' + from + " | " + cell(preset) + " | " + cell(short_allowed(row)) +
             " | " + cell(row.doc) + " | " + cell(treatment_cell(row)) + " | " + annotation + " |\n";
    }
    out += '\n';
  }
  out.pop_back();
  return out;
}

std::string example_file() {
  std::string out{example_head};
  for (const auto& each : parts) {
    if (each.example_table.empty())
      continue;
    out += '\n' + std::string{each.example_table} + '\n';
    for (const auto& row : all_keys()) {
      if (row.in != each.in || row.what != treatment::honoured)
        continue;
      out += '\n' + wrapped(row.doc);
      if (!row.choices.empty() || row.type == value_type::integer || row.type == value_type::number)
        out += wrapped("Allowed: " + short_allowed(row) + '.');
      out += (is_shipped(row) ? "" : "# ") + std::string{row.name} + " = " + sample(row) + '\n';
    }
  }
  return out;
}

} // namespace caisson::config
