#include "backends/cloud-hypervisor/double/model.hpp"

#include <unistd.h>

#include <utility>

namespace caisson::cloud_hypervisor::api_double {
namespace {

const std::string root = "/api/v1/";

struct route_entry {
  enum class kind { action, body, other } what;
  std::string outer; ///< what the endpoint calls its failure
};

/// Every path. `action` takes no body, `body` needs one, `other` decides by itself.
const std::map<std::string, route_entry>& routes() {
  using k = route_entry::kind;
  static const std::map<std::string, route_entry> all{
      {"vmm.ping", {k::other, ""}},
      {"vmm.shutdown", {k::other, "The VMM could not shutdown"}},
      {"vm.info", {k::other, "The VM info is not available"}},
      {"vm.create", {k::other, "The VM could not be created"}},
      {"vm.counters", {k::other, "The VM info is not available"}},
      {"vm.boot", {k::action, "The VM could not boot"}},
      {"vm.delete", {k::action, "The VM could not be deleted"}},
      {"vm.shutdown", {k::action, "The VM could not shutdown"}},
      {"vm.reboot", {k::action, "The VM could not reboot"}},
      {"vm.pause", {k::action, "The VM could not be paused"}},
      {"vm.resume", {k::action, "The VM could not resume"}},
      {"vm.power-button", {k::action, "Error triggering power button"}},
      {"vm.nmi", {k::action, "Error triggering NMI"}},
      {"vm.resize", {k::body, "The VM could not be resized"}},
      {"vm.resize-disk", {k::body, "The disk could not be resized"}},
      {"vm.resize-zone", {k::body, "The memory zone could not be resized"}},
      {"vm.add-disk", {k::body, "The disk could not be added to the VM"}},
      {"vm.add-net", {k::body, "The network device could not be added to the VM"}},
      {"vm.add-fs", {k::body, "The fs could not be added to the VM"}},
      {"vm.add-pmem", {k::body, "The pmem device could not be added to the VM"}},
      {"vm.add-vsock", {k::body, "The vsock device could not be added to the VM"}},
      {"vm.add-vdpa", {k::body, "The vDPA device could not be added to the VM"}},
      {"vm.add-generic-vhost-user", {k::body, "The generic vhost-user device could not be added to the VM"}},
      {"vm.add-device", {k::body, "The device could not be added to the VM"}},
      {"vm.add-user-device", {k::body, "The user device could not be added to the VM"}},
      {"vm.remove-device", {k::body, "The device could not be removed from the VM"}},
      {"vm.snapshot", {k::body, "The VM could not be snapshotted"}},
      {"vm.restore", {k::body, "The VM could not be restored"}},
      {"vm.receive-migration", {k::body, "Error receiving migration"}},
      {"vm.send-migration", {k::body, "Error dispatching the migration worker"}},
  };
  return all;
}

reply refuse(int code, std::vector<std::string> chain) {
  return {code, json(std::move(chain)).dump(), {}, false, false};
}

reply bad_request() {
  return refuse(400, {"Bad Request"});
}

std::variant<std::optional<std::string>, failure> of(outcome o) {
  if (o)
    return std::move(*o);
  return std::optional<std::string>{};
}

} // namespace

model::model(settings s, host& h, backends::simulated::timeline& time)
    : settings_{std::move(s)}, host_{h}, time_{time}, schema_{make_schema(settings_.as)} {}

model::~model() = default;

const guest* model::the_guest() const {
  return vm_ ? vm_->inside.get() : nullptr;
}

void model::event(const std::string& name, const std::vector<std::pair<std::string, std::string>>& properties) {
  host_.event("vm", name, properties);
}

int model::code_of(const failure& f) const {
  using cause = failure::cause;
  switch (f.why) {
  case cause::vcpu_pending:
    return 429;
  case cause::not_created:
    return settings_.as == profile::v51_1 ? 500 : 404;
  case cause::unknown_device:
    return settings_.as == profile::head ? 404 : 500;
  case cause::validation:
    return settings_.as == profile::head ? 400 : 500;
  case cause::not_unique:
    return settings_.as == profile::head ? 409 : 500;
  case cause::other:
    break;
  }
  return 500;
}

reply model::finished(const std::string& outer, answer a) const {
  reply out;
  if (auto* f = std::get_if<failure>(&a)) {
    if (f->why == failure::cause::vcpu_pending)
      out = refuse(429, {"Too Many Requests"});
    else {
      std::vector<std::string> chain{"Error from API", outer};
      chain.insert(chain.end(), f->chain.begin(), f->chain.end());
      out = refuse(code_of(*f), std::move(chain));
    }
  } else {
    out.body = std::get<std::optional<std::string>>(std::move(a));
    out.code = out.body ? 200 : 204;
  }
  return out;
}

reply model::handle(request r) {
  busy_ = {};
  panics_ = false;
  const auto endpoint = r.path.starts_with(root) ? r.path.substr(root.size()) : std::string{};
  const bool known = routes().contains(endpoint) &&
                     (settings_.as > profile::v51_1 || endpoint != "vm.add-generic-vhost-user");
  auto out = known ? route(endpoint, r) : refuse(404, {"Not Found"});
  for (const auto fd : r.descriptors)
    ::close(fd);
  out.after += busy_;
  out.panics = panics_;
  return out;
}

reply model::route(const std::string& endpoint, request& r) {
  const auto& entry = routes().at(endpoint);
  const auto done = [&](outcome o) { return finished(entry.outer, of(std::move(o))); };
  if (endpoint == "vmm.ping")
    return r.method == "GET" ? reply{200, ping(), {}, false, false} : bad_request();
  if (endpoint == "vm.info")
    return r.method == "GET" ? finished(entry.outer, info()) : bad_request();
  if (endpoint == "vmm.shutdown") {
    if (r.method != "PUT")
      return bad_request();
    shut_down();
    return {200, std::nullopt, {}, false, true};
  }
  if (endpoint == "vm.create") {
    if (r.method != "PUT")
      return bad_request();
    if (!r.body)
      return {400, std::nullopt, {}, false, false};
    auto config = decode(*r.body, *schema_.vm);
    if (auto* wrong = std::get_if<std::string>(&config))
      return refuse(400, {"Failed to deserialize JSON", *wrong});
    return done(create(std::get<json>(std::move(config))));
  }
  if (r.method == "PATCH")
    return {400, std::nullopt, {}, false, false};
  if (endpoint == "vm.counters")
    return r.method == "GET" ? finished(entry.outer, counters()) : bad_request();
  if (r.method != "PUT" || r.body.has_value() != (entry.what == route_entry::kind::body))
    return bad_request();

  if (entry.what == route_entry::kind::action) {
    static const std::map<std::string, outcome (model::*)()> actions{
        {"vm.boot", &model::boot},     {"vm.delete", &model::remove_all}, {"vm.shutdown", &model::shutdown},
        {"vm.reboot", &model::reboot}, {"vm.pause", &model::pause},       {"vm.resume", &model::resume}};
    if (const auto it = actions.find(endpoint); it != actions.end())
      return done((this->*it->second)());
    if (!vm_)
      return done(fail({"VM is not running"}));
    if (endpoint == "vm.power-button")
      vm_->inside->power_button();
    return done({});
  }

  static const std::map<std::string, std::shared_ptr<const record> schema::*> bodies{
      {"vm.resize", &schema::resize},
      {"vm.resize-disk", &schema::resize_disk},
      {"vm.resize-zone", &schema::resize_zone},
      {"vm.add-disk", &schema::disk},
      {"vm.add-net", &schema::net},
      {"vm.add-fs", &schema::fs},
      {"vm.add-pmem", &schema::pmem},
      {"vm.add-vsock", &schema::vsock},
      {"vm.add-vdpa", &schema::vdpa},
      {"vm.add-generic-vhost-user", &schema::generic_vhost_user},
      {"vm.add-device", &schema::device},
      {"vm.add-user-device", &schema::user_device},
      {"vm.remove-device", &schema::remove_device},
      {"vm.snapshot", &schema::snapshot},
      {"vm.restore", &schema::restore},
      {"vm.receive-migration", &schema::receive_migration},
      {"vm.send-migration", &schema::send_migration}};
  static const std::map<std::string, std::string> lists{
      {"vm.add-disk", "disks"},     {"vm.add-net", "net"},         {"vm.add-fs", "fs"},
      {"vm.add-pmem", "pmem"},      {"vm.add-vdpa", "vdpa"},       {"vm.add-generic-vhost-user", "generic_vhost_user"},
      {"vm.add-device", "devices"}, {"vm.add-user-device", "user_devices"}};

  auto decoded = decode(*r.body, *(schema_.*bodies.at(endpoint)));
  if (auto* wrong = std::get_if<std::string>(&decoded))
    return refuse(400, {"Failed to deserialize JSON", *wrong});
  auto body = std::get<json>(std::move(decoded));
  if (endpoint == "vm.resize")
    return done(resize(body));
  if (endpoint == "vm.resize-disk")
    return done(resize_disk(body["id"], body["desired_size"]));
  if (endpoint == "vm.resize-zone")
    return done(resize_zone(body["id"], body["desired_ram"]));
  if (endpoint == "vm.remove-device")
    return done(remove_device(body["id"]));
  if (endpoint == "vm.snapshot")
    return done(snapshot(body["destination_url"]));
  if (endpoint == "vm.restore")
    return done(restore(body));
  if (endpoint == "vm.receive-migration")
    return done(fail({"Failed to receive migratable component snapshot", "The double receives no migration"}));
  if (endpoint == "vm.send-migration")
    return done(fail({"Failed to send migratable component snapshot", vm_ ? "The double sends no migration"
                                                                          : "VM is not running"}));
  if (endpoint == "vm.add-net") {
    body.erase("fds");
    if (!r.descriptors.empty()) {
      json fds = json::array();
      for (const auto fd : std::exchange(r.descriptors, {}))
        fds.push_back(fd);
      body["fds"] = std::move(fds);
    }
  }
  if (endpoint == "vm.add-vsock")
    return finished(entry.outer, add_device("vsock", std::move(body), true));
  return finished(entry.outer, add_device(lists.at(endpoint), std::move(body)));
}

} // namespace caisson::cloud_hypervisor::api_double
