#include "actors/config/config.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <set>

namespace caisson {
namespace {

using self_ptr = config_actor::stateful_pointer<config_state>;

constexpr std::size_t most_files = 64;
constexpr std::chrono::milliseconds journal_deadline{30'000};

std::string errors_of(const config::outcome& out) {
  std::string text;
  for (const auto& p : out.problems)
    if (p.severity() == v1::CONFIG_SEVERITY_ERROR)
      text += (text.empty() ? "" : "\n") + p.text();
  return text.empty() ? "the configuration cannot be used" : text;
}

// The file alone, as a sandbox without annotations and options would get it.
config::outcome plain(self_ptr self, const std::string& path, const config::sources& from) {
  v1::ResolveConfig ask;
  ask.set_path(path);
  return config::resolve(ask, from, self->state.set.host);
}

void tell(self_ptr self, std::string type, v1::ConfigReloaded what, std::string text) {
  auto& st = self->state;
  if (!st.set.journal)
    return;
  v1::JournalRecord record;
  auto* event = record.add_events();
  event->set_unix_ms(st.set.now_unix_ms());
  event->set_type(std::move(type));
  event->set_text(std::move(text));
  *event->mutable_config() = std::move(what);
  self->request(st.set.journal, journal_deadline, std::move(record))
      .then(
          [self](const v1::JournalRecorded& written) {
            v1::EventBatch batch;
            *batch.mutable_events() = written.events();
            self->send(self->state.set.events, std::move(batch));
          },
          [](const caf::error&) {}); // the next change tells again
}

void watch(self_ptr self, const std::string& path, const config::sources& from) {
  auto& st = self->state;
  if (!st.set.watch)
    return;
  auto me = caf::actor_cast<config_actor>(self->ctrl());
  auto weak = caf::actor_cast<caf::weak_actor_ptr>(me);
  st.set.watch(path, config::watch_set(path, from), [weak, path] {
    if (auto strong = caf::actor_cast<caf::strong_actor_ptr>(weak)) {
      v1::ReloadConfig again;
      again.set_path(path);
      caf::anon_send(caf::actor_cast<config_actor>(strong), std::move(again));
    }
  });
}

// A file that is used for the first time is remembered and watched from then on.
config_state::file& remember(self_ptr self, const std::string& path, const config::sources& from) {
  auto& files = self->state.files;
  auto at = files.find(path);
  if (at != files.end())
    return at->second;
  if (files.size() >= most_files)
    files.erase(std::prev(files.end())); // never the default file, whose name sorts first
  auto& file = files[path];
  auto out = plain(self, path, from);
  if (out.config) {
    file.good = from;
    file.resolved = std::move(*out.config);
  }
  watch(self, path, from);
  return file;
}

caf::result<v1::ResolvedConfig> on_resolve(self_ptr self, const v1::ResolveConfig& m) {
  auto& st = self->state;
  auto from = config::read_sources(m.path(), m.allow_writable(), st.set.host);
  auto out = config::resolve(m, from, st.set.host);
  auto& file = remember(self, m.path(), from);
  if (out.config)
    return std::move(*out.config);
  auto wrong = errors_of(out);
  bool has_good = !file.good.path.empty();
  if (m.path().empty() && has_good && !plain(self, "", from).config) {
    auto older = config::resolve(m, file.good, st.set.host);
    if (older.config) {
      auto* w = older.config->add_warnings();
      w->set_where(file.good.path);
      w->set_text(fmt::format("{}: the file has errors now; its last good content was used. The first one: {}",
                              file.good.path, wrong.substr(0, wrong.find('\n'))));
      return std::move(*older.config);
    }
  }
  return make_error(ec::configuration, wrong);
}

std::string in_words(const v1::ConfigReloaded& told) {
  std::string text = told.path();
  for (const auto& d : told.diffs())
    text += fmt::format("{} {}: {} -> {}", &d == &told.diffs(0) ? ":" : ",", d.key(), d.before().empty() ? "unset" : d.before(),
                        d.after().empty() ? "unset" : d.after());
  return text;
}

v1::ConfigReloaded on_reload(self_ptr self, const v1::ReloadConfig& m) {
  auto& st = self->state;
  auto from = config::read_sources(m.path(), false, st.set.host);
  auto& file = remember(self, m.path(), from);
  watch(self, m.path(), from); // drop-ins come and go
  auto out = plain(self, m.path(), from);
  v1::ConfigReloaded told;
  told.set_accepted(out.config.has_value());
  told.set_path(from.path.empty() ? file.good.path : from.path);
  for (const auto& p : out.problems)
    *told.add_problems() = p;
  if (!out.config) {
    auto wrong = errors_of(out);
    if (std::exchange(file.refused, wrong) != wrong)
      tell(self, "config.refused", told, wrong);
    return told;
  }
  std::map<std::string, std::string> before;
  for (const auto& v : file.resolved.values())
    before[v.key()] = v.value();
  auto add = [&](const std::string& key, std::string old, std::string now, std::string where) {
    auto* diff = told.add_diffs();
    diff->set_key(key);
    diff->set_before(std::move(old));
    diff->set_after(std::move(now));
    diff->set_where(std::move(where));
  };
  for (const auto& v : out.config->values()) {
    auto known = before.extract(v.key());
    if (known.empty() || known.mapped() != v.value())
      add(v.key(), known.empty() ? "" : known.mapped(), v.value(), v.origin());
  }
  for (const auto& [key, value] : before)
    add(key, value, "", "");
  bool mended = !std::exchange(file.refused, {}).empty();
  file.good = std::move(from);
  file.resolved = std::move(*out.config);
  if (told.diffs_size() > 0 || mended)
    tell(self, "config.changed", told, in_words(told));
  return told;
}

} // namespace

config_actor::behavior_type config_keeper(self_ptr self, config_settings set) {
  self->state.set = std::move(set);
  return {
      [self](const v1::ResolveConfig& m) { return on_resolve(self, m); },
      [self](const v1::ReloadConfig& m) { return on_reload(self, m); },
  };
}

} // namespace caisson
