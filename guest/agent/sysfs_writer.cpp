#include "guest/agent/sysfs_writer.hpp"

#include "guest/agent/files.hpp"
#include "guest/agent/spawn.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

namespace caisson::agent {

void sysfs_writer::write(batch files, std::function<void(int)> on_done) {
  waiting_.push_back({std::move(files), std::move(on_done)});
  start_next();
}

void sysfs_writer::start_next() {
  while (child_ <= 0 && !waiting_.empty()) {
    auto next = std::move(waiting_.front());
    waiting_.pop_front();
    child_ = ::fork();
    if (child_ == 0) {
      reset_signals();
      int first = 0;
      for (const auto& [path, text] : next.files)
        if (const int failed = write_file(path, text); failed != 0 && first == 0)
          first = failed;
      _exit(first);
    }
    if (child_ < 0)
      next.on_done(errno);
    else
      on_done_ = std::move(next.on_done);
  }
}

bool sysfs_writer::on_exit(pid_t pid, int status) {
  if (child_ <= 0 || pid != child_)
    return false;
  child_ = 0;
  const auto done = std::exchange(on_done_, nullptr);
  done(WIFEXITED(status) ? WEXITSTATUS(status) : EINTR);
  start_next();
  return true;
}

} // namespace caisson::agent
