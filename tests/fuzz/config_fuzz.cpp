#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "config/resolve.hpp"
#include "config/tell.hpp"

/// Loader, drop-ins, annotations and command line from one input. The parts are divided by lines:
///   main file
///   --- drop-in
///   text of a drop-in
///   --- annotations        (NAME=VALUE, one a line)
///   --- set                (KEY=VALUE, one a line)
/// Beside not crashing it holds: what is said can be shown, the same input gives the same answer, what resolves makes
/// sense, and a migrated file means the same.
namespace {

namespace config = caisson::config;
namespace v1 = caisson::v1;

[[noreturn]] void broken(const std::string& what) {
  std::fprintf(stderr, "broken promise: %s\n", what.c_str());
  std::abort();
}

void hold(bool promise, const char* what) {
  if (!promise)
    broken(what);
}

struct input {
  config::sources from;
  v1::ResolveConfig request;
};

input read(std::string_view text) {
  input out;
  out.from.path = "main.toml";
  out.from.files.push_back({"main.toml", {}});
  std::string* into = &out.from.files.back().text;
  enum { file, annotations, settings } mode = file;
  while (!text.empty()) {
    const auto end = text.find('\n');
    const auto line = text.substr(0, end);
    text = end == text.npos ? std::string_view{} : text.substr(end + 1);
    if (line == "--- drop-in" && out.from.files.size() < 8) {
      out.from.files.push_back({"drop-in-" + std::to_string(out.from.files.size()) + ".toml", {}});
      into = &out.from.files.back().text;
      mode = file;
    } else if (line == "--- annotations") {
      mode = annotations;
    } else if (line == "--- set") {
      mode = settings;
    } else if (mode == file) {
      *into += line;
      if (end != line.npos)
        *into += '\n';
    } else if (const auto equals = line.find('='); equals != line.npos) {
      if (mode == annotations) {
        (*out.request.mutable_annotations())[std::string{line.substr(0, equals)}] =
            std::string{line.substr(equals + 1)};
      } else {
        auto& each = *out.request.add_overrides();
        each.set_key(std::string{line.substr(0, equals)});
        each.set_value(std::string{line.substr(equals + 1)});
      }
    }
  }
  return out;
}

config::host_facts host() {
  config::host_facts out;
  out.memory_bytes = std::uint64_t{8} << 30;
  out.cpus = 4;
  out.architecture = "x86_64";
  out.backends = {{"qemu", {"x86_64", "aarch64"}}, {"cloud-hypervisor", {"x86_64"}}, {"simulated", {}}};
  out.program_paths = {"/usr/bin"};
  out.exists = [](const std::string& path) { return path.size() < 64 && path.find("missing") == path.npos; };
  out.list = [](const std::string&) { return std::vector<std::string>{"bin", "share", "AAVMF", "qemu-system-x86_64"}; };
  return out;
}

void can_be_shown(const std::vector<config::problem>& problems) {
  for (const auto& each : problems) {
    const auto shown = [](unsigned char c) { return c >= 0x20 && c != 0x7f; };
    if (!std::all_of(each.text().begin(), each.text().end(), shown))
      broken("a message has a control character: " + config::escaped(each.text(), 4096));
    if (each.text().size() > 20000)
      broken("a message has no bound");
    if (!each.file().empty() && !each.text().starts_with(each.file() + ':' + std::to_string(each.line()) + ':' +
                                                         std::to_string(each.column()) + ": "))
      broken("a message does not begin with its place: " + each.text());
  }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto facts = host();
  const auto in = read({reinterpret_cast<const char*>(data), size});
  const auto out = config::resolve(in.request, in.from, facts);
  can_be_shown(out.problems);
  hold(out.config.has_value() != config::has_error(out.problems), "neither a configuration nor an error");

  config::load_options options;
  options.hypervisors = config::hypervisor_names{facts.backends};
  for (const auto& [name, value] : in.request.annotations())
    options.annotations.emplace(name, value);
  for (const auto& each : in.request.overrides())
    options.overrides.emplace_back(each.key(), each.value());
  auto loaded = config::load(in.from, options);
  (void)config::show(loaded.config, {});
  hold(config::differences(loaded.config, loaded.config).empty(), "a configuration differs from itself");
  if (size % 8 == 0)
    hold(config::check(in.from, options, facts).ok() || !out.config, "check refuses what resolves");
  if (!out.config)
    return 0;

  const auto& box = out.config->sandbox();
  hold(box.boot_memory_bytes() >= std::uint64_t{256} << 20 && box.boot_memory_bytes() <= facts.memory_bytes,
       "boot memory");
  hold(box.max_memory_bytes() >= box.boot_memory_bytes() && box.max_memory_bytes() <= facts.memory_bytes,
       "maximum of memory");
  hold(box.boot_vcpus() >= 1 && box.boot_vcpus() <= box.max_vcpus() && box.max_vcpus() <= facts.cpus, "vCPUs");
  hold(box.memory_slots() >= 1 && box.memory_slots() <= 256 && box.root_ports() <= 16 && box.bridges() <= 5,
       "slots, ports or bridges");
  hold(box.agent_connect_timeout_ms() >= 1000, "a time without a bound");

  config::sources again;
  again.path = "main.toml";
  again.files.push_back({"main.toml", config::migrate(loaded.config)});
  const auto migrated = config::resolve({}, again, facts);
  if (!migrated.config)
    broken("a migrated file does not load:\n" + again.files[0].text +
           (migrated.problems.empty() ? "" : migrated.problems[0].text()));
  if (migrated.config->sandbox().SerializeAsString() != box.SerializeAsString())
    broken("a migrated file means something else:\n" + again.files[0].text + box.DebugString() +
           migrated.config->sandbox().DebugString());
  return 0;
}
