#pragma once

// Runs a program as a person would: words, standard input, what it says and how it ends.

#include <sys/types.h>

#include <string>
#include <vector>

namespace caisson::test {

struct program_result {
  int status = -1; ///< exit status, 128+n for a signal, -1 where it had to be killed for taking too long
  std::string out, err;
};

class program {
public:
  /// The first word is the program. `keep_stdin_open`: standard input is closed only by finish().
  explicit program(std::vector<std::string> words, std::string input = {}, bool keep_stdin_open = false);
  ~program();
  program(const program&) = delete;

  void signal(int number);
  /// Reads until stdout holds this text; false after `at_most_s`.
  bool wait_output(const std::string& text, int at_most_s = 10);
  program_result finish(int at_most_s = 20);
  pid_t pid() const { return pid_; }

private:
  void send_some();
  bool read_some(int timeout_ms); // false: both ends are closed

  pid_t pid_ = -1;
  int in_ = -1, out_ = -1, err_ = -1;
  std::string pending_; // of standard input
  bool close_when_sent_ = false;
  program_result result_;
};

program_result run_program(std::vector<std::string> words, std::string input = {}, int at_most_s = 20);

} // namespace caisson::test
