#include "config/tell.hpp"

namespace caisson::config {
namespace {

constexpr auto hv = table::hypervisor;

/// A file that is written table by table.
struct writer {
  std::string text;
  std::string pending_header;

  void header(const std::string& name) { pending_header = "\n[" + name + "]\n"; }

  /// The header even if nothing follows: the table itself says which hypervisor counts.
  void open() {
    text += pending_header;
    pending_header.clear();
  }

  void line(const std::string& each) {
    open();
    text += each + '\n';
  }
};

/// Keys that stand under another name in Caisson's own dialect.
bool is_renamed(const key& row) {
  for (std::string_view name : {"pcie_root_port", "default_root_ports", "enable_virtio_mem", "memory_method"})
    if (row.in == hv && row.name == name)
      return true;
  for (std::string_view name : {"dial_timeout", "reconnect_timeout_ms", "boot_timeout_ms", "create_container_timeout"})
    if (row.in == table::agent && row.name == name)
      return true;
  return row.in == table::runtime && (row.name == "dialect" || row.name == "sizing_rule");
}

void renamed_hypervisor(const layered& config, writer& out) {
  const auto& method = config.text(hv, "memory_method");
  if (method != "auto" || config.at(hv, "enable_virtio_mem").is_set()) {
    const auto used = method != "auto" ? method : config.flag(hv, "enable_virtio_mem") ? "virtio-mem" : "dimm";
    if (config.at(hv, "enable_virtio_mem").is_set())
      out.line("# enable_virtio_mem = " + to_toml(config.at(hv, "enable_virtio_mem").content) + " in words:");
    out.line("memory_method = \"" + std::string{used} + '"');
  }
  const bool page = config.at(hv, "default_root_ports").is_set();
  if (page || config.at(hv, "pcie_root_port").is_set())
    out.line("default_root_ports = " + to_toml(config.at(hv, page ? "default_root_ports" : "pcie_root_port").content));
}

void renamed_agent(const layered& config, writer& out) {
  const auto ag = table::agent;
  const auto& exact = config.at(ag, "boot_timeout_ms");
  if (exact.is_set())
    return out.line("boot_timeout_ms = " + to_toml(exact.content));
  std::int64_t most = 0;
  if (config.at(ag, "dial_timeout").is_set())
    most = config.integer(ag, "dial_timeout") * 1000;
  if (config.at(ag, "reconnect_timeout_ms").is_set())
    most = std::max(most, config.integer(ag, "reconnect_timeout_ms"));
  if (most >= 60000)
    out.line("boot_timeout_ms = " + std::to_string(most));
}

bool is_dropped(const layered& config, const key& row) {
  if (row.what != treatment::honoured)
    return true;
  for (std::string_view name : {"kernel", "initrd"})
    if (row.in == hv && row.name == name && config.text(hv, "guest") != "file")
      return true;
  return false;
}

} // namespace

std::string migrate(const layered& config) {
  writer out;
  out.text = "# The same meaning in Caisson's own dialect. Lines that begin with `#-` are what the old file said and "
             "what has no\n"
             "# meaning here, with the reason.\n";
  const auto tables = {std::pair{hv, "hypervisor." + config.hypervisor},
                       {table::hypervisor_factory, "hypervisor." + config.hypervisor + ".factory"},
                       {table::factory, std::string{"factory"}},
                       {table::agent, std::string{"agent.kata"}},
                       {table::mem_agent, std::string{"agent.kata.mem_agent"}},
                       {table::runtime, std::string{"runtime"}},
                       {table::runtime_caisson, std::string{"runtime.caisson"}},
                       {table::proxy, std::string{"proxy.kata"}},
                       {table::shim, std::string{"shim.kata"}},
                       {table::netmon, std::string{"netmon"}}};
  for (const auto& [in, name] : tables) {
    out.header(name);
    if (in == table::runtime) {
      out.line("dialect = \"page\"");
      out.line("sizing_rule = " + to_toml(config.at(table::runtime, "sizing_rule").content));
    }
    if (in == hv) {
      out.open();
      renamed_hypervisor(config, out);
    }
    if (in == table::agent)
      renamed_agent(config, out);
    for (const auto& row : all_keys()) {
      const auto& set = config.settings[index_of(row)];
      if (row.in != in)
        continue;
      const bool differs = set.content != preset_of(row, true);
      if (is_renamed(row)) {
        const bool create = row.in == table::agent && row.name == "create_container_timeout";
        if (create && set.is_set() && !config.at(table::runtime, "create_container_timeout").is_set())
          out.line("create_container_timeout = " + to_toml(set.content));
        continue;
      }
      if (!set.is_set() && !differs)
        continue;
      const auto written = std::string{row.name} + " = " + to_toml(set.content);
      if (!is_dropped(config, row)) {
        if (differs)
          out.line("# " + std::string{row.doc} + '\n' + written);
      } else if (set.is_set() && (!asks_for_nothing(row, set.content) || row.name == "image")) {
        out.line("#- " + written + "  (" + std::string{row.why} + ')');
      } else if (set.is_set() && row.what == treatment::honoured && !asks_for_nothing(row, set.content)) {
        out.line("#- " + written + "  (the guest is Caisson's own)");
      }
    }
  }
  return out.text;
}

} // namespace caisson::config
