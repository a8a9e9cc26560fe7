#include <unistd.h>

#include <csignal>
#include <iostream>

#include "examples/backend_template/driver.hpp"

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  std::string error;
  auto where = caisson::host::parse_arguments(argc, argv, error);
  if (!where) {
    std::cerr << error << '\n';
    return 2;
  }
  backend_template::driver driver{*where};
  ::_exit(caisson::host::serve(caisson::host::protocol_fd, driver)); // the VMs live on, and so may threads that wait
}
