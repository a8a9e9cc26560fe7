#include "backends/qemu/monitor_reading.hpp"

#include <algorithm>
#include <charconv>
#include <functional>
#include <nlohmann/json.hpp>

#include "backends/qemu/domain_xml.hpp"
#include "backends/qemu/failure.hpp"

namespace caisson::qemu {
namespace {

using nlohmann::json;

template <class Read>
auto result_of(const std::string& answer, const char* command, Read read) {
  try {
    auto parsed = json::parse(answer);
    if (auto error = parsed.find("error"); error != parsed.end())
      throw failure("backend_refused", std::string{command} + ": QEMU says: " + error->value("desc", "no reason given"));
    return read(parsed.at("return"));
  } catch (const json::exception& e) {
    throw failure("internal", std::string{command} + ": QEMU's answer is not understood: " + e.what());
  }
}

void note_addresses(const json& devices, bool below_a_port, std::map<std::string, std::string>& out) {
  for (const auto& device : devices) {
    auto bus = device.value("bus", 0);
    auto name = device.value("qdev_id", "");
    if (!name.empty() && (bus != 0 || !below_a_port)) {
      char text[sizeof "0000:00:00.0"];
      std::snprintf(text, sizeof text, "0000:%02x:%02x.%x", static_cast<unsigned>(bus) & 0xffu,
                    static_cast<unsigned>(device.value("slot", 0)) & 0x1fu,
                    static_cast<unsigned>(device.value("function", 0)) & 7u);
      out[name] = text;
    }
    if (auto bridge = device.find("pci_bridge"); bridge != device.end() && bridge->contains("devices"))
      note_addresses(bridge->at("devices"), true, out);
  }
}

} // namespace

memory_devices read_memory_devices(const std::string& answer) {
  return result_of(answer, "query-memory-devices", [](const json& devices) {
    memory_devices out;
    for (const auto& device : devices) {
      const auto& data = device.at("data");
      auto id = data.value("id", "");
      if (device.at("type") == "virtio-mem" && id == virtio_mem_alias) {
        out.virtio_mem = true;
        out.virtio_mem_size_bytes = data.at("size").get<std::uint64_t>();
        out.virtio_mem_requested_bytes = data.at("requested-size").get<std::uint64_t>();
      } else if (device.at("type") == "dimm" && !dimm_of_alias(id).empty()) {
        v1::Dimm dimm;
        dimm.set_id(dimm_of_alias(id));
        dimm.set_size_bytes(data.at("size").get<std::uint64_t>());
        dimm.set_address(data.at("addr").get<std::uint64_t>());
        out.dimms.push_back(std::move(dimm));
      }
    }
    return out;
  });
}

std::uint64_t read_boot_bytes(const std::string& answer) {
  return result_of(answer, "query-memory-size-summary",
                   [](const json& summary) { return summary.at("base-memory").get<std::uint64_t>(); });
}

std::uint32_t read_plugged_vcpus(const std::string& answer) {
  // ARM64's virt machine plugs no vCPUs and says so. It has what it was made with, and all its other figures are good.
  if (auto parsed = json::parse(answer, nullptr, false); parsed.is_object() && parsed.contains("error"))
    if (parsed["error"].value("desc", "").find("'query-hotpluggable-cpus' is not enabled") != std::string::npos)
      return 0;
  return result_of(answer, "query-hotpluggable-cpus", [](const json& slots) {
    std::uint32_t count = 0;
    for (const auto& slot : slots)
      if (slot.contains("qom-path"))
        count += slot.value("vcpus-count", 1u);
    return count;
  });
}

std::vector<std::string> read_removable_vcpus(const std::string& answer) {
  return result_of(answer, "query-hotpluggable-cpus", [](const json& slots) {
    constexpr std::string_view named = "/machine/peripheral/", prefix = "vcpu";
    std::vector<std::pair<unsigned long, std::string>> found;
    for (const auto& slot : slots) {
      auto path = slot.value("qom-path", "");
      if (!path.starts_with(named))
        continue;  // without a name: part of the machine from the beginning
      auto name = path.substr(named.size());
      auto digits = name.starts_with(prefix) ? std::string_view{name}.substr(prefix.size()) : std::string_view{};
      unsigned long number = 0;
      auto [end, bad] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
      if (!digits.empty() && bad == std::errc{} && end == digits.data() + digits.size())
        found.emplace_back(number, std::move(name));
    }
    std::sort(found.begin(), found.end(), std::greater<>{});
    std::vector<std::string> out;
    for (auto& [number, name] : found)
      out.push_back(std::move(name));
    return out;
  });
}

void read_taken(const std::string& answer, const char* command) {
  result_of(answer, command, [](const json&) { return 0; });
}

std::map<std::string, std::string> read_pci_addresses(const std::string& answer) {
  return result_of(answer, "query-pci", [](const json& buses) {
    std::map<std::string, std::string> out;
    for (const auto& bus : buses)
      note_addresses(bus.at("devices"), false, out);
    return out;
  });
}

} // namespace caisson::qemu
