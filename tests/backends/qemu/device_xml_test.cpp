#include "backends/qemu/device_xml.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "backends/qemu/domain_xml.hpp"
#include "backends/qemu/failure.hpp"
#include "backends/qemu/monitor_reading.hpp"

namespace caisson::qemu {
namespace {

v1::VmSpec spec() {
  v1::VmSpec s;
  s.set_sandbox_id("pod-1");
  s.set_architecture("x86_64");
  s.set_vmm_path("/usr/bin/qemu-system-x86_64");
  s.set_accelerator("tcg");
  s.set_boot_vcpus(1);
  s.set_max_vcpus(1);
  s.set_boot_bytes(256 * mib);
  s.set_max_bytes(256 * mib);
  s.set_memory_method(v1::MEMORY_METHOD_DIMM);
  s.set_kernel_path("/k/vmlinux");
  s.set_run_directory("/run/caisson/x/pod-1");
  s.set_free_root_ports(2);
  auto& disk = *s.add_disks();
  disk.set_id("rootfs");
  disk.set_path("/images/<a,b>.erofs");
  disk.set_read_only(true);
  auto& net = *s.add_nets();
  net.set_id("eth0");
  net.set_tap_name("tap7");
  net.set_mac("52:54:00:12:34:56");
  auto& share = *s.add_shares();
  share.set_id("bundle");
  share.set_socket_path("/run/caisson/x/fs.sock");
  return s;
}

std::string refused(const v1::VmSpec& s) {
  try {
    domain_xml(s, "/var/lib/caisson", false);
    return "carried";
  } catch (const failure& e) {
    return e.code();
  }
}

pugi::xml_document parsed(const std::string& text) {
  pugi::xml_document d;
  EXPECT_TRUE(d.load_string(text.c_str())) << text;
  return d;
}

TEST(device_xml, boot_devices_stand_behind_ports_of_their_own_and_leave_the_free_ones_free) {
  auto xml = domain_xml(spec(), "/var/lib/caisson", false);
  auto d = parsed(xml);
  EXPECT_EQ(d.select_nodes("//controller[@model='pcie-root-port']").size(), 5u) << xml;
  std::set<std::string> buses;
  for (auto path : {"//disk/address", "//interface/address", "//filesystem/address"}) {
    auto bus = std::string{d.select_node(path).node().attribute("bus").as_string()};
    EXPECT_TRUE(buses.insert(bus).second) << xml;
    auto index = std::to_string(std::stoul(bus, nullptr, 16));
    auto port = d.select_node(("//controller[@index='" + index + "']").c_str()).node();
    EXPECT_STREQ(port.attribute("model").as_string(), "pcie-root-port");
    EXPECT_STREQ(port.child("address").attribute("slot").as_string(), "0x5") << "apart from the free ones";
  }
  EXPECT_STREQ(d.select_node("//disk/source").node().attribute("file").as_string(), "/images/<a,b>.erofs");
  EXPECT_TRUE(d.select_node("//disk/readonly"));
  EXPECT_STREQ(d.select_node("//disk/serial").node().text().get(), "rootfs");
  EXPECT_STREQ(d.select_node("//interface/target").node().attribute("managed").as_string(), "no");
  EXPECT_STREQ(d.select_node("//memoryBacking/access").node().attribute("mode").as_string(), "shared");
}

TEST(device_xml, what_is_written_is_read_back) {
  auto read = read_domain_xml(domain_xml(spec(), "/var/lib/caisson", false)).devices;
  auto asked = devices_of(spec());
  ASSERT_EQ(read.size(), asked.size());
  for (const auto& a : asked)
    EXPECT_EQ(std::count_if(read.begin(), read.end(), [&](const auto& r) { return r.same_as(a); }), 1) << a.id;
  EXPECT_EQ(device_of_alias(device_alias("x-1")), "x-1");
  EXPECT_EQ(device_of_alias(dimm_alias("x-1")), "") << "a DIMM is no device of these";
  EXPECT_EQ(dimm_of_alias(device_alias("x-1")), "");
}

TEST(device_xml, a_disk_that_comes_later_takes_a_name_that_is_free) {
  v1::AttachDevice call;
  call.mutable_disk()->set_id("layer-27-with-a-long-name");
  call.mutable_disk()->set_path("/images/b");
  auto d = parsed(attach_xml(call, domain_xml(spec(), "/var/lib/caisson", false)));
  EXPECT_STREQ(d.select_node("//target").node().attribute("dev").as_string(), "vdb");
  EXPECT_STREQ(d.select_node("//serial").node().text().get(), "layer-27-with-a-long");
  EXPECT_FALSE(d.select_node("//readonly"));
  EXPECT_FALSE(d.select_node("//address"));
}

TEST(device_xml, what_cannot_be_carried_is_refused) {
  auto change = [](auto f) {
    auto s = spec();
    f(s);
    return refused(s);
  };
  EXPECT_EQ(change([](auto&) {}), "carried");
  EXPECT_EQ(change([](auto& s) { s.mutable_disks(0)->set_id("Upper"); }), "invalid_argument");
  EXPECT_EQ(change([](auto& s) { s.mutable_disks(0)->set_path("relative"); }), "invalid_argument");
  EXPECT_EQ(change([](auto& s) { s.mutable_disks(0)->set_path("/a\nb"); }), "invalid_argument");
  EXPECT_EQ(change([](auto& s) { s.mutable_nets(0)->set_tap_name("sixteen-bytes-xx"); }), "invalid_argument");
  EXPECT_EQ(change([](auto& s) { s.mutable_nets(0)->set_tap_name(""); }), "invalid_argument");
  EXPECT_EQ(change([](auto& s) { s.mutable_nets(0)->set_mac("52:54:00:12:34"); }), "invalid_argument");
  EXPECT_EQ(change([](auto& s) { s.mutable_nets(0)->set_id("rootfs"); }), "invalid_argument");
  EXPECT_EQ(change([](auto& s) { s.mutable_shares(0)->set_socket_path("/" + std::string(110, 'x')); }),
            "invalid_argument");
  EXPECT_EQ(change([](auto& s) {
              for (int i = 0; i < 30; ++i) {
                s.add_disks()->set_id("d" + std::to_string(i));
                s.mutable_disks(i + 1)->set_path("/d");
              }
            }),
            "out_of_range");
  EXPECT_THROW(device_of(v1::AttachDevice{}), failure);
}

TEST(device_xml, a_balloon_is_there_only_to_report_free_pages) {
  auto s = spec();
  s.set_free_page_reporting(true);
  auto d = parsed(domain_xml(s, "/var/lib/caisson", false));
  EXPECT_STREQ(d.select_node("//memballoon").node().attribute("freePageReporting").as_string(), "on");
}

TEST(device_xml, addresses_are_the_guests) {
  auto found = read_pci_addresses(R"({"return":[{"bus":0,"devices":[
    {"bus":0,"slot":2,"function":0,"qdev_id":"rng0"},
    {"bus":0,"slot":5,"function":1,"qdev_id":"pci.3","pci_bridge":{"bus":{"number":0},"devices":[
      {"bus":3,"slot":0,"function":0,"qdev_id":"ua-device-rootfs"}]}},
    {"bus":0,"slot":5,"function":2,"qdev_id":"pci.4","pci_bridge":{"devices":[
      {"bus":0,"slot":0,"function":0,"qdev_id":"ua-device-early"}]}}]}]})");
  EXPECT_EQ(found["rng0"], "0000:00:02.0");
  EXPECT_EQ(found["ua-device-rootfs"], "0000:03:00.0");
  EXPECT_FALSE(found.contains("ua-device-early")) << "nobody has numbered its bus";
  EXPECT_THROW(read_pci_addresses(R"({"error":{"desc":"no"}})"), failure);
}

} // namespace
} // namespace caisson::qemu
