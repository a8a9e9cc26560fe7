#pragma once

/// Tells that files may have changed (inotify on their directories), once a burst. Editors that rename a new file over the
/// old one are seen, since it is the directory that is watched; so are files that come and go.

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace caisson::reactor {

class reactor;
class file_watch_state;

/// Thread safe. Its end ends the watching; the callback may be running then.
class file_watch {
public:
  /// `changed` runs on the reactor's thread, about a tenth of a second after the last change of a burst. Directories that
  /// are not there are left out: watch again when they may have come (their parent's change tells).
  file_watch(reactor& on, std::vector<std::string> directories, std::function<void()> changed);
  ~file_watch();
  file_watch(const file_watch&) = delete;
  file_watch& operator=(const file_watch&) = delete;

private:
  std::shared_ptr<file_watch_state> state_;
};

} // namespace caisson::reactor
