#include "config/load.hpp"

/// `--arch`: one word that stands for the two keys by which a file says it.
namespace caisson::config {
namespace {

constexpr auto hv = table::hypervisor;
constexpr std::string_view program_prefix = "qemu-system-";

void put(layered& config, std::string_view name, std::string text, const place& where) {
  auto& set = config.settings[index_of(*find_key(hv, name))];
  set.content = text;
  set.from = origin::command_line;
  set.where = where;
  set.written = std::move(text);
}

} // namespace

void apply_architecture(layered& config, const std::string& asked, std::vector<problem>& problems) {
  const place where{{}, {}, "command line"};
  if (asked != "x86_64" && asked != "aarch64") {
    problems.push_back(
        make_problem(where, {"architecture", asked, "is no architecture of a guest", "one of x86_64, aarch64",
                             asked == "arm64"   ? "aarch64"
                             : asked == "amd64" ? "x86_64"
                                                : "",
                             v1::CONFIG_SEVERITY_ERROR}));
    return;
  }
  const std::string machine = asked == "aarch64" ? "virt" : "q35";
  if (config.text(hv, "machine_type") != machine)
    put(config, "machine_type", machine, where);
  // A program of the other architecture gives way to the host's own for this one.
  const auto& path = config.text(hv, "path");
  const auto base = path.substr(path.rfind('/') + 1);
  if (base.starts_with(program_prefix) && base != std::string{program_prefix} + asked)
    put(config, "path", "", where);
}

} // namespace caisson::config
