#pragma once

/// Disks, network interfaces and shares as libvirt's documents, and back. Nothing of the host is looked at but whether a
/// disk is a block device.
///
/// Each stands behind a root port, so that what came at boot can leave as well as what was attached later. libvirt keeps
/// the alias `ua-device-ID`; QEMU's own name of the device is the same.

#include <pugixml.hpp>

#include <string>
#include <string_view>
#include <vector>

#include "messages/backend.pb.h"

namespace caisson::qemu {

/// Devices that a VM can be made with: root ports are made for them beside VmSpec.free_root_ports.
inline constexpr unsigned max_boot_devices = 24;

struct device_reading {
  std::string id;
  std::string kind;    ///< "disk", "net", "share"
  std::string source;  ///< path of a disk, tap, socket of a share
  bool same_as(const device_reading& other) const {
    return id == other.id && kind == other.kind && source == other.source;
  }
};

std::string device_alias(std::string_view id);
/// "" where the alias is no device of ours.
std::string device_of_alias(std::string_view alias);

/// What VmSpec.disks, nets and shares name, in that order. Throws failure (invalid_argument, out_of_range) where one
/// cannot be carried.
std::vector<device_reading> devices_of(const v1::VmSpec& spec);
/// Throws failure (invalid_argument).
device_reading device_of(const v1::AttachDevice& call);

/// The spec's devices into <devices>; the first one stands behind the root port with the controller index
/// `first_root_port`, and so on.
void add_device_documents(pugi::xml_node devices, const v1::VmSpec& spec, unsigned first_root_port);
/// The document of one device for a VM that runs, whose document is `live_domain_xml`.
std::string attach_xml(const v1::AttachDevice& call, const std::string& live_domain_xml);
/// From <devices>.
std::vector<device_reading> read_devices(pugi::xml_node devices);

} // namespace caisson::qemu
