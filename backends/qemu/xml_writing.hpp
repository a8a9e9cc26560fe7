#pragma once

/// What the writers of libvirt's documents share.

#include <pugixml.hpp>

#include <sstream>
#include <string>

namespace caisson::qemu::xml {

inline pugi::xml_node add(pugi::xml_node parent, const char* name) {
  return parent.append_child(name);
}

inline pugi::xml_node add(pugi::xml_node parent, const char* name, const std::string& text) {
  auto node = parent.append_child(name);
  node.append_child(pugi::node_pcdata).set_value(text.c_str());
  return node;
}

/// Answers the node.
inline pugi::xml_node attribute(pugi::xml_node node, const char* name, const std::string& value) {
  node.append_attribute(name).set_value(value.c_str());
  return node;
}

inline pugi::xml_node add_kib(pugi::xml_node parent, const char* name, std::uint64_t bytes) {
  return attribute(add(parent, name, std::to_string(bytes / 1024)), "unit", "KiB");
}

inline void add_pci_address(pugi::xml_node device, unsigned slot, unsigned function = 0, bool multifunction = false,
                            unsigned bus = 0) {
  auto hex = [](unsigned v) {
    std::ostringstream s;
    s << "0x" << std::hex << v;
    return s.str();
  };
  auto address = attribute(add(device, "address"), "type", "pci");
  attribute(address, "domain", "0x0");
  attribute(address, "bus", hex(bus));
  attribute(address, "slot", hex(slot));
  attribute(address, "function", hex(function));
  if (multifunction)
    attribute(address, "multifunction", "on");
}

inline std::string print(const pugi::xml_node& node) {
  std::ostringstream out;
  node.print(out, "  ", pugi::format_indent | pugi::format_no_declaration, pugi::encoding_utf8);
  return out.str();
}

} // namespace caisson::qemu::xml
