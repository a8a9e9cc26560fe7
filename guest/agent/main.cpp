#include "guest/agent/agent.hpp"
#include "guest/agent/boot.hpp"
#include "guest/agent/facts.hpp"
#include "guest/agent/report.hpp"

#include <unistd.h>

#include <cstdlib>
#include <cstring>

// caisson-agent: process 1 of the guest. For tests it also serves one connected socket (--test-socket FD), or the
// connections of a listening one (--test-listen FD), as an ordinary process; it then changes nothing of the machine.
// --cgroup DIR, --memory DIR and --overcommit FILE stand in for the workload's cgroup, for /sys/devices/system/memory and
// for /proc/sys/vm/overcommit_memory.
int main(int argc, char** argv) {
  using namespace caisson::agent;
  if (argc == 2 && std::strcmp(argv[1], "--version") == 0) {
    constexpr char text[] = "caisson-agent " CAISSON_VERSION "\n";
    return ::write(STDOUT_FILENO, text, sizeof text - 1) < 0;
  }
  agent_settings settings;
  settings.boot_mem_total_bytes = mem_total_bytes();
  if (argc >= 3 && std::strcmp(argv[1], "--test-socket") == 0) {
    for (int at = 3; at + 1 < argc; at += 2) {
      if (std::strcmp(argv[at], "--cgroup") == 0)
        settings.workload_cgroup = argv[at + 1];
      else if (std::strcmp(argv[at], "--overcommit") == 0)
        settings.overcommit_memory = argv[at + 1];
      else if (std::strcmp(argv[at], "--memory") == 0) {
        use_memory_root(argv[at + 1]);
        settings.may_change_blocks = true;
      }
    }
    agent{settings}.run_on(unique_fd{std::atoi(argv[2])});
    return 0;
  }
  if (argc == 3 && std::strcmp(argv[1], "--test-listen") == 0) {
    agent{settings}.run_behind(unique_fd{std::atoi(argv[2])});
    return 0;
  }
  if (::getpid() != 1) {
    report("runs as the first process of a guest, or with --test-socket FD or --test-listen FD");
    return 2;
  }
  set_is_init(true);
  report("version " CAISSON_VERSION);
  settings.is_init = true;
  settings.workload_cgroup = "/sys/fs/cgroup/workload";
  settings.overcommit_memory = "/proc/sys/vm/overcommit_memory";
  mount_file_systems();
  online_new_memory();
  // Listens for device events before the modules make some.
  agent serving{settings};
  load_modules();
  set_up_machine();
  serving.run();
}
