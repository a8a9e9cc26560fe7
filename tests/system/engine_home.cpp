#include "tests/system/engine_home.hpp"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <charconv>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "frontends/grpc/client.hpp"

namespace caisson::test {

namespace fs = std::filesystem;

bool gone(pid_t pid, int at_most_s) {
  int fd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0)
    return true;
  pollfd p{fd, POLLIN, 0};
  bool ended = ::poll(&p, 1, at_most_s * 1000) > 0;
  ::close(fd);
  return ended;
}

engine_home::engine_home(const std::string& name) {
  directory_ = "/dev/shm/caisson-" + name + "-XXXXXX";
  if (::mkdtemp(directory_.data()) == nullptr)
    directory_.clear();
  ::setenv("CAISSON_IDLE_EXIT_S", "2", 1);
}

engine_home::~engine_home() {
  if (directory_.empty())
    return;
  end_engine(SIGTERM);
  std::error_code ignored;
  fs::remove_all(directory_, ignored);
}

std::vector<std::string> engine_home::words(std::vector<std::string> more) const {
  std::vector<std::string> all{CAISSON_PROGRAM, "--state-dir", directory_ + "/s", "--run-dir", run_directory()};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

program_result engine_home::caisson(std::vector<std::string> more, std::string input, int at_most_s) const {
  return run_program(words(std::move(more)), std::move(input), at_most_s);
}

pid_t engine_home::engine_pid() const {
  auto connected = door::client::connect(run_directory() + "/engine.sock");
  if (!connected || connected->index() != 0)
    return 0;
  return static_cast<pid_t>(std::get<0>(*connected)->engine().pid());
}

bool engine_home::end_engine(int signal) const {
  auto pid = engine_pid();
  return pid > 0 && ::kill(pid, signal) == 0 && gone(pid, 30);
}

std::vector<pid_t> engine_home::processes() const {
  std::vector<pid_t> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator{"/proc", ignored}) {
    const auto name = entry.path().filename().string();
    pid_t pid = 0;
    if (std::from_chars(name.data(), name.data() + name.size(), pid).ptr != name.data() + name.size())
      continue;
    std::ifstream in{entry.path() / "cmdline", std::ios::binary};
    const std::string line{std::istreambuf_iterator<char>{in}, {}};
    if (line.find(directory_ + "/") != std::string::npos)
      found.push_back(pid);
  }
  return found;
}

std::vector<fs::path> engine_home::run_files() const {
  std::vector<fs::path> found;
  std::error_code ignored;
  for (fs::recursive_directory_iterator at{run_directory(), fs::directory_options::skip_permission_denied, ignored},
       end;
       at != end; at.increment(ignored))
    found.push_back(at->path());
  return found;
}

} // namespace caisson::test
