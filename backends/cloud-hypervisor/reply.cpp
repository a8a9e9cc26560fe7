#include "backends/cloud-hypervisor/reply.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <limits>
#include <map>

#include "backends/cloud-hypervisor/http_reply.hpp"

namespace caisson::cloud_hypervisor {
namespace {

using nlohmann::json;

constexpr std::size_t most_devices = 1024;
constexpr std::size_t most_counters = 16'384;

// Reads members of an object, says where the first one is wrong, and reads nothing after it.
class members {
public:
  members(const json& of, std::string where, std::string& error) : of_(&of), where_(std::move(where)), error_(&error) {
    if (!of.is_object())
      wrong("", "an object", of);
  }

  const json* find(const char* name, bool required = false) {
    if (!error_->empty())
      return nullptr;
    auto at = of_->find(name);
    if (at == of_->end() || at->is_null()) {
      if (required)
        *error_ = where_ + "." + name + ": it is missing";
      return nullptr;
    }
    return &*at;
  }

  template <class Number>
  bool number(const char* name, Number& into, bool required = false) {
    auto at = find(name, required);
    if (at == nullptr)
      return false;
    if (!at->is_number_unsigned() || at->get<std::uint64_t>() > std::numeric_limits<Number>::max())
      return wrong(name, "a whole number from 0 to " + std::to_string(std::numeric_limits<Number>::max()), *at);
    into = static_cast<Number>(at->get<std::uint64_t>());
    return true;
  }

  bool text(const char* name, std::string& into, bool required = false) {
    auto at = find(name, required);
    if (at == nullptr)
      return false;
    if (!at->is_string())
      return wrong(name, "a text", *at);
    into = at->get<std::string>();
    return true;
  }

  bool boolean(const char* name, bool& into) {
    auto at = find(name);
    if (at == nullptr)
      return false;
    if (!at->is_boolean())
      return wrong(name, "true or false", *at);
    into = at->get<bool>();
    return true;
  }

  const json* list(const char* name, bool required = false) {
    auto at = find(name, required);
    if (at != nullptr && !at->is_array()) {
      wrong(name, "a list", *at);
      return nullptr;
    }
    return at;
  }

  bool wrong(const char* name, const std::string& expected, const json& got) {
    auto found = got.is_object()  ? std::string{"an object"}
                 : got.is_array() ? std::string{"a list"}
                                  : got.dump(-1, ' ', true, json::error_handler_t::replace);
    *error_ = where_ + (*name == '\0' ? "" : ".") + name + ": expected " + expected + ", got " + escaped_text(found, 120);
    return false;
  }

  std::string below(const char* name) const { return where_ + "." + name; }

private:
  const json* of_;
  std::string where_;
  std::string* error_;
};

template <class T, class Read>
parsed<T> parse(std::string_view body, const char* verb, Read read) {
  parsed<T> out;
  auto all = json::parse(body, nullptr, false);
  if (all.is_discarded()) {
    out.error = std::string{verb} + ": expected JSON, got \"" + escaped_text(body, 120) + "\"";
    return out;
  }
  T value;
  read(all, value, out.error);
  if (out.error.empty())
    out.value = std::move(value);
  return out;
}

vm_state state_of(std::string_view text) {
  constexpr std::pair<std::string_view, vm_state> names[] = {{"Created", vm_state::created},
                                                             {"Running", vm_state::running},
                                                             {"Paused", vm_state::paused},
                                                             {"Shutdown", vm_state::shutdown},
                                                             {"BreakPoint", vm_state::break_point}};
  for (const auto& [name, state] : names)
    if (text == name)
      return state;
  return vm_state::other;
}

// A device stands below the node of its PCI function, which has the address.
std::map<std::string, std::string> addresses_of(const json& tree) {
  std::map<std::string, std::string> out;
  for (const auto& [id, node] : tree.items()) {
    if (!node.is_object())
      continue;
    auto address = node.find("pci_bdf");
    auto children = node.find("children");
    if (address == node.end() || !address->is_string() || children == node.end() || !children->is_array())
      continue;
    for (const auto& child : *children)
      if (child.is_string() && out.size() < most_devices)
        out.emplace(child.get<std::string>(), escaped_text(address->get_ref<const std::string&>(), 32));
  }
  return out;
}

void read_device(const json& from, const char* kind, const char* host_key, const std::string& where,
                 info_reply& into, std::string& error) {
  members of{from, where, error};
  device_reply device{.kind = kind};
  of.text("id", device.id);
  of.text(host_key, device.host);
  if (into.devices.size() == most_devices)
    error = where + ": more than " + std::to_string(most_devices) + " devices";
  else if (error.empty())
    into.devices.push_back(std::move(device));
}

void read_devices(members& config, const char* key, const char* kind, const char* host_key, info_reply& into,
                  std::string& error) {
  auto all = config.list(key);
  if (all == nullptr)
    return;
  for (std::size_t i = 0; i < all->size() && error.empty(); ++i)
    read_device((*all)[i], kind, host_key, config.below(key) + "[" + std::to_string(i) + "]", into, error);
}

void read_memory(const json& from, const std::string& where, info_reply& into, std::string& error) {
  members memory{from, where, error};
  memory.number("size", into.memory_bytes, true);
  memory.number("hotplug_size", into.hotplug_bytes);
  memory.number("hotplugged_size", into.hotplugged_bytes);
  std::string method;
  if (memory.text("hotplug_method", method)) {
    into.virtio_mem = method == "VirtioMem";
    if (!into.virtio_mem && method != "Acpi")
      memory.wrong("hotplug_method", "Acpi or VirtioMem", method);
  }
}

void read_config(const json& from, info_reply& into, std::string& error) {
  members config{from, "vm.info: config", error};
  if (auto at = config.find("cpus")) {
    members cpus{*at, config.below("cpus"), error};
    cpus.number("boot_vcpus", into.boot_vcpus, true);
    cpus.number("max_vcpus", into.max_vcpus, true);
  }
  if (auto at = config.find("memory", true))
    read_memory(*at, config.below("memory"), into, error);
  if (auto at = config.find("balloon")) {
    members balloon{*at, config.below("balloon"), error};
    std::uint64_t size = 0;
    if (balloon.number("size", size, true))
      into.balloon_bytes = size;
    balloon.boolean("free_page_reporting", into.free_page_reporting);
  }
  read_devices(config, "disks", "disk", "path", into, error);
  read_devices(config, "net", "net", "tap", into, error);
  read_devices(config, "fs", "share", "socket", into, error);
  if (auto at = config.find("vsock"))
    read_device(*at, "vsock", "socket", config.below("vsock"), into, error);
  if (auto at = config.find("serial")) {
    members serial{*at, config.below("serial"), error};
    if (!serial.text("file", into.serial_path))
      serial.text("socket", into.serial_path);
  }
}

void read_info(const json& all, info_reply& into, std::string& error) {
  members info{all, "vm.info", error};
  if (info.text("state", into.state_text, true))
    into.state = state_of(into.state_text);
  if (auto at = info.find("config", true))
    read_config(*at, into, error);
  std::uint64_t actual = 0;
  if (info.number("memory_actual_size", actual))
    into.memory_actual_bytes = actual;
  if (auto tree = info.find("device_tree")) {
    if (!tree->is_object()) {
      info.wrong("device_tree", "an object", *tree);
      return;
    }
    into.has_device_tree = true;
    into.addresses = addresses_of(*tree);
    for (auto& device : into.devices)
      if (auto at = into.addresses.find(device.id); at != into.addresses.end())
        device.bdf = at->second;
  }
}

// "0000:00:05.0"
bool is_bdf(std::string_view text) {
  constexpr std::string_view form = "xxxx:xx:xx.x";
  return text.size() == form.size() && std::equal(text.begin(), text.end(), form.begin(), [](char c, char as) {
           return as == 'x' ? (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') : c == as;
         });
}

} // namespace

parsed<ping_reply> parse_ping(std::string_view body) {
  return parse<ping_reply>(body, "vmm.ping", [](const json& all, ping_reply& into, std::string& error) {
    members ping{all, "vmm.ping", error};
    ping.text("version", into.version, true);
    ping.text("build_version", into.build_version);
    std::uint32_t pid = 0;
    if (ping.number("pid", pid))
      into.pid = pid;
    if (auto features = ping.list("features"))
      for (const auto& each : *features)
        if (each.is_string() && into.features.size() < 64)
          into.features.push_back(each.get<std::string>());
  });
}

parsed<info_reply> parse_info(std::string_view body) {
  return parse<info_reply>(body, "vm.info", read_info);
}

parsed<pci_device_reply> parse_pci_device(std::string_view body) {
  return parse<pci_device_reply>(body, "vm.add", [](const json& all, pci_device_reply& into, std::string& error) {
    members device{all, "vm.add", error};
    device.text("id", into.id, true);
    if (device.text("bdf", into.bdf, true) && !is_bdf(into.bdf))
      device.wrong("bdf", "a PCI address such as 0000:00:05.0", all["bdf"]);
  });
}

parsed<std::vector<counter>> parse_counters(std::string_view body) {
  using counters = std::vector<counter>;
  return parse<counters>(body, "vm.counters", [](const json& all, counters& into, std::string& error) {
    members devices{all, "vm.counters", error};
    if (!error.empty())
      return;
    for (const auto& [device, values] : all.items()) {
      auto where = "vm.counters." + escaped_text(device, 80);
      members of{values, where, error};
      if (!error.empty())
        return;
      for (const auto& [name, value] : values.items()) {
        if (!value.is_number_unsigned() || into.size() == most_counters) {
          error = where + "." + escaped_text(name, 80) + ": expected a whole number (of " +
                  std::to_string(most_counters) + " at most)";
          return;
        }
        into.push_back({device, name, value.get<std::uint64_t>()});
      }
    }
  });
}

} // namespace caisson::cloud_hypervisor
