#include "guest/agent/agent.hpp"
#include "guest/agent/boot.hpp"
#include "guest/agent/facts.hpp"
#include "guest/agent/report.hpp"

#include <unistd.h>

#include <cstdlib>
#include <cstring>

// caisson-agent: process 1 of the guest. For tests it also serves one connected socket as an ordinary process
// (--test-socket FD); it then changes nothing of the machine.
int main(int argc, char** argv) {
  using namespace caisson::agent;
  if (argc == 2 && std::strcmp(argv[1], "--version") == 0) {
    constexpr char text[] = "caisson-agent " CAISSON_VERSION "\n";
    return ::write(STDOUT_FILENO, text, sizeof text - 1) < 0;
  }
  agent_settings settings;
  settings.boot_mem_total_bytes = mem_total_bytes();
  if (argc == 3 && std::strcmp(argv[1], "--test-socket") == 0) {
    agent{settings}.run(unique_fd{std::atoi(argv[2])});
    return 0;
  }
  if (::getpid() != 1) {
    report("runs as the first process of a guest, or with --test-socket FD");
    return 2;
  }
  set_is_init(true);
  report("version " CAISSON_VERSION);
  settings.is_init = true;
  mount_file_systems();
  online_new_memory_as_movable();
  // Listens for device events before the modules make some.
  agent serving{settings};
  load_modules();
  set_up_machine();
  serving.run(unique_fd{});
}
