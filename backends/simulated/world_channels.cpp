// The channels of a simulated world's machines, and what tests look at and do to it.

#include <algorithm>
#include <utility>

#include "backends/simulated/world.hpp"
#include "backends/simulated/world_vm.hpp"

namespace caisson::backends::simulated {

// ---- connections ----

world::connection_id world::connect(user_id user, std::string_view endpoint, connection_events events,
                                    std::string& problem) {
  std::lock_guard lock{mutex_};
  enter(user);
  constexpr std::string_view scheme = "simulated:", console_end = "/console";
  if (!endpoint.starts_with(scheme)) {
    problem =
        "\"" + std::string{endpoint} + "\" is not a simulated channel; expected simulated:ID or simulated:ID/console";
    return 0;
  }
  auto id = std::string{endpoint.substr(scheme.size())};
  const bool console = id.ends_with(console_end);
  if (console)
    id.resize(id.size() - console_end.size());
  auto* v = find(id);
  if (!v || v->state == v1::VM_STATE_STOPPED || !users_.contains(user)) {
    problem = "no simulated VM of sandbox " + id + " runs";
    return 0;
  }
  auto& place = console ? v->console_connection : v->agent_connection;
  if (place != 0)
    close_connection(place, "another connection has taken its place");
  const auto number = ++last_id_;
  place = number;
  auto& c = connections_[number];
  c.user = user, c.sandbox_id = id, c.console = console, c.events = std::move(events);
  if (console && !v->console.empty())
    c.events.on_readable();
  return number;
}

bool world::write(connection_id number, std::span<const std::byte> bytes) {
  std::lock_guard lock{mutex_};
  const auto it = connections_.find(number);
  if (it == connections_.end() || it->second.console)
    return true;
  auto* v = find(it->second.sandbox_id);
  if (v && v->guest && v->state == v1::VM_STATE_RUNNING && v->guest->receive(bytes))
    return true;
  it->second.refused = true;
  return false;
}

std::vector<std::byte> world::read(connection_id number, std::size_t limit) {
  std::lock_guard lock{mutex_};
  const auto it = connections_.find(number);
  if (it == connections_.end())
    return {};
  auto out = take(it->second, limit);
  if (auto* v = find(it->second.sandbox_id); v && !it->second.console)
    writable(*v); // a guest that read no more requests for want of room goes on
  return out;
}

std::vector<std::byte> world::take(connection& c, std::size_t limit) {
  auto* v = find(c.sandbox_id);
  if (!v)
    return {};
  if (!c.console)
    return v->guest ? v->guest->take_output(limit) : std::vector<std::byte>{};
  const auto n = std::min(limit, v->console.size() - c.console_at);
  const auto* from = reinterpret_cast<const std::byte*>(v->console.data()) + c.console_at;
  c.console_at += n;
  return {from, from + n};
}

void world::writable(vm& v) {
  const auto it = connections_.find(v.agent_connection);
  if (it == connections_.end() || !std::exchange(it->second.refused, false))
    return;
  if (it->second.events.on_writable)
    it->second.events.on_writable();
}

void world::disconnect(connection_id number) {
  std::lock_guard lock{mutex_};
  const auto it = connections_.find(number);
  if (it == connections_.end())
    return;
  it->second.events = {};
  close_connection(number, {});
}

void world::close_connection(connection_id number, const std::string& why) {
  const auto it = connections_.find(number);
  if (it == connections_.end())
    return;
  auto c = std::move(it->second);
  connections_.erase(it);
  auto rest = c.events.on_closed ? take(c, 256 * 1024) : std::vector<std::byte>{};
  if (auto* v = find(c.sandbox_id)) {
    if (v->console_connection == number)
      v->console_connection = 0;
    if (v->agent_connection == number) {
      v->agent_connection = 0;
      if (v->guest)
        v->guest->host_left();
    }
  }
  if (c.events.on_closed)
    c.events.on_closed(why, std::move(rest));
}

// ---- tests ----

void world::set_plan(const fault_plan& plan) {
  std::lock_guard lock{mutex_};
  plan_ = plan;
}

fault_plan world::plan() const {
  std::lock_guard lock{mutex_};
  return plan_;
}

std::vector<std::string> world::machines() const {
  std::lock_guard lock{mutex_};
  std::vector<std::string> out;
  for (const auto& [id, v] : vms_)
    out.push_back(id);
  return out;
}

machine_picture world::look(const std::string& id) const {
  std::lock_guard lock{mutex_};
  machine_picture p;
  const auto* v = find(id);
  if (!v)
    return p;
  p.state = v->state;
  p.boot_bytes = v->machine->shape().boot_bytes;
  p.plugged_bytes = v->machine->plugged_bytes();
  p.guest_plugged_bytes = v->machine->mem_total_bytes() - v->machine->boot_mem_total_bytes();
  p.virtio_mem_requested_bytes = v->machine->virtio_mem_requested_bytes();
  p.dimms = v->machine->dimms().size();
  p.plugged_vcpus = v->machine->plugged_vcpus();
  p.online_vcpus = v->machine->online_cpus();
  p.agent_answers = v->guest != nullptr;
  return p;
}

void world::kill_vmm(const std::string& id, const std::string& how) {
  std::lock_guard lock{mutex_};
  if (auto* v = find(id); v && v->state != v1::VM_STATE_STOPPED)
    die(*v, how);
}

void world::panic_guest(const std::string& id) {
  std::lock_guard lock{mutex_};
  if (auto* v = find(id); v && v->state != v1::VM_STATE_STOPPED)
    v->machine->panic();
}

std::size_t world::verbs_under_way() const {
  std::lock_guard lock{mutex_};
  return verbs_.size();
}

std::size_t world::connections() const {
  std::lock_guard lock{mutex_};
  return connections_.size();
}

} // namespace caisson::backends::simulated
