#include "config/tell.hpp"

#include <algorithm>
#include <filesystem>
#include <set>

#include "config/nearest.hpp"

namespace caisson::config {
namespace {

constexpr std::string_view type_names[] = {"boolean", "integer", "number", "string", "strings", "tables"};
constexpr std::string_view family_names[] = {"Kata", "Kata (Go)", "Kata (Rust)", "Kata 1.x", "Caisson"};
constexpr std::string_view treatment_names[] = {"honoured", "accepted", "refused"};

template <class E, std::size_t N> std::string name_of(const std::string_view (&names)[N], E value_of_enum) {
  return std::string{names[static_cast<std::size_t>(value_of_enum)]};
}

} // namespace

v1::ConfigKey describe(const key& row) {
  v1::ConfigKey out;
  out.set_key(path_of(row));
  out.set_type(name_of(type_names, row.type));
  out.set_unit(std::string{row.unit});
  out.set_default_kata(to_toml(preset_of(row, false)));
  out.set_default_page(to_toml(preset_of(row, true)));
  out.set_allowed(allowed_of(row));
  if (row.backends & on::qemu)
    out.add_backends("qemu");
  if (row.backends & on::cloud_hypervisor)
    out.add_backends("cloud-hypervisor");
  if (!row.architectures.empty())
    out.add_architectures(std::string{row.architectures});
  if (!row.annotation.empty())
    out.set_annotation("io.katacontainers.config." + std::string{table_name(row.in)} + '.' +
                       std::string{row.annotation == "=" ? row.name : row.annotation});
  out.set_treatment(name_of(treatment_names, row.what));
  out.set_why(std::string{row.why});
  out.set_doc(std::string{row.doc});
  out.set_family(name_of(family_names, row.from));
  return out;
}

std::string explain(const key& row) {
  const auto said = describe(row);
  std::string out = said.key() + " (" + said.type() + (said.unit().empty() ? "" : ", " + said.unit()) + ")\n";
  const auto line = [&](const std::string& label, const std::string& text) {
    out += "  " + label + std::string(12 - label.size(), ' ') + text + '\n';
  };
  out += "  " + said.doc() + '\n';
  const auto or_unset = [](const std::string& text) { return text.empty() ? std::string{"not set"} : text; };
  line("default", said.default_kata() == said.default_page() ? or_unset(said.default_kata())
                                                             : or_unset(said.default_page()) + " (dialect page), " +
                                                                   or_unset(said.default_kata()) + " (dialect kata)");
  line("allowed", said.allowed());
  line("treatment", said.treatment() + (said.why().empty() ? "" : ": " + said.why()));
  std::string backends;
  for (const auto& each : said.backends())
    backends += (backends.empty() ? "" : ", ") + each;
  if (row.in == table::hypervisor)
    line("backends", backends.empty() ? "none here" : backends);
  if (said.architectures_size())
    line("only on", said.architectures(0));
  line("annotation", said.annotation().empty() ? "none" : said.annotation());
  line("from", said.family());
  return out;
}

std::vector<std::string> similar_keys(std::string_view name) {
  const auto bare = name.substr(name.rfind('.') == name.npos ? 0 : name.rfind('.') + 1);
  std::vector<std::pair<std::size_t, std::string>> all;
  for (const auto& row : all_keys()) {
    const bool part = bare.size() >= 4 && row.name.find(bare) != row.name.npos;
    const auto edits = part ? 1 : distance(bare, row.name);
    if (edits <= std::max<std::size_t>(1, bare.size() / 3))
      all.emplace_back(edits, path_of(row));
  }
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> out;
  for (std::size_t i = 0; i < all.size() && i < 5; ++i)
    out.push_back(all[i].second);
  return out;
}

std::string show(const layered& config, const std::vector<adaptation>& adaptations) {
  std::vector<std::pair<std::string, std::string>> lines;
  std::size_t widest = 0;
  for (const auto& row : all_keys()) {
    const auto& set = config.settings[index_of(row)];
    if (std::holds_alternative<std::monostate>(set.content))
      continue;
    auto head = config.full_name(row) + " = " + escaped(to_toml(set.content), 4096);
    auto tail = to_string(set.where);
    if (row.what == treatment::accepted && set.is_set())
      tail += ", has no meaning here";
    for (const auto& each : adaptations)
      if (each.key() == config.full_name(row))
        tail += "\n    used: " + each.used() + " (" + each.why() + ')';
    if (head.size() <= 72)
      widest = std::max(widest, head.size());
    lines.emplace_back(std::move(head), std::move(tail));
  }
  std::string out;
  for (const auto& [head, tail] : lines)
    out += head + std::string(head.size() < widest ? widest - head.size() : 0, ' ') + "  # " + tail + '\n';
  for (const auto& each : adaptations) {
    const auto* row = find_key_by_path(each.key());
    if (!row || std::holds_alternative<std::monostate>(config.settings[index_of(*row)].content))
      out += each.key() + "  # used: " + each.used() + " (" + each.why() + ")\n";
  }
  return out;
}

std::vector<v1::ConfigValue> values_of(const layered& config) {
  std::vector<v1::ConfigValue> out;
  for (const auto& row : all_keys()) {
    const auto& set = config.settings[index_of(row)];
    if (std::holds_alternative<std::monostate>(set.content))
      continue;
    auto& each = out.emplace_back();
    each.set_key(config.full_name(row));
    each.set_value(to_toml(set.content));
    each.set_origin(to_string(set.where));
  }
  return out;
}

std::vector<v1::ConfigDiff> differences(const layered& before, const layered& after) {
  std::vector<v1::ConfigDiff> out;
  const auto add = [&](std::string key_name, std::string was, std::string is, std::string where) {
    auto& each = out.emplace_back();
    each.set_key(std::move(key_name));
    each.set_before(std::move(was));
    each.set_after(std::move(is));
    each.set_where(std::move(where));
  };
  if (before.hypervisor != after.hypervisor)
    add("hypervisor", '"' + before.hypervisor + '"', '"' + after.hypervisor + '"',
        to_string(after.at(table::runtime, "hypervisor_name").where));
  for (const auto& row : all_keys()) {
    const auto& was = before.settings[index_of(row)];
    const auto& is = after.settings[index_of(row)];
    if (was.content != is.content)
      add(path_of(row), to_toml(was.content), to_toml(is.content), to_string(is.where));
  }
  return out;
}

std::string to_text(const std::vector<v1::ConfigDiff>& diffs) {
  std::string out;
  for (const auto& each : diffs) {
    const auto or_unset = [](const std::string& text) {
      return text.empty() ? std::string{"not set"} : escaped(text, 4096);
    };
    out += each.key() + ": " + or_unset(each.before()) + " -> " + or_unset(each.after()) + "  # " + each.where() + '\n';
  }
  return out;
}

std::vector<std::string> watch_set(const std::string& path, const sources& from) {
  namespace fs = std::filesystem;
  std::vector<std::string> out;
  std::set<std::string> seen;
  const auto add = [&](const fs::path& each) {
    if (!each.empty() && seen.insert(each.string()).second)
      out.push_back(each.string());
  };
  std::error_code ignored;
  const auto named = path.empty() ? fs::path{from.path} : fs::absolute(path, ignored).lexically_normal();
  // an editor replaces a file by renaming another over it: the directory tells
  add(named.parent_path());
  if (!from.path.empty()) {
    add(fs::path{from.path}.parent_path());
    add(fs::path{from.path}.parent_path() / "config.d");
  }
  add(named);
  add(from.path);
  for (std::size_t i = 1; i < from.files.size(); ++i)
    add(from.files[i].path);
  return out;
}

} // namespace caisson::config
