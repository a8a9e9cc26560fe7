#include "actors/config/config.hpp"

#include <fmt/format.h>

namespace caisson {
namespace {

using self_ptr = config_actor::stateful_pointer<config_state>;

caf::error all_problems(const config::outcome& out) {
  std::string text;
  for (const auto& p : out.problems)
    if (p.severity() == v1::CONFIG_SEVERITY_ERROR)
      text += (text.empty() ? "" : "\n") + p.text();
  return make_error(ec::configuration, text.empty() ? "the configuration cannot be used" : text);
}

caf::result<v1::ResolvedConfig> on_resolve(self_ptr self, const v1::ResolveConfig& m) {
  auto out = config::resolve(m, self->state.host);
  if (!out.config)
    return all_problems(out);
  return std::move(*out.config);
}

caf::result<v1::ConfigReloaded> on_reload(self_ptr self, const v1::ReloadConfig& m) {
  auto& last = self->state.last;
  v1::ResolveConfig ask;
  ask.set_path(m.path());
  auto out = config::resolve(ask, self->state.host);
  v1::ConfigReloaded told;
  told.set_accepted(out.config.has_value());
  told.set_path(out.config ? out.config->path() : last.path());
  for (const auto& p : out.problems)
    *told.add_problems() = p;
  if (!out.config)
    return told;
  std::map<std::string, std::string> before;
  for (const auto& v : last.values())
    before[v.key()] = v.value();
  for (const auto& v : out.config->values()) {
    auto known = before.extract(v.key());
    if (!known.empty() && known.mapped() == v.value())
      continue;
    auto* diff = told.add_diffs();
    diff->set_key(v.key());
    diff->set_before(known.empty() ? "" : known.mapped());
    diff->set_after(v.value());
    diff->set_where(v.origin());
  }
  for (const auto& [key, value] : before) {
    auto* diff = told.add_diffs();
    diff->set_key(key);
    diff->set_before(value);
  }
  last = std::move(*out.config);
  return told;
}

} // namespace

config_actor::behavior_type config_keeper(self_ptr self, config::host_facts host) {
  self->state.host = std::move(host);
  return {
      [self](const v1::ResolveConfig& m) { return on_resolve(self, m); },
      [self](const v1::ReloadConfig& m) { return on_reload(self, m); },
  };
}

} // namespace caisson
