#include "tests/conformance/libvirt_daemon.hpp"

#include <cstdlib>

namespace caisson::tests {

std::string libvirt_daemon_uri(std::string& why_not) {
  if (const char* uri = std::getenv("CAISSON_TEST_LIBVIRT_URI"); uri && *uri)
    return uri;
  why_not = "CAISSON_TEST_LIBVIRT_URI names no running libvirt (qemu+unix:///system?socket=PATH)";
  return {};
}

} // namespace caisson::tests
