// vm.snapshot and vm.restore: a directory with config.json, state.json and memory-ranges.

#include "backends/cloud-hypervisor/double/model.hpp"

namespace caisson::cloud_hypervisor::api_double {
namespace {

constexpr std::string_view scheme = "file://";

failure send_failure(const std::string& text, const char* outer) {
  return fail({outer, "Failed to send migratable component snapshot", text});
}

} // namespace

outcome model::snapshot(const std::string& url) {
  if (!vm_)
    return fail({"VM is not running"});
  event("snapshotting");
  const auto refused = [](const std::string& text) {
    return fail({"Cannot snapshot VM", "Failed to snapshot migratable component", text});
  };
  if (vm_->state != vm_state::paused)
    return refused("Trying to snapshot while VM is running");
  if (!settings_.faults.nested_state)
    return refused("Could not get vCPU state GetNestedState(Invalid argument (os error 22))");
  constexpr auto outer = "Cannot send VM snapshot";
  if (!url.starts_with(scheme))
    return send_failure("Could not extract path from URL: " + url, outer);
  const auto directory = url.substr(scheme.size());
  if (!host_.is_directory(directory))
    return send_failure("Destination is not a directory: " + json(directory).dump(), outer);
  json state{{"plugged", vm_->inside->virtio_mem_bytes()}};
  for (const auto& [name, text] : {std::pair<std::string, std::string>{"config.json", written(*config_, *schema_.vm).dump()},
                                   {"state.json", state.dump()},
                                   {"memory-ranges", ""}})
    if (const auto error = host_.write_new_file(directory + "/" + name, text))
      return fail({outer, "Failed to send migratable component snapshot", "Error creating VM config snapshot file",
                   os_error(error)});
  event("snapshotted");
  return {};
}

outcome model::restore(const json& how) {
  if (config_ || vm_)
    return fail({"VM is already created"});
  constexpr auto outer = "Cannot restore VM";
  const auto url = how["source_url"].get<std::string>();
  if (!url.starts_with(scheme))
    return send_failure("Could not extract path from URL: " + url, outer);
  const auto directory = url.substr(scheme.size());
  if (!host_.is_directory(directory))
    return send_failure("Destination is not a directory: " + json(directory).dump(), outer);
  int error = 0;
  const auto text = host_.read_file(directory + "/config.json", error);
  auto config = decode(text, *schema_.vm);
  if (error || std::holds_alternative<std::string>(config))
    return fail({outer, "Failed to receive migratable component snapshot",
                 error ? os_error(error) : std::get<std::string>(config)});
  event("restoring");
  config_ = std::get<json>(std::move(config));
  const auto undone = [this](failure why) {
    (void)remove_all();
    return why;
  };
  if (auto problem = open_consoles())
    return undone(std::move(*problem));
  if (auto problem = start_vm())
    return undone(std::move(*problem));
  if (auto problem = lock_disks(*vm_))
    return undone(std::move(*problem));
  power_on();
  vm_->state = vm_state::paused;
  vm_->inside->pause();
  for (auto& [id, r] : vm_->resources)
    if (r.vsock)
      r.vsock->freeze(true);
  event("restored");
  if (how.value("resume", false))
    return resume();
  return {};
}

} // namespace caisson::cloud_hypervisor::api_double
