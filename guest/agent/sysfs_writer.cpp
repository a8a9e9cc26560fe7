#include "guest/agent/sysfs_writer.hpp"

#include "guest/agent/files.hpp"
#include "guest/agent/spawn.hpp"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace caisson::agent {

namespace {

// A killed job that the kernel does not let go is answered all the same.
constexpr std::chrono::milliseconds to_die{1'000};

} // namespace

void sysfs_writer::write(batch files, std::function<void(int)> on_done) {
  job next;
  next.work = [files = std::move(files)] {
    int first = 0;
    for (const auto& [path, text] : files)
      if (const int failed = write_file(path, text); failed != 0 && first == 0)
        first = failed;
    return first;
  };
  next.on_done = std::move(on_done);
  add(std::move(next));
}

void sysfs_writer::run(std::function<int()> work, milliseconds at_most, std::function<void(int)> on_done) {
  job next;
  next.work = std::move(work);
  next.on_done = std::move(on_done);
  next.timer = loop_.after(at_most, [this, number = last_number_ + 1] { too_late(number); });
  add(std::move(next));
}

void sysfs_writer::add(job next) {
  next.number = ++last_number_;
  waiting_.push_back(std::move(next));
  start_next();
}

void sysfs_writer::start_next() {
  while (child_ <= 0 && !waiting_.empty()) {
    running_ = std::move(waiting_.front());
    waiting_.pop_front();
    child_ = ::fork();
    if (child_ == 0) {
      reset_signals();
      _exit(running_.work());
    }
    if (child_ > 0)
      return;
    if (running_.timer)
      loop_.cancel(*running_.timer);
    if (const auto done = std::exchange(running_.on_done, nullptr))
      done(errno);
  }
}

void sysfs_writer::too_late(std::uint64_t number) {
  std::function<void(int)> done;
  if (child_ > 0 && running_.number == number) {
    if (running_.timer) { // the first time
      running_.timer.reset();
      ::kill(child_, SIGKILL);
      loop_.after(to_die, [this, number] { too_late(number); });
      return;
    }
    done = std::exchange(running_.on_done, nullptr);
  } else {
    const auto it = std::find_if(waiting_.begin(), waiting_.end(), [&](const job& j) { return j.number == number; });
    if (it == waiting_.end())
      return;
    done = std::move(it->on_done);
    waiting_.erase(it);
  }
  if (done)
    done(ETIMEDOUT);
}

bool sysfs_writer::on_exit(pid_t pid, int status) {
  if (child_ <= 0 || pid != child_)
    return false;
  child_ = 0;
  const auto ended = std::exchange(running_, {});
  if (ended.timer)
    loop_.cancel(*ended.timer);
  if (ended.on_done)
    ended.on_done(WIFEXITED(status) ? WEXITSTATUS(status) : ETIMEDOUT);
  start_next();
  return true;
}

} // namespace caisson::agent
