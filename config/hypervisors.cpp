#include "config/hypervisors.hpp"

#include <algorithm>

#include "config/nearest.hpp"

namespace caisson::config {
namespace {

/// Kata's names. `ruled`: the rules know this backend, so the name is no fault of a file where a build lacks it.
struct kata_name {
  std::string_view name;
  std::string_view backend;
  bool ruled;
};

constexpr kata_name katas[] = {
    {"qemu", "qemu", true},
    {"clh", "cloud-hypervisor", true},
    {"cloud-hypervisor", "cloud-hypervisor", true},
    {"dragonball", "dragonball", false},
    {"firecracker", "firecracker", false},
    {"fc", "firecracker", false},
    {"stratovirt", "stratovirt", false},
    {"remote", "remote", false},
    {"acrn", "acrn", false},
    {"openvmm", "openvmm", false},
};

} // namespace

hypervisor_names::hypervisor_names(std::span<const backend_line> backends) {
  for (const auto& line : backends)
    backends_.push_back(line.name);
  if (backends_.empty())
    for (const auto& each : katas)
      if (each.ruled && each.name == each.backend)
        backends_.emplace_back(each.backend);
  const auto there = [&](std::string_view name) {
    return std::find(backends_.begin(), backends_.end(), name) != backends_.end();
  };
  for (const auto& each : katas) {
    const bool usable = there(each.backend);
    names_.push_back({std::string{each.name}, usable || each.ruled ? std::string{each.backend} : "", usable});
  }
  for (const auto& name : backends_)
    if (!find(name))
      names_.push_back({name, name, true});
}

const hypervisor_name* hypervisor_names::find(std::string_view name) const {
  const auto at = std::find_if(names_.begin(), names_.end(), [&](const auto& each) { return each.name == name; });
  return at == names_.end() ? nullptr : &*at;
}

std::string hypervisor_names::nearest_to(std::string_view name) const {
  std::vector<std::string_view> words;
  for (const auto& each : names_)
    words.push_back(each.name);
  return nearest(name, words);
}

std::string hypervisor_names::allowed() const {
  std::string out;
  for (const auto& each : names_)
    if (each.usable)
      out += (out.empty() ? "one of " : ", ") + each.name;
  return out;
}

std::string hypervisor_names::tables() const {
  std::string out;
  for (const auto& each : names_)
    if (each.usable)
      out += (out.empty() ? "[hypervisor." : ", [hypervisor.") + each.name + ']';
  return out;
}

std::string hypervisor_names::backends() const {
  std::string out;
  for (const auto& each : backends_)
    out += (out.empty() ? "" : ", ") + each;
  return out;
}

} // namespace caisson::config
