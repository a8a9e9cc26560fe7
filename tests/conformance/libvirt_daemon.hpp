#pragma once

#include <string>

namespace caisson::tests {

/// A libvirt daemon to run QEMU's line over: the one that CAISSON_TEST_LIBVIRT_URI names. "" and `why_not` without one.
std::string libvirt_daemon_uri(std::string& why_not);

} // namespace caisson::tests
