#pragma once

/// The firmware of one VM, checked, in this folder's way to fail.

#include "backends/firmware.hpp"
#include "backends/qemu/domain_xml.hpp"
#include "backends/qemu/failure.hpp"
#include "messages/backend.pb.h"

namespace caisson::qemu {

inline firmware::images firmware_images(const std::string& architecture, const std::string& machine,
                                        const std::string& code, const std::string& variables) {
  try {
    return firmware::settle({architecture, machine}, code, variables, firmware::read_descriptors());
  } catch (const firmware::error& e) {
    throw failure(e.code, e.what());
  }
}

/// The specification with the images that its firmware keys stand for.
inline v1::VmSpec with_firmware(v1::VmSpec spec) {
  if (spec.firmware_path().empty())
    return spec;
  auto images =
      firmware_images(spec.architecture(), spec.machine_type(), spec.firmware_path(), spec.firmware_variables_path());
  spec.set_firmware_path(images.code);
  spec.set_firmware_variables_path(images.variables);
  return spec;
}

/// The VM's own variable store, where its firmware has one.
inline void make_firmware_variables(const v1::VmSpec& spec) {
  firmware::images images{spec.firmware_path(), spec.firmware_variables_path(),
                          spec.architecture() != "x86_64" || !spec.firmware_variables_path().empty()};
  if (images.none() || !images.flash)
    return;
  try {
    firmware::make_variables(images, {spec.architecture(), spec.machine_type()},
                             firmware_variables(spec.run_directory()));
  } catch (const firmware::error& e) {
    throw failure(e.code, e.what());
  }
}

} // namespace caisson::qemu
