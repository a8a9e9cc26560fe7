/// caisson-backend-qemu: libvirt in a process of its own, one a state directory. It may be killed and started again at any
/// time; VMs live on and are found again.

#include <signal.h>
#include <unistd.h>

#include <iostream>

#include "backends/host/server.hpp"
#include "backends/qemu/driver.hpp"

int main(int argc, char** argv) {
  std::string error;
  auto where = caisson::host::parse_arguments(argc, argv, error);
  if (!where) {
    std::cerr << error << '\n';
    return 2;
  }
  ::signal(SIGPIPE, SIG_IGN);
  caisson::qemu::reaper::become_subreaper();
  static caisson::qemu::driver driver{*where};
  ::_exit(caisson::host::serve(caisson::host::protocol_fd, driver));
}
