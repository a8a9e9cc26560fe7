#pragma once

#include <string>

namespace caisson::tests {

/// A libvirt daemon to run QEMU's line over: the one that CAISSON_TEST_LIBVIRT_URI names, else a libvirtd of our own in a
/// mount namespace (private_libvirtd), started at the first call and ended with this process. "" and `why_not` where
/// there is neither.
std::string libvirt_daemon_uri(std::string& why_not);

} // namespace caisson::tests
