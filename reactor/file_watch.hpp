#pragma once

/// Tells that files may have changed (inotify on their directories), once a burst. Editors that rename a new file over the
/// old one are seen, since it is the directory that is watched; so are files that come and go.

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace caisson::reactor {

class reactor;
class file_watch_state;

struct watch_settings {
  /// Also every write to a file that stays open (a log that grows). The callback then runs `quiet` after the first change
  /// of a burst, and again as long as it goes on: a writer that never stops is heard all the same.
  bool writes = false;
  std::chrono::milliseconds quiet{100};
};

/// Thread safe. Its end ends the watching; the callback may be running then.
class file_watch {
public:
  /// `changed` runs on the reactor's thread, `quiet` after the last change of a burst. Directories that are not there are
  /// left out: watch again when they may have come (their parent's change tells).
  file_watch(reactor& on, std::vector<std::string> directories, std::function<void()> changed,
             watch_settings settings = {});
  ~file_watch();
  file_watch(const file_watch&) = delete;
  file_watch& operator=(const file_watch&) = delete;

private:
  std::shared_ptr<file_watch_state> state_;
};

} // namespace caisson::reactor
