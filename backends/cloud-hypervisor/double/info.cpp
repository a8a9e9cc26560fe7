// What the API shows of a VM.

#include <algorithm>

#include "backends/cloud-hypervisor/double/model.hpp"

namespace caisson::cloud_hypervisor::api_double {
namespace {

constexpr std::uint64_t never = 18'446'744'073'709'551'615u; ///< a latency that was not measured yet
constexpr std::uint64_t never_average = 1'844'674'407'370'955u;

} // namespace

std::string model::ping() const {
  const auto version = version_of(settings_.as);
  return json{{"build_version", name_of(settings_.as) + ".0"},
              {"version", version},
              {"pid", settings_.pid},
              {"features", {"io_uring", "kvm"}}}
      .dump();
}

model::answer model::info() const {
  if (!config_)
    return fail({"VM is not created"}, failure::cause::not_created);
  const auto& memory = (*config_)["memory"];
  const bool counts_plugged = settings_.as > profile::v51_1;
  auto actual = total_size(memory) - (counts_plugged ? hotplugged_size(memory) : 0);
  json out{{"config", written(*config_, *schema_.vm)}, {"state", "Created"}};
  if (vm_) {
    actual -= std::min(actual, vm_->inside->balloon_bytes());
    if (counts_plugged)
      actual += vm_->inside->virtio_mem_bytes();
    if (vm_->state != vm_state::created)
      out["state"] = vm_->state == vm_state::running ? "Running" : "Paused";
  }
  out["memory_actual_size"] = actual;
  if (vm_)
    out["device_tree"] = vm_->tree.shown();
  else if (settings_.as == profile::v51_1)
    out["device_tree"] = nullptr;
  return std::optional{out.dump()};
}

model::answer model::counters() const {
  if (!vm_)
    return fail({"VM is not running"});
  json out = json::object();
  for (const auto& [id, n] : vm_->tree.nodes()) {
    if (n.type == "block")
      out[id] = {{"read_bytes", 0},           {"read_ops", 0},           {"write_bytes", 0},
                 {"write_ops", 0},            {"read_latency_min", never}, {"read_latency_max", never},
                 {"read_latency_avg", never_average}, {"write_latency_min", never}, {"write_latency_max", never},
                 {"write_latency_avg", never_average}};
    if (n.type == "net")
      out[id] = {{"rx_bytes", 0}, {"rx_frames", 0}, {"tx_bytes", 0}, {"tx_frames", 0}};
  }
  return std::optional{out.dump()};
}

} // namespace caisson::cloud_hypervisor::api_double
