#pragma once

// The two directories of one engine, and the command line pointed at them.

#include <sys/types.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/frontends/program.hpp"

namespace caisson::test {

/// Waits until this process is gone; false after `at_most_s`.
bool gone(pid_t pid, int at_most_s);

class engine_home {
public:
  /// Directories below a new one, on /dev/shm since sockets need short paths. An engine ends by itself 2 s after its
  /// last sandbox and its last caller.
  explicit engine_home(const std::string& name);
  /// Ends the engine and removes the directories. Sandboxes are the test's own affair.
  ~engine_home();
  engine_home(const engine_home&) = delete;

  /// `caisson` with these directories.
  std::vector<std::string> words(std::vector<std::string> more) const;
  program_result caisson(std::vector<std::string> more, std::string input = {}, int at_most_s = 120) const;

  /// 0: there is none.
  pid_t engine_pid() const;
  /// Sends it this signal and waits until it is gone; false where there is none, or it stays.
  bool end_engine(int signal) const;

  /// Every process that was started with one of the directories among its words.
  std::vector<pid_t> processes() const;
  /// Every file below the run directory.
  std::vector<std::filesystem::path> run_files() const;

  const std::string& directory() const { return directory_; }
  std::string run_directory() const { return directory_ + "/r"; }

private:
  std::string directory_;
};

} // namespace caisson::test
