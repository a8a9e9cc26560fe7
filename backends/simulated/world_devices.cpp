// Disks, network interfaces and shares of a simulated world's machines.

#include <algorithm>
#include <utility>

#include "backends/simulated/world.hpp"
#include "backends/simulated/world_vm.hpp"

namespace caisson::backends::simulated {
namespace {

v1::BackendAnswer failure(ec code, std::string text) {
  v1::BackendAnswer a;
  *a.mutable_error() = error_message(code, std::move(text));
  return a;
}

} // namespace

std::vector<machine_device> devices_of(const v1::VmSpec& spec, std::string& problem) {
  std::vector<machine_device> out;
  const auto fits = [](unsigned char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; };
  const auto add = [&](const std::string& id, const char* kind, const std::string& source) {
    if (id.empty() || id.size() > 32 || !std::all_of(id.begin(), id.end(), fits))
      problem = std::string{kind} + " id \"" + id + "\": expected 1 to 32 of a-z 0-9 -";
    else if (source.empty())
      problem = std::string{kind} + " " + id + ": nothing is named that stands behind it";
    else if (std::any_of(out.begin(), out.end(), [&](const auto& d) { return d.id == id; }))
      problem = "two devices have the id " + id;
    out.push_back({id, kind, source});
  };
  for (const auto& d : spec.disks())
    add(d.id(), "disk", d.path());
  for (const auto& n : spec.nets())
    add(n.id(), "net", n.tap_name());
  for (const auto& s : spec.shares())
    add(s.id(), "share", s.socket_path());
  return out;
}

v1::BackendAnswer world::attach(const v1::AttachDevice& m) {
  v1::BackendAnswer a;
  auto* v = running(m.sandbox_id(), a);
  if (!v)
    return a;
  v1::VmSpec asked;
  if (m.has_disk())
    *asked.add_disks() = m.disk();
  if (m.has_net())
    *asked.add_nets() = m.net();
  std::string problem;
  const auto devices = devices_of(asked, problem);
  if (devices.empty() && problem.empty())
    problem = "no device is named";
  if (!problem.empty())
    return failure(ec::invalid_argument, "sandbox " + v->id + ": " + problem);
  const auto& device = devices.front();
  const auto* there = v->machine->device(device.id);
  if (there && (there->kind != device.kind || there->source != device.source || there->leaving))
    return failure(ec::already_exists, "sandbox " + v->id + ": a " + there->kind + " with the id " + device.id +
                                           (there->leaving ? " is there still and leaving" : " is there already"));
  if (!there)
    v->machine->attach_device(device);
  *a.mutable_observed() = observe(v->id);
  return a;
}

v1::BackendAnswer world::detach(const v1::DetachDevice& m) {
  v1::BackendAnswer a;
  auto* v = running(m.sandbox_id(), a);
  if (!v)
    return a;
  v->machine->detach_device(m.device_id());
  *a.mutable_observed() = observe(v->id);
  return a;
}

} // namespace caisson::backends::simulated
