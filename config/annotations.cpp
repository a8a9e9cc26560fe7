#include "config/load.hpp"

#include <memory>

#include <re2/re2.h>

#include "config/nearest.hpp"

namespace caisson::config {
namespace {

constexpr std::string_view prefix = "io.katacontainers.config.";
constexpr std::size_t longest_name = 256;
constexpr std::size_t longest_text = 65536;

/// Annotations of Kata that name no key: what happens to each.
struct known_annotation {
  std::string_view name;
  std::string_view why;
};
constexpr known_annotation without_key[] = {
    {"hypervisor.kernel_hash", "a hash that was asked for must not go unchecked, and the guest is Caisson's own"},
    {"hypervisor.image_hash", "a hash that was asked for must not go unchecked, and the guest is Caisson's own"},
    {"hypervisor.initrd_hash", "a hash that was asked for must not go unchecked, and the guest is Caisson's own"},
    {"hypervisor.hypervisor_hash", "programs of the host are not checked by a hash"},
    {"hypervisor.path_hash", "programs of the host are not checked by a hash"},
    {"hypervisor.hypervisorctl_hash", "programs of the host are not checked by a hash"},
    {"hypervisor.jailer_hash", "programs of the host are not checked by a hash"},
    {"hypervisor.firmware_hash", "firmware is not checked by a hash"},
    {"hypervisor.firmware_volume_hash", "firmware is not checked by a hash"},
    {"hypervisor.asset_hash_type", "nothing is checked by a hash"},
};

/// Kata's annotations outside of io.katacontainers.config.
constexpr std::string_view kata_prefix = "io.katacontainers.";
constexpr std::string_view internal_prefix = "io.katacontainers.pkg.";
constexpr known_annotation outside_config[] = {
    {"io.katacontainers.config_path", "whoever starts the sandbox names the file, not the pod"},
    {"io.katacontainers.asset_hash_type", "nothing is checked by a hash"},
};

/// Keys whose annotation names a file of the host, and the list that says which.
constexpr std::pair<std::string_view, std::string_view> path_lists[] = {
    {"path", "valid_hypervisor_paths"},
    {"ctlpath", "valid_ctlpaths"},
    {"jailer_path", "valid_jailer_paths"},
    {"virtio_fs_daemon", "valid_virtio_fs_daemon_paths"},
    {"vhost_user_store_path", "valid_vhost_user_store_paths"},
    {"entropy_source", "valid_entropy_sources"},
    {"file_mem_backend", "valid_file_mem_backends"},
};

bool has_dots(std::string_view path) {
  return path.find("/../") != path.npos || path.ends_with("/..") || path.find("/./") != path.npos ||
         path.find("//") != path.npos;
}

/// The gate is what the files say, never what another annotation has changed.
struct gate {
  std::vector<std::unique_ptr<RE2>> expressions;
  explicit gate(const std::vector<std::string>& texts) {
    RE2::Options quiet;
    quiet.set_log_errors(false);
    quiet.set_max_mem(1 << 20);
    for (const auto& each : texts)
      expressions.push_back(std::make_unique<RE2>(each, quiet));
  }
  bool opens(std::string_view name) const {
    for (const auto& each : expressions)
      if (each->ok() && RE2::FullMatch(re2::StringPiece(name.data(), name.size()), *each))
        return true;
    return false;
  }
};

std::string all_of(const std::vector<std::string>& list) {
  std::string out;
  for (const auto& each : list)
    out += (out.empty() ? "" : ", ") + escaped(each);
  return out.empty() ? "none" : out;
}

} // namespace

bool glob_match(std::string_view pattern, std::string_view path) {
  std::size_t p = 0, t = 0;
  std::size_t star = pattern.npos, mark = 0;
  const auto matches_one = [&](std::size_t at, char c, std::size_t& next) {
    next = at + 1;
    if (pattern[at] == '?')
      return c != '/';
    if (pattern[at] == '\\' && at + 1 < pattern.size()) {
      next = at + 2;
      return pattern[at + 1] == c;
    }
    if (pattern[at] != '[')
      return pattern[at] == c;
    const auto close = pattern.find(']', at + 2);
    if (close == pattern.npos)
      return c == '[';
    next = close + 1;
    auto set = pattern.substr(at + 1, close - at - 1);
    const bool turned = !set.empty() && (set.front() == '!' || set.front() == '^');
    if (turned)
      set.remove_prefix(1);
    bool inside = false;
    for (std::size_t i = 0; i < set.size(); ++i) {
      if (i + 2 < set.size() && set[i + 1] == '-') {
        inside = inside || (c >= set[i] && c <= set[i + 2]);
        i += 2;
      } else {
        inside = inside || c == set[i];
      }
    }
    return c != '/' && inside != turned;
  };
  while (t < path.size()) {
    std::size_t next = 0;
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      mark = t;
    } else if (p < pattern.size() && matches_one(p, path[t], next)) {
      p = next;
      ++t;
    } else if (star != pattern.npos && path[mark] != '/') {
      p = star + 1;
      t = ++mark;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*')
    ++p;
  return p == pattern.size();
}

void apply_annotations(layered& config, const load_options& options, std::vector<problem>& problems) {
  if (options.annotations.empty())
    return;
  const auto& expressions = config.list(table::hypervisor, "enable_annotations");
  const gate allowed(expressions);
  const layered files = config;
  for (const auto& [name, text] : options.annotations) {
    if (!name.starts_with(kata_prefix) || name.starts_with(internal_prefix))
      continue;
    const place where{{}, {}, "annotation " + escaped(name, longest_name)};
    const auto refuse = [&](std::string what, std::string allowed_text = {}, std::string near = {}) {
      problems.push_back(make_problem(
          where, {{}, {}, std::move(what), std::move(allowed_text), std::move(near), v1::CONFIG_SEVERITY_ERROR}));
    };
    if (name.size() > longest_name || text.size() > longest_text) {
      refuse("name or value is too long");
      continue;
    }
    if (!name.starts_with(prefix)) {
      bool known = false;
      for (const auto& each : outside_config)
        if (each.name == name) {
          refuse("refused: " + std::string{each.why});
          known = true;
        }
      if (!known)
        problems.push_back(make_problem(where, {{}, {}, "has no meaning here", {}, {}, v1::CONFIG_SEVERITY_WARNING}));
      continue;
    }
    const auto rest = std::string_view{name}.substr(prefix.size());
    const auto dot = rest.find('.');
    const auto group = rest.substr(0, dot);
    const auto base = dot == rest.npos ? std::string_view{} : rest.substr(dot + 1);
    const key* row = find_key_by_annotation(group, base);
    if (!row) {
      bool known = false;
      for (const auto& each : without_key)
        if (each.name == rest) {
          refuse("refused: " + std::string{each.why});
          known = true;
        }
      if (known)
        continue;
      std::vector<std::string> names;
      for (const auto& each : all_keys())
        if (!each.annotation.empty())
          names.push_back(std::string{table_name(each.in)} + '.' +
                          std::string{each.annotation == "=" ? each.name : each.annotation});
      const std::vector<std::string_view> views(names.begin(), names.end());
      auto near = nearest(rest, views);
      // The file's key and the annotation are spelt differently: default_maxvcpus, default_max_vcpus.
      if (auto* by_key = find_key_by_path(rest); by_key && !by_key->annotation.empty())
        near = std::string{table_name(by_key->in)} + '.' +
               std::string{by_key->annotation == "=" ? by_key->name : by_key->annotation};
      refuse("unknown annotation", {}, near.empty() ? near : std::string{prefix} + near);
      continue;
    }
    if (group == "hypervisor" && !allowed.opens(base)) {
      refuse("is not enabled: no expression of enable_annotations at " +
                 to_string(files.at(table::hypervisor, "enable_annotations").where) + " matches \"" +
                 std::string{base} + "\" as a whole",
             all_of(expressions));
      continue;
    }
    bool path_is_valid = true;
    for (const auto& [key_name, list_name] : path_lists) {
      if (group != "hypervisor" || row->name != key_name)
        continue;
      const auto& globs = files.list(table::hypervisor, list_name);
      path_is_valid = false;
      for (const auto& glob : globs)
        path_is_valid = path_is_valid || (glob_match(glob, text) && !has_dots(text));
      if (!path_is_valid)
        refuse("\"" + escaped(text) + "\" is none of " + std::string{list_name} + " at " +
                   to_string(files.at(table::hypervisor, list_name).where),
               all_of(globs));
    }
    if (!path_is_valid)
      continue;
    auto read = from_text(*row, text);
    if (!read) {
      problems.push_back(make_problem(
          where, {config.full_name(*row), text, "cannot be read", allowed_of(*row), {}, v1::CONFIG_SEVERITY_ERROR}));
      continue;
    }
    if (!take(config, *row, std::move(*read), origin::annotation, where, text, "a value", problems))
      continue;
    const auto& set = config.settings[index_of(*row)];
    if (row->what != treatment::honoured && !asks_for_nothing(*row, set.content)) {
      const bool refused = row->what == treatment::refused;
      problems.push_back(make_problem(where, {config.full_name(*row),
                                              text,
                                              (refused ? "refused: " : "has no meaning here: ") + std::string{row->why},
                                              {},
                                              {},
                                              refused ? v1::CONFIG_SEVERITY_ERROR : v1::CONFIG_SEVERITY_WARNING}));
    }
  }
}

} // namespace caisson::config
