#include <csignal>

#include "frontends/cli/command_line.hpp"
#include "frontends/grpc/library_log.hpp"

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN); // a closed output is noticed where it is written
  caisson::door::take_library_log({});
  return caisson::cli::run(argc, argv);
}
