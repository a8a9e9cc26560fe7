#pragma once

#include <cstdint>

namespace caisson::agent {

/// What all virtio-mem devices of this machine have plugged, in bytes, as their configuration says; 0 without one.
/// The driver shows it nowhere, so it is read from the device through the window in its PCI configuration space, which
/// the driver itself doesn't use. A few configuration cycles: not for polling.
std::uint64_t virtio_mem_plugged_bytes();

} // namespace caisson::agent
