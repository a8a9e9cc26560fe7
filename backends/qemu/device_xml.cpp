#include "backends/qemu/device_xml.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "backends/qemu/failure.hpp"
#include "backends/qemu/text_checks.hpp"
#include "backends/qemu/xml_writing.hpp"

namespace caisson::qemu {
namespace {

using xml::add;
using xml::attribute;

constexpr std::string_view alias_prefix = "ua-device-";
constexpr std::size_t max_tap_name_bytes = 15;  // IFNAMSIZ without its terminating zero
constexpr std::size_t max_serial_bytes = 20;    // VIRTIO_BLK_ID_BYTES

void check_id(const char* kind, const std::string& id) {
  if (!valid_sandbox_id(id))
    throw failure("invalid_argument",
                  std::string{kind} + " id '" + printable(id) + "': expected 1 to 32 of a-z 0-9 -");
}

device_reading checked(const v1::VmDisk& disk) {
  check_id("disk", disk.id());
  check_path("disk " + disk.id() + ": its image", disk.path());
  return {disk.id(), "disk", disk.path()};
}

device_reading checked(const v1::VmNet& net) {
  check_id("net", net.id());
  const auto& tap = net.tap_name();
  auto fits = [](unsigned char c) { return c > 0x20 && c < 0x7f && c != '/' && c != ':' && c != '%'; };
  if (tap.empty() || tap.size() > max_tap_name_bytes || !std::all_of(tap.begin(), tap.end(), fits))
    throw failure("invalid_argument", "net " + net.id() + ": tap '" + printable(tap) +
                                          "': expected the name of an interface, 1 to 15 bytes");
  const auto& mac = net.mac();
  auto hex_or_colon = [&](std::size_t i) {
    return i % 3 == 2 ? mac[i] == ':' : std::isxdigit(static_cast<unsigned char>(mac[i])) != 0;
  };
  bool whole = mac.size() == 17;
  for (std::size_t i = 0; whole && i < mac.size(); ++i)
    whole = hex_or_colon(i);
  if (!mac.empty() && !whole)
    throw failure("invalid_argument", "net " + net.id() + ": mac '" + printable(mac) +
                                          "': expected six bytes as in 52:54:00:12:34:56");
  return {net.id(), "net", tap};
}

device_reading checked(const v1::VmShare& share) {
  check_id("share", share.id());
  check_path("share " + share.id() + ": its socket", share.socket_path());
  check_socket_path(share.socket_path());
  return {share.id(), "share", share.socket_path()};
}

bool block_device(const std::string& path) {
  struct stat s{};
  return ::stat(path.c_str(), &s) == 0 && S_ISBLK(s.st_mode);
}

void name(pugi::xml_node device, const std::string& id) {
  attribute(add(device, "alias"), "name", device_alias(id));
}

/// Takes the first name that is free.
std::string target_name(std::set<std::string>& taken) {
  for (unsigned n = 0;; ++n) {
    std::string letters;
    for (unsigned rest = n + 1; rest > 0; rest = (rest - 1) / 26)
      letters.insert(letters.begin(), static_cast<char>('a' + (rest - 1) % 26));
    if (auto name = "vd" + letters; taken.insert(name).second)
      return name;
  }
}

pugi::xml_node add_document(pugi::xml_node into, const v1::VmDisk& disk, std::set<std::string>& targets) {
  bool block = block_device(disk.path());
  auto d = attribute(attribute(add(into, "disk"), "type", block ? "block" : "file"), "device", "disk");
  attribute(attribute(add(d, "driver"), "name", "qemu"), "type", "raw");
  attribute(add(d, "source"), block ? "dev" : "file", disk.path());
  attribute(attribute(add(d, "target"), "dev", target_name(targets)), "bus", "virtio");
  add(d, "serial", disk.id().substr(0, max_serial_bytes));
  if (disk.read_only())
    add(d, "readonly");
  name(d, disk.id());
  return d;
}

pugi::xml_node add_document(pugi::xml_node into, const v1::VmNet& net) {
  auto i = attribute(add(into, "interface"), "type", "ethernet");
  if (!net.mac().empty())
    attribute(add(i, "mac"), "address", net.mac());
  // Its maker owns it: libvirt only opens it.
  attribute(attribute(add(i, "target"), "dev", net.tap_name()), "managed", "no");
  attribute(add(i, "model"), "type", "virtio-non-transitional");
  name(i, net.id());
  return i;
}

pugi::xml_node add_document(pugi::xml_node into, const v1::VmShare& share) {
  auto f = attribute(add(into, "filesystem"), "type", "mount");
  attribute(attribute(add(f, "driver"), "type", "virtiofs"), "queue", "1024");
  attribute(add(f, "source"), "socket", share.socket_path());
  attribute(add(f, "target"), "dir", share.id());
  name(f, share.id());
  return f;
}

} // namespace

std::string device_alias(std::string_view id) {
  return std::string{alias_prefix} + std::string{id};
}

std::string device_of_alias(std::string_view alias) {
  return alias.starts_with(alias_prefix) ? std::string{alias.substr(alias_prefix.size())} : std::string{};
}

std::vector<device_reading> devices_of(const v1::VmSpec& spec) {
  std::vector<device_reading> out;
  for (const auto& d : spec.disks())
    out.push_back(checked(d));
  for (const auto& n : spec.nets())
    out.push_back(checked(n));
  for (const auto& s : spec.shares())
    out.push_back(checked(s));
  if (out.size() > max_boot_devices)
    throw failure("out_of_range", std::to_string(out.size()) + " disks, nets and shares: the QEMU backend has room for " +
                                      std::to_string(max_boot_devices) + " at boot");
  std::set<std::string> ids;
  for (const auto& d : out)
    if (!ids.insert(d.id).second)
      throw failure("invalid_argument", "two devices have the id '" + d.id + "': expected one each");
  return out;
}

device_reading device_of(const v1::AttachDevice& call) {
  if (call.has_disk())
    return checked(call.disk());
  if (call.has_net())
    return checked(call.net());
  throw failure("invalid_argument", "no device is named");
}

void add_device_documents(pugi::xml_node devices, const v1::VmSpec& spec, unsigned first_root_port) {
  std::set<std::string> targets;
  auto port = first_root_port;
  for (const auto& d : spec.disks())
    xml::add_pci_address(add_document(devices, d, targets), 0, 0, false, port++);
  for (const auto& n : spec.nets())
    xml::add_pci_address(add_document(devices, n), 0, 0, false, port++);
  for (const auto& s : spec.shares())
    xml::add_pci_address(add_document(devices, s), 0, 0, false, port++);
}

std::string attach_xml(const v1::AttachDevice& call, const std::string& live_domain_xml) {
  device_of(call);
  pugi::xml_document live, document;
  if (!live.load_string(live_domain_xml.c_str()))
    throw failure("internal", "libvirt's domain document does not parse");
  std::set<std::string> targets;
  for (auto d : live.child("domain").child("devices").children("disk"))
    targets.insert(d.child("target").attribute("dev").as_string());
  return xml::print(call.has_disk() ? add_document(document, call.disk(), targets)
                                    : add_document(document, call.net()));
}

std::vector<device_reading> read_devices(pugi::xml_node devices) {
  std::vector<device_reading> out;
  for (auto d : devices.children()) {
    auto id = device_of_alias(d.child("alias").attribute("name").as_string());
    if (id.empty())
      continue;
    std::string_view element = d.name();
    auto source = d.child("source");
    if (element == "disk")
      out.push_back({id, "disk", source.attribute(source.attribute("dev") ? "dev" : "file").as_string()});
    else if (element == "interface")
      out.push_back({id, "net", d.child("target").attribute("dev").as_string()});
    else if (element == "filesystem")
      out.push_back({id, "share", source.attribute("socket").as_string()});
  }
  return out;
}

} // namespace caisson::qemu
