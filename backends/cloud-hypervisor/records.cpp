#include "backends/cloud-hypervisor/records.hpp"

#include <google/protobuf/util/json_util.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

namespace caisson::cloud_hypervisor {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr std::uintmax_t most_record_bytes = 1u << 20;

json to_json(const plugged_dimm& d) {
  return {{"id", d.id}, {"size_bytes", d.size_bytes}};
}

plugged_dimm dimm_from(const json& j) {
  return {j.at("id").get<std::string>(), j.at("size_bytes").get<std::uint64_t>()};
}

json to_json(const held_device& d) {
  return {{"id", d.id}, {"kind", d.kind}, {"leaving", d.leaving}, {"address", d.address}, {"source", d.source}};
}

held_device device_from(const json& j) {
  return {j.at("id").get<std::string>(), j.at("kind").get<std::string>(), j.at("leaving").get<bool>(),
          j.at("address").get<std::string>(), j.value("source", std::string{})};
}

} // namespace

std::string to_text(const vm_record& r) {
  std::string spec;
  google::protobuf::util::MessageToJsonString(r.spec, &spec);
  auto dimms = json::array();
  for (const auto& d : r.book.dimms)
    dimms.push_back(to_json(d));
  auto devices = json::array();
  for (const auto& d : r.book.devices)
    devices.push_back(to_json(d));
  json out{{"spec", json::parse(spec, nullptr, false)},
           {"pid", r.pid},
           {"start_ticks", r.start_ticks},
           {"version", r.version},
           {"accelerator", r.accelerator},
           {"booted", r.booted},
           {"boot_bytes", r.book.boot_bytes},
           {"dimms", std::move(dimms)},
           {"virtio_mem_requested_bytes", r.book.virtio_mem_requested_bytes},
           {"virtio_mem_plugged_bytes", r.book.virtio_mem_plugged_bytes},
           {"vcpus_present", r.book.vcpus_present},
           {"vcpus_asked", r.book.vcpus_asked},
           {"devices", std::move(devices)},
           {"state", static_cast<int>(r.book.state)},
           {"events_read_bytes", r.events_read_bytes},
           {"ended", static_cast<int>(r.ended)},
           {"stop_reason", r.stop_reason}};
  if (r.book.asked_dimm)
    out["asked_dimm"] = to_json(*r.book.asked_dimm);
  if (r.book.asked_device)
    out["asked_device"] = to_json(*r.book.asked_device);
  return out.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

bool from_text(const std::string& text, vm_record& r) {
  const auto j = json::parse(text, nullptr, false);
  if (!j.is_object() || !j.contains("spec"))
    return false;
  try {
    r = {};
    if (!google::protobuf::util::JsonStringToMessage(j.at("spec").dump(), &r.spec).ok() || r.sandbox_id().empty())
      return false;
    r.pid = j.at("pid").get<pid_t>();
    r.start_ticks = j.at("start_ticks").get<std::uint64_t>();
    r.version = j.at("version").get<std::string>();
    r.accelerator = j.at("accelerator").get<std::string>();
    r.booted = j.at("booted").get<bool>();
    r.book.boot_bytes = j.at("boot_bytes").get<std::uint64_t>();
    for (const auto& d : j.at("dimms"))
      r.book.dimms.push_back(dimm_from(d));
    if (j.contains("asked_dimm"))
      r.book.asked_dimm = dimm_from(j.at("asked_dimm"));
    r.book.virtio_mem_requested_bytes = j.at("virtio_mem_requested_bytes").get<std::uint64_t>();
    r.book.virtio_mem_plugged_bytes = j.at("virtio_mem_plugged_bytes").get<std::uint64_t>();
    r.book.vcpus_present = j.at("vcpus_present").get<std::uint32_t>();
    r.book.vcpus_asked = j.at("vcpus_asked").get<std::uint32_t>();
    for (const auto& d : j.at("devices"))
      r.book.devices.push_back(device_from(d));
    if (j.contains("asked_device"))
      r.book.asked_device = device_from(j.at("asked_device"));
    r.book.state = static_cast<v1::VmState>(j.at("state").get<int>());
    r.events_read_bytes = j.at("events_read_bytes").get<std::uint64_t>();
    r.ended = static_cast<v1::VmEvent::Kind>(j.at("ended").get<int>());
    r.stop_reason = j.at("stop_reason").get<std::string>();
  } catch (const json::exception&) {
    return false;
  }
  return true;
}

std::string records::save(const vm_record& record) const {
  std::error_code error;
  fs::create_directories(directory_, error);
  ::chmod(directory_.c_str(), 0700);
  const auto whole = path(record.sandbox_id(), ".json");
  const auto part = whole + ".part";
  std::ofstream out{part, std::ios::trunc};
  out << to_text(record);
  out.close();
  if (out)
    fs::rename(part, whole, error);
  if (out && !error)
    return {};
  return "the VM's record " + whole +
         " cannot be written: is the file system of the run directory full or not writable?";
}

void records::remove(const std::string& sandbox_id) const {
  for (const char* ending : {".json.part", ".events", ".log", ".json"})
    ::unlink(path(sandbox_id, ending).c_str());
}

std::vector<vm_record> records::all() const {
  std::vector<vm_record> out;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator{directory_, ignored}) {
    if (entry.path().extension() != ".json" || entry.file_size(ignored) > most_record_bytes)
      continue;
    std::ifstream in{entry.path()};
    vm_record r;
    if (from_text({std::istreambuf_iterator<char>{in}, {}}, r) && r.sandbox_id() == entry.path().stem())
      out.push_back(std::move(r));
  }
  return out;
}

} // namespace caisson::cloud_hypervisor
