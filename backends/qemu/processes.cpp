#include "backends/qemu/processes.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <charconv>
#include <fstream>
#include <sstream>
#include <vector>

namespace caisson::qemu {
namespace {

constexpr std::size_t kept_endings = 256;

std::string read_file(const std::string& path) {
  std::ifstream in{path, std::ios::binary};
  std::ostringstream all;
  all << in.rdbuf();
  return all.str();
}

std::optional<pid_t> to_pid(std::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' '))
    text.remove_suffix(1);
  pid_t pid = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), pid);
  if (error != std::errc{} || end != text.data() + text.size() || pid <= 1)
    return {};
  return pid;
}

bool runs_domain(pid_t pid, std::string_view domain_name) {
  // libvirt starts QEMU with `-name guest=NAME,debug-threads=on`.
  auto command = read_file("/proc/" + std::to_string(pid) + "/cmdline");
  return command.find("guest=" + std::string{domain_name} + ",") != command.npos;
}

std::optional<process> as_vmm(pid_t pid, std::string_view domain_name) {
  auto stat = read_stat(pid);
  if (!stat || stat->state == 'Z' || stat->state == 'X' || !runs_domain(pid, domain_name))
    return {};
  return process{pid, stat->start_ticks};
}

template <class Visit>
void for_each_number(const std::string& directory, Visit visit) {
  DIR* d = ::opendir(directory.c_str());
  if (!d)
    return;
  while (auto* entry = ::readdir(d))
    if (auto pid = to_pid(entry->d_name))
      visit(*pid);
  ::closedir(d);
}

constexpr unsigned long pf_exiting = 0x4;  // linux/sched.h; field 9 of /proc/PID/stat

std::string ending(const siginfo_t& info) {
  if (info.si_code == CLD_EXITED)
    return "exited with status " + std::to_string(info.si_status);
  return "was killed by signal " + std::to_string(info.si_status) + " (" + ::strsignal(info.si_status) + ")";
}

int poll_ms(std::chrono::steady_clock::time_point until) {
  auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count();
  return left < 0 ? 0 : static_cast<int>(left) + 1;
}

class pidfd {
public:
  explicit pidfd(pid_t pid) : fd_(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))) {}
  ~pidfd() {
    if (fd_ >= 0)
      ::close(fd_);
  }
  pidfd(const pidfd&) = delete;
  pidfd& operator=(const pidfd&) = delete;
  bool open() const { return fd_ >= 0; }
  void send(int signal) const { ::syscall(SYS_pidfd_send_signal, fd_, signal, nullptr, 0); }
  /// At once, before libvirt looks: it counts a zombie as alive, and looks every 200 ms.
  void reap() const {
    siginfo_t info{};
    ::waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(fd_), &info, WEXITED | WNOHANG);
  }
  bool ended_by(std::chrono::steady_clock::time_point until) const {
    for (;;) {
      pollfd p{fd_, POLLIN, 0};
      int n = ::poll(&p, 1, poll_ms(until));
      if (n > 0)
        return true;
      if (n == 0 || errno != EINTR)
        return false;
    }
  }

private:
  int fd_;
};

} // namespace

std::optional<process_stat> read_stat(pid_t pid) {
  auto text = read_file("/proc/" + std::to_string(pid) + "/stat");
  auto open = text.find('('), close = text.rfind(')');
  if (open == text.npos || close == text.npos || close < open)
    return {};
  process_stat s;
  s.command = text.substr(open + 1, close - open - 1);
  std::istringstream rest{text.substr(close + 1)};
  std::string field;
  for (int number = 3; number <= 22 && rest >> field; ++number) {
    if (number == 3)
      s.state = field[0];
    else if (number == 6)
      s.session = static_cast<pid_t>(std::stol(field));
    else if (number == 9)
      s.exiting = (std::stoul(field) & pf_exiting) != 0;
    else if (number == 22)
      s.start_ticks = std::stoull(field);
  }
  return s;
}

std::optional<process> find_vmm(const std::string& pid_file, std::string_view domain_name) {
  if (auto pid = to_pid(read_file(pid_file)))
    if (auto found = as_vmm(*pid, domain_name))
      return found;
  std::optional<process> found;
  for_each_number("/proc", [&](pid_t pid) {
    if (!found)
      found = as_vmm(pid, domain_name);
  });
  return found;
}

bool end_process(const process& victim, std::chrono::milliseconds grace,
                 std::chrono::steady_clock::time_point deadline) {
  pidfd handle{victim.pid};
  auto stat = read_stat(victim.pid);
  if (!handle.open() || !stat || stat->start_ticks != victim.start_ticks)
    return true;
  bool gone = stat->state == 'Z';
  bool deaf = stat->state == 'T' || stat->state == 't';
  if (!gone && !deaf && grace.count() > 0) {
    handle.send(SIGTERM);
    gone = handle.ended_by(std::min(deadline, std::chrono::steady_clock::now() + grace));
  }
  if (!gone) {
    handle.send(SIGKILL);
    gone = handle.ended_by(deadline);
  }
  if (gone)
    handle.reap();
  return gone;
}

void reaper::become_subreaper() {
  ::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGCHLD);
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

void reaper::reap() {
  const pid_t own_session = ::getsid(0);
  std::vector<pid_t> candidates;
  for_each_number("/proc/self/task", [&](pid_t thread) {
    std::istringstream children{read_file("/proc/self/task/" + std::to_string(thread) + "/children")};
    pid_t pid;
    while (children >> pid)
      candidates.push_back(pid);
  });
  for (auto pid : candidates) {
    auto stat = read_stat(pid);
    if (!stat || stat->state != 'Z' || stat->session == own_session)
      continue;
    // A session leader may be the middle process of libvirt's own double fork, which libvirt waits for; QEMU's own
    // -daemonize leaves one too, under QEMU's name.
    if (stat->session == pid && !stat->command.starts_with("qemu"))
      continue;
    siginfo_t info{};
    if (::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG) != 0 || info.si_pid != pid)
      continue;
    std::lock_guard lock{mutex_};
    ended_[pid] = ending(info);
    if (ended_.size() > kept_endings)
      ended_.erase(ended_.begin());
  }
}

std::string reaper::how_it_ended(pid_t pid) const {
  std::lock_guard lock{mutex_};
  auto found = ended_.find(pid);
  return found == ended_.end() ? std::string{} : found->second;
}

} // namespace caisson::qemu
