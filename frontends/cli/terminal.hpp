#pragma once

#include <cstdint>
#include <optional>
#include <utility>

namespace caisson::cli {

/// Rows and columns of the terminal behind one of stdin, stdout, stderr; nullopt where none is one.
std::optional<std::pair<std::uint32_t, std::uint32_t>> terminal_size();

/// Puts the terminal behind stdin into raw mode for as long as it lives. Does nothing where stdin is none.
class raw_terminal {
public:
  explicit raw_terminal(bool wanted);
  ~raw_terminal();
  void restore();
  raw_terminal(const raw_terminal&) = delete;

private:
  struct saved;
  saved* before_ = nullptr;
};

/// Signals as bytes in a pipe, so that one poll() sees them beside standard input: SIGINT, SIGTERM, SIGHUP, SIGQUIT,
/// SIGWINCH. One at a time; the dispositions before are back at its end.
class signal_pipe {
public:
  signal_pipe();
  ~signal_pipe();
  int fd() const;
  int next(); ///< a signal's number, 0: none is left
  signal_pipe(const signal_pipe&) = delete;
};

} // namespace caisson::cli
