#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace caisson::cli {

/// One line on the terminal's stderr for work that takes over a second, erased at its end. Says nothing where stderr is
/// no terminal, or with json.
class progress {
public:
  progress(std::string text, bool json);
  ~progress();
  void say(std::string text);
  void end(); ///< erases the line; nothing is written after it

private:
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::string text_;
  bool ended_ = false;
  std::thread thread_;
};

} // namespace caisson::cli
