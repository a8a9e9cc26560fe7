#include "backends/cloud-hypervisor/requests.hpp"

#include <nlohmann/json.hpp>

#include "backends/cloud-hypervisor/http_reply.hpp"
#include "backends/cloud-hypervisor/request_schema.hpp"

namespace caisson::cloud_hypervisor {
namespace {

using json = nlohmann::ordered_json;

// What stands for bytes that are no UTF-8; the check refuses it.
constexpr std::string_view replacement = "\xEF\xBF\xBD";

std::string path_of(std::string_view verb) {
  return std::string{schema::path_prefix}.append(verb);
}

request get(std::string_view verb) {
  return {"GET", path_of(verb), {}};
}

request put(std::string_view verb) {
  return {"PUT", path_of(verb), {}};
}

request put(std::string_view verb, const json& body) {
  return {"PUT", path_of(verb), body.dump(-1, ' ', false, json::error_handler_t::replace)};
}

void add_text(json& into, const char* name, const std::string& text) {
  if (!text.empty())
    into[name] = text;
}

json of(const disk_config& disk) {
  json out = json::object();
  add_text(out, "id", disk.id);
  out["path"] = disk.path;
  out["readonly"] = disk.read_only;
  out["image_type"] = "Raw"; // guessing the type of an image is unsafe: the guest writes its first bytes
  return out;
}

json of(const net_config& net) {
  json out = json::object();
  add_text(out, "id", net.id);
  add_text(out, "mac", net.mac);
  out["num_queues"] = net.queues;
  return out;
}

json of(const share_config& share) {
  json out = json::object();
  add_text(out, "id", share.id);
  out["tag"] = share.tag;
  out["socket"] = share.socket;
  out["num_queues"] = 1;
  out["queue_size"] = 1024;
  return out;
}

template <class T>
json list_of(const std::vector<T>& all) {
  json out = json::array();
  for (const auto& each : all)
    out.push_back(of(each));
  return out;
}

const char* name_of(console_mode mode) {
  switch (mode) {
  case console_mode::off:
    return "Off";
  case console_mode::null:
    return "Null";
  case console_mode::tty:
    return "Tty";
  case console_mode::pty:
    return "Pty";
  case console_mode::file:
    return "File";
  case console_mode::socket:
    return "Socket";
  }
  return "";
}

json of(const serial_config& line) {
  json out{{"mode", name_of(line.mode)}};
  if (line.mode == console_mode::file)
    out["file"] = line.path;
  if (line.mode == console_mode::socket)
    out["socket"] = line.path;
  return out;
}

json memory_of(const vm_config& vm) {
  json out{{"size", vm.memory_bytes},
           {"hotplug_method", vm.method == hotplug_method::acpi ? "Acpi" : "VirtioMem"},
           {"shared", vm.shared},
           {"hugepages", vm.hugepages},
           {"prefault", vm.prefault}};
  if (vm.hotplug_bytes > 0)
    out["hotplug_size"] = vm.hotplug_bytes;
  if (vm.hotplugged_bytes > 0)
    out["hotplugged_size"] = vm.hotplugged_bytes;
  return out;
}

json of(const vm_config& vm) {
  json payload = json::object();
  add_text(payload, "firmware", vm.firmware);
  add_text(payload, "kernel", vm.kernel);
  add_text(payload, "cmdline", vm.command_line);
  add_text(payload, "initramfs", vm.initramfs);
  json out{{"cpus", {{"boot_vcpus", vm.boot_vcpus}, {"max_vcpus", vm.max_vcpus}}},
           {"memory", memory_of(vm)},
           {"payload", payload},
           {"serial", of(vm.serial)},
           {"console", of(vm.console)},
           {"pvpanic", vm.pvpanic},
           {"watchdog", vm.watchdog}};
  if (!vm.disks.empty())
    out["disks"] = list_of(vm.disks);
  if (!vm.shares.empty())
    out["fs"] = list_of(vm.shares);
  if (!vm.entropy_source.empty())
    out["rng"] = {{"src", vm.entropy_source}};
  if (vm.balloon)
    out["balloon"] = {{"size", vm.balloon->size_bytes},
                      {"deflate_on_oom", vm.balloon->deflate_on_oom},
                      {"free_page_reporting", vm.balloon->free_page_reporting}};
  if (vm.vsock)
    out["vsock"] = {{"cid", vm.vsock->cid}, {"socket", vm.vsock->socket}};
  return out;
}

// ---- the check

std::string says(const std::string& where, const std::string& expected, const json& got) {
  auto found = got.is_object() ? "an object" : got.is_array() ? "a list" : got.dump(-1, ' ', false, json::error_handler_t::replace);
  return where + ": expected " + expected + ", got " + escaped_text(found, 120);
}

std::string check(const schema::object& as, const json& value, const std::string& where);

std::string check_integer(const schema::field& as, const json& value, const std::string& where) {
  auto expected = "an integer from " + std::to_string(as.least) + " to " + std::to_string(as.most);
  if (!value.is_number_integer())
    return says(where, expected, value);
  const bool fits = value.is_number_unsigned()
                        ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(as.most) &&
                              (as.least <= 0 || value.get<std::uint64_t>() >= static_cast<std::uint64_t>(as.least))
                        : value.get<std::int64_t>() <= as.most && value.get<std::int64_t>() >= as.least;
  return fits ? std::string{} : says(where, expected, value);
}

std::string check_text(const schema::field& as, const json& value, const std::string& where) {
  if (!value.is_string())
    return says(where, "a text", value);
  const auto& text = value.get_ref<const std::string&>();
  if (text.empty())
    return says(where, "a text that is not empty", value);
  for (unsigned char c : text)
    if (c < 0x20 || c == 0x7f)
      return says(where, "a text without control characters", value);
  if (text.find(replacement) != text.npos)
    return says(where, "a text in UTF-8", value);
  if (as.choices.empty())
    return {};
  std::string expected;
  for (auto each : as.choices) {
    if (text == each)
      return {};
    (expected += expected.empty() ? "" : ", ").append(each);
  }
  return says(where, "one of " + expected, value);
}

std::string check(const schema::field& as, const json& value, const std::string& where) {
  switch (as.type) {
  case schema::kind::boolean:
    return value.is_boolean() ? std::string{} : says(where, "true or false", value);
  case schema::kind::integer:
    return check_integer(as, value, where);
  case schema::kind::text:
    return check_text(as, value, where);
  case schema::kind::object:
    return check(*as.of, value, where);
  case schema::kind::list:
    if (!value.is_array())
      return says(where, "a list", value);
    for (std::size_t i = 0; i < value.size(); ++i)
      if (auto wrong = check(*as.of, value[i], where + "[" + std::to_string(i) + "]"); !wrong.empty())
        return wrong;
    return {};
  }
  return {};
}

std::string check(const schema::object& as, const json& value, const std::string& where) {
  if (!value.is_object())
    return says(where.empty() ? "the body" : where, "an object", value);
  const auto prefix = where.empty() ? std::string{} : where + ".";
  for (const auto& each : as.fields) {
    auto at = value.find(std::string{each.name});
    if (at == value.end()) {
      if (each.required)
        return prefix + std::string{each.name} + ": it is missing, but every request of this kind has it";
    } else if (auto wrong = check(each, *at, prefix + std::string{each.name}); !wrong.empty()) {
      return wrong;
    }
  }
  for (const auto& [name, ignored] : value.items()) {
    bool known = false;
    for (const auto& each : as.fields)
      known = known || each.name == name;
    if (!known)
      return prefix + escaped_text(name, 80) + ": this key is not in our schema; the VMM would pass over it in silence";
  }
  if (as.one_field && value.size() != 1)
    return (where.empty() ? "the body" : where) + ": expected exactly one key, got " + std::to_string(value.size()) +
           "; the VMM would leave the first ones in force when a later one fails";
  return {};
}

std::string wrong_in(const request& what) {
  if (!what.path.starts_with(schema::path_prefix))
    return "the path has to begin with " + std::string{schema::path_prefix};
  const schema::endpoint* found = nullptr;
  for (const auto& each : schema::endpoints())
    if (each.method == what.method && each.verb == what.verb())
      found = &each;
  if (found == nullptr)
    return "this verb is not in our schema";
  if (found->body == nullptr)
    return what.body.empty() ? std::string{} : "it takes no body; the VMM refuses every one, {} too";
  if (what.body.size() > schema::most_body_bytes)
    return "the body has " + std::to_string(what.body.size()) + " bytes, the VMM takes " +
           std::to_string(schema::most_body_bytes) + " at most; shorten the kernel's command line or the list of devices";
  auto body = json::parse(what.body, nullptr, false);
  if (body.is_discarded())
    return "the body is no JSON";
  return check(*found->body, body, {});
}

} // namespace

std::string_view request::verb() const {
  auto slash = path.rfind('/');
  return std::string_view{path}.substr(slash == path.npos ? 0 : slash + 1);
}

std::string violation(const request& what) {
  auto wrong = wrong_in(what);
  return wrong.empty() ? wrong : wrong + " (Caisson's own check; nothing was sent)";
}

namespace requests {

request ping() {
  return get("vmm.ping");
}
request shutdown_vmm() {
  return put("vmm.shutdown");
}
request info() {
  return get("vm.info");
}
request counters() {
  return get("vm.counters");
}
request create(const vm_config& vm) {
  return put("vm.create", of(vm));
}
request boot() {
  return put("vm.boot");
}
request pause() {
  return put("vm.pause");
}
request resume() {
  return put("vm.resume");
}
request shutdown_vm() {
  return put("vm.shutdown");
}
request remove_vm() {
  return put("vm.delete");
}
request power_button() {
  return put("vm.power-button");
}
request resize_ram(std::uint64_t total_bytes) {
  return put("vm.resize", {{"desired_ram", total_bytes}});
}
request resize_vcpus(std::uint32_t count) {
  return put("vm.resize", {{"desired_vcpus", count}});
}
request resize_balloon(std::uint64_t bytes) {
  return put("vm.resize", {{"desired_balloon", bytes}});
}
request add_disk(const disk_config& disk) {
  return put("vm.add-disk", of(disk));
}
request add_net(const net_config& net) {
  return put("vm.add-net", of(net));
}
request add_share(const share_config& share) {
  return put("vm.add-fs", of(share));
}
request remove_device(const std::string& id) {
  return put("vm.remove-device", {{"id", id}});
}

} // namespace requests
} // namespace caisson::cloud_hypervisor
