#include "frontends/cli/terminal.hpp"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>

namespace caisson::cli {
namespace {

constexpr std::array taken{SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH};
std::array<struct sigaction, taken.size()> before;
int ends[2] = {-1, -1};

void on_signal(int number) {
  int saved = errno;
  auto byte = static_cast<unsigned char>(number);
  [[maybe_unused]] auto n = ::write(ends[1], &byte, 1);
  errno = saved;
}

} // namespace

std::optional<std::pair<std::uint32_t, std::uint32_t>> terminal_size() {
  for (int fd : {1, 0, 2}) {
    winsize size{};
    if (::ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 && size.ws_col > 0)
      return std::pair<std::uint32_t, std::uint32_t>{size.ws_row, size.ws_col};
  }
  return std::nullopt;
}

struct raw_terminal::saved {
  termios settings;
};

raw_terminal::raw_terminal(bool wanted) {
  termios now{};
  if (!wanted || ::tcgetattr(0, &now) != 0)
    return;
  before_ = new saved{now};
  ::cfmakeraw(&now);
  ::tcsetattr(0, TCSADRAIN, &now);
}

raw_terminal::~raw_terminal() {
  restore();
}

void raw_terminal::restore() {
  if (!before_)
    return;
  ::tcsetattr(0, TCSADRAIN, &before_->settings);
  delete before_;
  before_ = nullptr;
}

signal_pipe::signal_pipe() {
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0)
    return;
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  for (std::size_t i = 0; i < taken.size(); ++i) {
    ::sigaction(taken[i], nullptr, &before[i]);
    if (before[i].sa_handler != SIG_IGN) // nohup, and jobs in the background of a script
      ::sigaction(taken[i], &action, nullptr);
  }
}

signal_pipe::~signal_pipe() {
  for (std::size_t i = 0; i < taken.size(); ++i)
    ::sigaction(taken[i], &before[i], nullptr);
  for (int& fd : ends) {
    if (fd >= 0)
      ::close(fd);
    fd = -1;
  }
}

int signal_pipe::fd() const {
  return ends[0];
}

int signal_pipe::next() {
  unsigned char byte = 0;
  return ::read(ends[0], &byte, 1) == 1 ? byte : 0;
}

} // namespace caisson::cli
