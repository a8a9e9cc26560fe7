#include "config/resolve.hpp"

#include <algorithm>

#include "config/adapt.hpp"
#include "config/sizing.hpp"

namespace caisson::config {
namespace {

constexpr auto hv = table::hypervisor;
constexpr std::uint64_t boot_granule_bytes = 2 * mib;
constexpr std::uint64_t guest_floor_bytes = 256 * mib;
constexpr std::uint32_t default_create_timeout_ms = 60'000;

v1::MemoryMethod method_of(const layered& config) {
  const auto& method = config.text(hv, "memory_method");
  if (method == "dimm")
    return v1::MEMORY_METHOD_DIMM;
  if (method == "virtio-mem")
    return v1::MEMORY_METHOD_VIRTIO_MEM;
  if (!config.at(hv, "enable_virtio_mem").is_set())
    return v1::MEMORY_METHOD_UNSPECIFIED;
  return config.flag(hv, "enable_virtio_mem") ? v1::MEMORY_METHOD_VIRTIO_MEM : v1::MEMORY_METHOD_DIMM;
}

std::uint32_t root_ports_of(const layered& config) {
  const bool page_name = config.at(hv, "default_root_ports").is_set();
  return static_cast<std::uint32_t>(config.integer(hv, page_name ? "default_root_ports" : "pcie_root_port"));
}

std::uint32_t create_timeout_of(const layered& config) {
  for (auto in : {table::runtime, table::agent})
    if (config.at(in, "create_container_timeout").is_set() && config.integer(in, "create_container_timeout") > 0)
      return static_cast<std::uint32_t>(config.integer(in, "create_container_timeout") * 1000);
  return default_create_timeout_ms;
}

void add_note(std::vector<adaptation>& out, std::string key, std::string asked, std::string used, std::string why,
              std::string where) {
  auto& each = out.emplace_back();
  each.set_key(std::move(key));
  each.set_asked(std::move(asked));
  each.set_used(std::move(used));
  each.set_why(std::move(why));
  each.set_where(std::move(where));
}

/// Fills the sizes; what does not fit is an error before anything is started.
void size(const v1::ResolveConfig& request, const layered& config, adapted& host_figures, v1::SandboxConfig& out,
          std::vector<problem>& problems) {
  sizing_base base;
  base.rule = config.text(table::runtime, "sizing_rule") == "share" ? sizing_rule::share : sizing_rule::add;
  base.static_sizing = config.flag(table::runtime, "static_sandbox_resource_mgmt");
  base.default_memory_bytes = host_figures.boot_memory_bytes;
  base.default_vcpus_milli = host_figures.vcpus_milli;
  if (config.at(hv, "overhead_memory").is_set())
    base.overhead_memory_bytes = static_cast<std::uint64_t>(config.integer(hv, "overhead_memory")) * mib;
  if (config.at(hv, "overhead_vcpus").is_set())
    base.overhead_vcpus_milli = static_cast<std::uint32_t>(config.number(hv, "overhead_vcpus") * 1000 + 0.5);
  std::vector<container_limits> limits;
  for (const auto& each : request.limits()) {
    limits.push_back(
        {each.memory_bytes(), each.hugepage_bytes(), each.cpu_quota_us(), each.cpu_period_us(), each.cpuset()});
    if (!count_cpuset(each.cpuset()))
      problems.push_back(make_problem(
          {{}, {}, "container limits"},
          {"cpuset", each.cpuset(), "is no set of processors", "a list such as 0-3,7", {}, v1::CONFIG_SEVERITY_ERROR}));
  }
  auto size = size_sandbox(base, limits);
  const auto& rule_where = config.at(table::runtime, "sizing_rule").where;

  const auto rounded = [](std::uint64_t bytes) {
    return bytes > ~std::uint64_t{0} - boot_granule_bytes
               ? bytes / boot_granule_bytes * boot_granule_bytes
               : (bytes + boot_granule_bytes - 1) / boot_granule_bytes * boot_granule_bytes;
  };
  size.boot_memory_bytes = rounded(size.boot_memory_bytes);
  size.target_memory_bytes = rounded(size.target_memory_bytes);
  if (size.boot_memory_bytes < guest_floor_bytes) {
    add_note(host_figures.adaptations, "sandbox memory", std::to_string(size.boot_memory_bytes / mib) + " MiB",
             "256 MiB", "the limits add up to less than a guest needs to boot",
             to_string(config.at(table::runtime, "static_sandbox_resource_mgmt").where));
    size.boot_memory_bytes = guest_floor_bytes;
    size.target_memory_bytes = std::max(size.target_memory_bytes, guest_floor_bytes);
  }
  const auto too_big = [&](const std::string& what, std::string_view key_name) {
    problems.push_back(
        make_problem({{}, {}, "container limits"},
                     {{},
                      {},
                      what + " by the sizing rule \"" + config.text(table::runtime, "sizing_rule") + "\" (" +
                          to_string(rule_where) + "), and " + std::string{key_name} + " allows less (" +
                          to_string(config.at(hv, key_name).where) + "): lower the limits or raise it",
                      {},
                      {},
                      v1::CONFIG_SEVERITY_ERROR}));
  };
  if (size.above_ceiling)
    problems.push_back(make_problem({{}, {}, "container limits"},
                                    {{},
                                     {},
                                     "add up to more than 256 GiB, the ceiling of the sizing rule \"share\"",
                                     {},
                                     {},
                                     v1::CONFIG_SEVERITY_ERROR}));
  else if (!request.limits().empty() && size.target_memory_bytes > host_figures.max_memory_bytes)
    too_big("need " + std::to_string(size.target_memory_bytes / mib) + " MiB", "default_maxmemory");
  auto boot_vcpus = whole_vcpus(size.boot_vcpus_milli);
  auto target_vcpus = whole_vcpus(size.target_vcpus_milli);
  if (!request.limits().empty() && target_vcpus > host_figures.max_vcpus)
    too_big("need " + std::to_string(target_vcpus) + " vCPUs", "default_maxvcpus");

  out.set_boot_memory_bytes(size.boot_memory_bytes);
  out.set_max_memory_bytes(std::max(host_figures.max_memory_bytes, size.boot_memory_bytes));
  out.set_boot_vcpus(boot_vcpus);
  out.set_boot_vcpus_milli(size.boot_vcpus_milli);
  out.set_max_vcpus(std::max(host_figures.max_vcpus, boot_vcpus));
  out.set_static_sizing(base.static_sizing);
  out.set_sizing_rule(config.text(table::runtime, "sizing_rule"));
  if (size.target_memory_bytes != size.boot_memory_bytes)
    out.set_after_boot_memory_target_bytes(size.target_memory_bytes);
  if (target_vcpus != boot_vcpus)
    out.set_after_boot_vcpu_target(target_vcpus);
}

/// Automatic memory and the host's budget. The sizes are known.
void automatic(const layered& config, v1::SandboxConfig& out) {
  constexpr auto own = table::runtime_caisson;
  const auto bytes = [&](std::string_view name) { return static_cast<std::uint64_t>(config.integer(own, name)) * mib; };
  const std::uint64_t boot = out.boot_memory_bytes(), most = out.max_memory_bytes();
  const auto floor = std::clamp(bytes("memory_autosize_floor"), boot, most);
  const auto ceiling = bytes("memory_autosize_ceiling");
  out.set_autosize(config.flag(own, "memory_autosize"));
  out.set_autosize_floor_bytes(floor);
  out.set_autosize_ceiling_bytes(ceiling == 0 ? most : std::clamp(ceiling, floor, most));
  out.set_autosize_step_bytes(bytes("memory_autosize_step"));
  out.set_autosize_headroom_bytes(bytes("memory_autosize_headroom"));
  out.set_autosize_cool_down_ms(static_cast<std::uint32_t>(config.integer(own, "memory_autosize_cool_down") * 1000));
  out.set_host_reserve_bytes(bytes("host_reserve_mib"));
  out.set_overcommit_percent(static_cast<std::uint32_t>(config.number(own, "overcommit") * 100 + 0.5));
  out.set_free_page_reporting(config.flag(own, "free_page_reporting"));
}

void fill(const layered& config, const adapted& figures, v1::SandboxConfig& out) {
  out.set_hypervisor(config.backend);
  out.set_architecture(figures.architecture);
  const auto& machine = config.text(hv, "machine_type");
  if (config.backend == "qemu")
    out.set_machine_type(!machine.empty() ? machine : figures.architecture == "aarch64" ? "virt" : "q35");
  else if (config.backend != "cloud-hypervisor")
    out.set_machine_type(machine);
  out.set_vmm_path(figures.vmm_path);
  out.set_libvirt_uri(config.text(hv, "libvirt_uri"));
  out.set_accelerator(config.text(hv, "accelerator"));
  if (config.backend != "cloud-hypervisor")
    out.set_cpu_features(config.text(hv, "cpu_features"));
  out.set_memory_slots(figures.memory_slots);
  out.set_memory_method(method_of(config));
  out.set_hugepages(config.flag(hv, "enable_hugepages"));
  out.set_preallocate_memory(config.flag(hv, "enable_mem_prealloc"));
  out.set_root_ports(root_ports_of(config));
  out.set_bridges(figures.bridges);
  const bool own = config.text(hv, "guest") != "file";
  out.set_guest(own ? v1::GUEST_SOURCE_OWN : v1::GUEST_SOURCE_FILE);
  out.set_guest_directory(config.text(hv, "guest_dir"));
  if (!own) {
    out.set_kernel_path(config.text(hv, "kernel"));
    out.set_initrd_path(config.text(hv, "initrd"));
  }
  auto parameters = config.text(hv, "kernel_params");
  if (config.flag(hv, "enable_debug"))
    parameters += parameters.empty() ? "ignore_loglevel" : " ignore_loglevel";
  out.set_kernel_params(parameters);
  out.set_firmware_path(figures.firmware);
  out.set_firmware_volume_path(figures.firmware_volume);
  out.set_agent_connect_timeout_ms(figures.agent_connect_timeout_ms);
  out.set_create_container_timeout_ms(create_timeout_of(config));
  out.set_entropy_source(config.text(hv, "entropy_source"));
}

load_options options_of(const v1::ResolveConfig& request, const host_facts& host) {
  load_options options;
  options.hypervisors = hypervisor_names{host.backends};
  options.lenient = request.lenient();
  for (const auto& [name, text] : request.annotations())
    options.annotations.emplace(name, text);
  for (const auto& each : request.overrides())
    options.overrides.emplace_back(each.key(), each.value());
  return options;
}

} // namespace

std::vector<warning> warnings_of(const std::vector<problem>& problems) {
  std::vector<warning> out;
  for (const auto& each : problems) {
    if (each.severity() != v1::CONFIG_SEVERITY_WARNING)
      continue;
    auto& said = out.emplace_back();
    said.set_where(each.text().substr(0, each.text().find(": ")));
    said.set_key(each.key());
    said.set_text(each.text());
  }
  return out;
}

outcome resolve(const v1::ResolveConfig& request, const sources& from, const host_facts& host) {
  outcome out;
  if (from.files.empty() && has_error(from.problems)) {
    out.problems = from.problems; // nothing was read: what built-in values would give is beside the point
    return out;
  }
  auto loaded = load(from, options_of(request, host));
  const auto& config = loaded.config;
  out.problems = std::move(loaded.problems);
  auto figures = adapt(config, host);
  out.problems.insert(out.problems.end(), figures.too_large.begin(), figures.too_large.end());
  out.problems.insert(out.problems.end(), figures.missing.begin(), figures.missing.end());

  v1::ResolvedConfig resolved;
  size(request, config, figures, *resolved.mutable_sandbox(), out.problems);
  if (has_error(out.problems))
    return out;
  automatic(config, *resolved.mutable_sandbox());
  fill(config, figures, *resolved.mutable_sandbox());
  for (auto& each : figures.adaptations)
    *resolved.add_adaptations() = std::move(each);
  for (auto& each : warnings_of(out.problems))
    *resolved.add_warnings() = std::move(each);
  for (const auto& row : all_keys()) {
    const auto& set = config.settings[index_of(row)];
    if (std::holds_alternative<std::monostate>(set.content) || row.what != treatment::honoured)
      continue;
    auto& each = *resolved.add_values();
    each.set_key(config.full_name(row));
    each.set_value(to_toml(set.content));
    each.set_origin(to_string(set.where));
  }
  resolved.set_path(from.path);
  for (std::size_t i = 1; i < from.files.size(); ++i)
    resolved.add_drop_ins(from.files[i].path);
  resolved.set_dialect(config.dialect);
  out.problems.clear();
  out.config = std::move(resolved);
  return out;
}

outcome resolve(const v1::ResolveConfig& request, const host_facts& host) {
  return resolve(request, read_sources(request.path(), request.allow_writable(), host), host);
}

v1::ConfigReport check(const sources& from, const load_options& options, const host_facts& host) {
  v1::ConfigReport out;
  if (from.files.empty() && has_error(from.problems)) {
    out.mutable_problems()->Add(from.problems.begin(), from.problems.end());
    return out;
  }
  auto here = options;
  here.hypervisors = hypervisor_names{host.backends};
  auto loaded = load(from, here);
  auto figures = adapt(loaded.config, host);
  out.set_ok(!has_error(loaded.problems) && figures.too_large.empty());
  for (auto& each : figures.too_large)
    loaded.problems.push_back(std::move(each));
  for (auto& each : loaded.problems)
    *out.add_problems() = std::move(each);
  for (auto& each : figures.missing) {
    // what this host or this build lacks is no fault of the file
    each.set_severity(v1::CONFIG_SEVERITY_WARNING);
    *out.add_problems() = std::move(each);
  }
  for (auto& each : figures.adaptations)
    *out.add_adaptations() = std::move(each);
  out.set_path(from.path);
  for (std::size_t i = 1; i < from.files.size(); ++i)
    out.add_drop_ins(from.files[i].path);
  return out;
}

} // namespace caisson::config
