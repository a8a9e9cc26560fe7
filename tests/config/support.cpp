#include "tests/config/support.hpp"

#include <algorithm>
#include <set>

namespace caisson::config::testing {

host_facts host(std::vector<std::string> more_files) {
  host_facts out;
  out.memory_bytes = std::uint64_t{8} << 30;
  out.cpus = 4;
  out.architecture = "x86_64";
  out.backends = {{"qemu", {"x86_64"}}, {"simulated", {}}};
  out.program_paths = {"/usr/bin", "/usr/lib/qemu"};
  std::set<std::string> all = {"/", "/dev", "/dev/urandom", "/usr", "/usr/bin", "/usr/bin/qemu-system-x86_64"};
  for (auto path : more_files)
    for (; !path.empty() && path != "/"; path = path.substr(0, path.rfind('/')))
      all.insert(path);
  out.exists = [all](const std::string& path) { return all.contains(path); };
  out.list = [all](const std::string& directory) {
    const auto head = directory == "/" ? directory : directory + '/';
    std::vector<std::string> names;
    for (const auto& each : all)
      if (each.starts_with(head) && each.size() > head.size() && each.find('/', head.size()) == each.npos)
        names.push_back(each.substr(head.size()));
    return names;
  };
  return out;
}

sources one(std::string text) {
  return files({std::move(text)});
}

sources files(std::vector<std::string> all_texts) {
  sources out;
  out.path = "c.toml";
  for (std::size_t i = 0; i < all_texts.size(); ++i)
    out.files.push_back({i == 0 ? "c.toml" : "d" + std::to_string(i - 1) + ".toml", std::move(all_texts[i])});
  return out;
}

std::string texts(const std::vector<problem>& problems) {
  std::string out;
  for (const auto& each : problems)
    out += each.text() + '\n';
  return out;
}

int errors(const std::vector<problem>& problems) {
  return static_cast<int>(std::count_if(problems.begin(), problems.end(), [](const problem& each) {
    return each.severity() == v1::CONFIG_SEVERITY_ERROR;
  }));
}

std::string value_of(const layered& config, std::string_view path) {
  const auto* row = find_key_by_path(path);
  return row ? to_toml(config.settings[index_of(*row)].content) : "no such key";
}

} // namespace caisson::config::testing
