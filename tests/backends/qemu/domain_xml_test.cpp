#include "backends/qemu/domain_xml.hpp"

#include <gtest/gtest.h>
#include <pugixml.hpp>
#include <rapidcheck.h>

#include <algorithm>
#include <set>

#include "backends/qemu/cpu_features.hpp"
#include "backends/qemu/failure.hpp"
#include "backends/qemu/monitor_reading.hpp"
#include "backends/qemu/text_checks.hpp"

namespace caisson::qemu {
namespace {

constexpr const char* state = "/var/lib/caisson";

v1::VmSpec spec(v1::MemoryMethod method = v1::MEMORY_METHOD_DIMM) {
  v1::VmSpec s;
  s.set_sandbox_id("pod-1");
  s.set_architecture("x86_64");
  s.set_vmm_path("/usr/bin/qemu-system-x86_64");
  s.set_accelerator("tcg");
  s.set_boot_vcpus(1);
  s.set_max_vcpus(4);
  s.set_boot_bytes(256 * mib);
  s.set_max_bytes(2048 * mib);
  s.set_memory_slots(10);
  s.set_memory_method(method);
  s.set_kernel_path("/k/vmlinux");
  s.set_initrd_path("/k/initramfs");
  s.set_kernel_command_line("console=ttyS0 swiotlb=noforce");
  s.set_run_directory("/run/caisson/x/pod-1");
  s.set_entropy_source("/dev/urandom");
  return s;
}

v1::VmSpec arm(v1::MemoryMethod method) {
  auto s = spec(method);
  s.set_architecture("aarch64");
  s.set_vmm_path("/usr/bin/qemu-system-aarch64");
  s.set_max_vcpus(1);
  s.set_kernel_path("/k/Image");
  return s;
}

pugi::xml_document parsed(const v1::VmSpec& s, bool daemon = false) {
  pugi::xml_document d;
  EXPECT_TRUE(d.load_string(domain_xml(s, state, daemon).c_str()));
  return d;
}

std::string text(const pugi::xml_document& d, const char* path) {
  auto found = d.select_node(path);
  if (!found)
    return "(none)";
  return found.attribute() ? found.attribute().value() : found.node().text().get();
}

std::string refused(const v1::VmSpec& s) {
  try {
    domain_xml(s, state, false);
    return "carried";
  } catch (const failure& e) {
    return e.code();
  }
}

TEST(domain_xml, golden_head) {
  auto xml = domain_xml(spec(), state, false);
  auto head = xml.substr(0, xml.find("  <devices>"));
  auto digest = spec_digest(spec());
  EXPECT_EQ(head, "<domain type=\"qemu\">\n"
                  "  <name>caisson-pod-1</name>\n"
                  "  <uuid>" + domain_uuid(state, "pod-1") + "</uuid>\n"
                  "  <metadata>\n"
                  "    <caisson:vm xmlns:caisson=\"urn:caisson:vm:1\" sandbox=\"pod-1\" state=\"/var/lib/caisson\" "
                  "run=\"/run/caisson/x/pod-1\" digest=\"" + digest + "\" />\n"
                  "  </metadata>\n"
                  "  <maxMemory unit=\"KiB\" slots=\"10\">2097152</maxMemory>\n"
                  "  <memory unit=\"KiB\">262144</memory>\n"
                  "  <memoryBacking>\n"
                  "    <source type=\"memfd\" />\n"
                  "    <access mode=\"shared\" />\n"
                  "  </memoryBacking>\n"
                  "  <vcpu placement=\"static\" current=\"1\">4</vcpu>\n"
                  "  <os>\n"
                  "    <type arch=\"x86_64\" machine=\"q35\">hvm</type>\n"
                  "    <kernel>/k/vmlinux</kernel>\n"
                  "    <initrd>/k/initramfs</initrd>\n"
                  "    <cmdline>console=ttyS0 swiotlb=noforce</cmdline>\n"
                  "  </os>\n"
                  "  <features>\n"
                  "    <acpi />\n"
                  "    <apic />\n"
                  "  </features>\n"
                  "  <cpu>\n"
                  "    <numa>\n"
                  "      <cell id=\"0\" cpus=\"0-3\" memory=\"262144\" unit=\"KiB\" />\n"
                  "    </numa>\n"
                  "  </cpu>\n"
                  "  <clock offset=\"utc\">\n"
                  "    <timer name=\"hpet\" present=\"no\" />\n"
                  "  </clock>\n"
                  "  <on_poweroff>destroy</on_poweroff>\n"
                  "  <on_reboot>destroy</on_reboot>\n"
                  "  <on_crash>destroy</on_crash>\n");
}

TEST(domain_xml, has_the_channel_the_console_and_nothing_unasked) {
  auto d = parsed(spec());
  EXPECT_EQ(text(d, "//channel/source/@path"), "/run/caisson/x/pod-1/agent.sock");
  EXPECT_EQ(text(d, "//channel/target/@name"), "caisson.agent.0");
  EXPECT_EQ(text(d, "//serial/source/@path"), "/run/caisson/x/pod-1/console.sock");
  EXPECT_EQ(text(d, "//memballoon/@model"), "none");
  EXPECT_EQ(text(d, "//controller[@type='usb']/@model"), "none");
  for (auto device : {"disk", "interface", "graphics", "video", "input", "tpm", "watchdog", "hostdev", "sound"})
    EXPECT_FALSE(d.select_node((std::string{"//devices/"} + device).c_str())) << device;
  auto quiet = spec();
  quiet.clear_entropy_source();
  EXPECT_EQ(text(parsed(quiet), "//rng/backend"), "(none)");
  EXPECT_EQ(text(d, "//rng/backend"), "/dev/urandom");
}

TEST(domain_xml, memory_follows_the_specification) {
  auto dimm = parsed(spec());
  EXPECT_EQ(text(dimm, "//devices/memory/@model"), "(none)");

  auto s = spec(v1::MEMORY_METHOD_VIRTIO_MEM);
  s.set_boot_bytes(257 * mib);
  auto d = parsed(s);
  EXPECT_EQ(text(d, "//devices/memory/@model"), "virtio-mem");
  EXPECT_EQ(text(d, "//devices/memory/target/size"), std::to_string(1790 * 1024)) << "rounded down to the granule";
  EXPECT_EQ(text(d, "//devices/memory/target/block"), "2048");
  EXPECT_EQ(text(d, "//devices/memory/target/requested"), "0");
  EXPECT_EQ(text(d, "//devices/memory/alias/@name"), "ua-virtio-mem");
  EXPECT_EQ(text(d, "//maxMemory"), std::to_string((257 + 1790) * 1024));

  s.set_max_bytes(s.boot_bytes());
  EXPECT_EQ(text(parsed(s), "//devices/memory/@model"), "(none)") << "a VM that never grows";
  EXPECT_EQ(text(parsed(s), "//maxMemory"), "(none)");

  s.set_hugepages(true);
  s.set_preallocate(true);
  EXPECT_TRUE(parsed(s).select_node("//memoryBacking/hugepages"));
  EXPECT_EQ(text(parsed(s), "//memoryBacking/allocation/@mode"), "immediate");
}

TEST(domain_xml, accelerator_decides_the_processor_model) {
  auto s = spec();
  EXPECT_EQ(text(parsed(s), "//cpu/@mode"), "(none)");
  s.set_cpu_features("pmu=off");
  EXPECT_EQ(text(parsed(s), "//cpu/@mode"), "(none)") << "pmu needs no model";
  EXPECT_EQ(text(parsed(s), "//features/pmu/@state"), "off");
  s.set_cpu_features("pmu=off,+aes,-x2apic,rdrand=on");
  EXPECT_EQ(text(parsed(s), "//cpu/model"), "qemu64");
  EXPECT_EQ(text(parsed(s), "//cpu/feature[@name='aes']/@policy"), "require");
  EXPECT_EQ(text(parsed(s), "//cpu/feature[@name='x2apic']/@policy"), "disable");
  s.set_accelerator("kvm");
  EXPECT_EQ(text(parsed(s), "/domain/@type"), "kvm");
  EXPECT_EQ(text(parsed(s), "//cpu/@mode"), "host-passthrough");
  s.set_cpu_features("pmu=perhaps");
  EXPECT_EQ(refused(s), "invalid_argument");
}

TEST(domain_xml, firmware_only_where_named) {
  EXPECT_EQ(text(parsed(spec()), "//os/loader"), "(none)");
  auto s = spec();
  s.set_firmware_path("/fw/bios.bin");
  EXPECT_EQ(text(parsed(s), "//os/loader/@type"), "rom");
  s.set_firmware_variables_path("/fw/vars.fd");
  EXPECT_EQ(text(parsed(s), "//os/loader/@type"), "pflash");
  EXPECT_EQ(text(parsed(s), "//os/nvram"), "/run/caisson/x/pod-1/firmware-variables.fd");
  EXPECT_EQ(text(parsed(s), "//os/nvram/@template"), "(none)");
}

TEST(domain_xml, arm64_is_a_virt_machine) {
  auto s = arm(v1::MEMORY_METHOD_VIRTIO_MEM);
  auto d = parsed(s);
  EXPECT_EQ(text(d, "//os/type/@arch"), "aarch64");
  EXPECT_EQ(text(d, "//os/type/@machine"), "virt");
  EXPECT_EQ(text(d, "//features/apic"), "(none)");
  EXPECT_EQ(text(d, "//features/acpi"), "(none)") << "libvirt refuses ACPI on ARM64 without UEFI";
  EXPECT_EQ(text(d, "//features/gic/@version"), "3");
  EXPECT_EQ(text(d, "//cpu/model"), "cortex-a72");
  EXPECT_EQ(text(d, "//serial/target/model/@name"), "pl011");
  EXPECT_EQ(text(d, "//panic"), "(none)");
  EXPECT_EQ(text(d, "//timer[@name='hpet']"), "(none)");
  EXPECT_EQ(text(d, "//devices/memory/@model"), "virtio-mem");
  EXPECT_EQ(text(d, "//devices/memory/address/@slot"), "0x3");
  s.set_accelerator("kvm");
  EXPECT_EQ(text(parsed(s), "//features/gic/@version"), "host");
  EXPECT_EQ(text(parsed(s), "//cpu/@mode"), "host-passthrough");
}

TEST(domain_xml, arm64_has_acpi_and_two_flashes_with_firmware) {
  auto s = arm(v1::MEMORY_METHOD_DIMM);
  s.set_firmware_path("/fw/code.fd");
  auto d = parsed(s);
  EXPECT_NE(d.select_node("//features/acpi"), pugi::xpath_node{});
  EXPECT_EQ(text(d, "//os/loader"), "/fw/code.fd");
  EXPECT_EQ(text(d, "//os/loader/@type"), "pflash");
  EXPECT_EQ(text(d, "//os/loader/@readonly"), "yes");
  EXPECT_EQ(text(d, "//os/nvram"), "/run/caisson/x/pod-1/firmware-variables.fd") << "its own, with and without a template";
  EXPECT_EQ(text(d, "//maxMemory/@slots"), "10");
}

TEST(domain_xml, under_kvm_all_vcpus_but_the_first_can_leave) {
  auto s = spec();
  s.set_boot_vcpus(2);
  s.set_max_vcpus(3);
  EXPECT_EQ(text(parsed(s), "//vcpus"), "(none)") << "under TCG none can";
  s.set_accelerator("kvm");
  auto d = parsed(s);
  EXPECT_EQ(text(d, "//vcpus/vcpu[@id='0']/@hotpluggable"), "no");
  EXPECT_EQ(text(d, "//vcpus/vcpu[@id='1']/@hotpluggable"), "yes");
  EXPECT_EQ(text(d, "//vcpus/vcpu[@id='1']/@enabled"), "yes");
  EXPECT_EQ(text(d, "//vcpus/vcpu[@id='1']/@order"), "2");
  EXPECT_EQ(text(d, "//vcpus/vcpu[@id='2']/@enabled"), "no");
  s.set_boot_vcpus(1);
  EXPECT_EQ(text(parsed(s), "//vcpus"), "(none)");
}

TEST(domain_xml, arm64_plugs_no_vcpus) {
  auto s = arm(v1::MEMORY_METHOD_VIRTIO_MEM);
  s.set_max_vcpus(4);
  EXPECT_EQ(refused(s), "unsupported");
}

TEST(domain_xml, a_foreign_daemon_runs_the_vmm_as_us) {
  EXPECT_EQ(text(parsed(spec()), "//seclabel/@type"), "(none)");
  EXPECT_EQ(text(parsed(spec(), true), "//seclabel/label").substr(0, 1), "+");
}

TEST(domain_xml, ports_and_bridges_have_addresses_of_their_own) {
  EXPECT_TRUE(rc::check("every PCI address is used once, all free ports are really free", [] {
    auto s = spec(*rc::gen::element(v1::MEMORY_METHOD_DIMM, v1::MEMORY_METHOD_VIRTIO_MEM));
    s.set_free_root_ports(*rc::gen::inRange<std::uint32_t>(0, max_free_root_ports + 1));
    s.set_bridges(*rc::gen::inRange<std::uint32_t>(0, max_bridges + 1));
    auto d = parsed(s);
    std::set<std::string> addresses, indexes, buses_in_use;
    for (auto found : d.select_nodes("//devices/*/address[@type='pci']")) {
      auto a = found.node();
      RC_ASSERT(addresses
                    .insert(std::string{a.attribute("bus").value()} + ":" + a.attribute("slot").value() + "." +
                            a.attribute("function").value())
                    .second);
      buses_in_use.insert(std::to_string(std::stoul(a.attribute("bus").value(), nullptr, 0)));
    }
    std::uint32_t free_ports = 0, bridges = 0;
    for (auto found : d.select_nodes("//controller[@type='pci']")) {
      std::string index = found.node().attribute("index").value(), model = found.node().attribute("model").value();
      RC_ASSERT(indexes.insert(index).second);
      free_ports += model == "pcie-root-port" && !buses_in_use.contains(index);
      bridges += model == "pcie-to-pci-bridge";
    }
    RC_ASSERT(free_ports == s.free_root_ports());
    RC_ASSERT(bridges == s.bridges());
  }));
}

TEST(domain_xml, any_printable_path_comes_back_as_it_was) {
  EXPECT_TRUE(rc::check("names with commas, quotes, markup and UTF-8 are carried", [] {
    auto part = *rc::gen::container<std::string>(rc::gen::elementOf(std::string{"ab,;'\"<>&%$ =\\#]["}));
    part.resize(std::min<std::size_t>(part.size(), 60));  // socket paths are short
    auto s = spec();
    s.set_kernel_path("/k/" + part + "\xc3\xa9");
    s.set_kernel_command_line("x=" + part + "y");
    s.set_run_directory("/r/" + part + "z");
    auto d = parsed(s);
    RC_ASSERT(text(d, "//os/kernel") == s.kernel_path());
    RC_ASSERT(text(d, "//os/cmdline") == s.kernel_command_line());
    RC_ASSERT(text(d, "//channel/source/@path") == s.run_directory() + "/agent.sock");
    auto back = read_domain_xml(domain_xml(s, state, false));
    RC_ASSERT(back.notes.run_directory == s.run_directory());
    RC_ASSERT(back.notes.spec_digest == spec_digest(s));
  }));
}

TEST(domain_xml, refuses_what_cannot_be_carried) {
  using edit = void (*)(v1::VmSpec&);
  struct row {
    const char* what;
    edit change;
    const char* code;
  };
  const row rows[] = {
      {"newline in a path", [](v1::VmSpec& s) { s.set_kernel_path("/k/a\nb"); }, "invalid_argument"},
      {"escape in the command line", [](v1::VmSpec& s) { s.set_kernel_command_line("a\x1b[0m"); }, "invalid_argument"},
      {"tab in the command line", [](v1::VmSpec& s) { s.set_kernel_command_line("a\tb"); }, "invalid_argument"},
      {"broken UTF-8", [](v1::VmSpec& s) { s.set_initrd_path("/k/\xff"); }, "invalid_argument"},
      {"overlong UTF-8", [](v1::VmSpec& s) { s.set_initrd_path("/k/\xc0\xaf"); }, "invalid_argument"},
      {"surrogate", [](v1::VmSpec& s) { s.set_initrd_path("/k/\xed\xa0\x80"); }, "invalid_argument"},
      {"relative kernel", [](v1::VmSpec& s) { s.set_kernel_path("vmlinux"); }, "invalid_argument"},
      {"no kernel", [](v1::VmSpec& s) { s.clear_kernel_path(); }, "invalid_argument"},
      {"id with a slash", [](v1::VmSpec& s) { s.set_sandbox_id("../x"); }, "invalid_argument"},
      {"long id", [](v1::VmSpec& s) { s.set_sandbox_id(std::string(33, 'a')); }, "invalid_argument"},
      {"long socket path", [](v1::VmSpec& s) { s.set_run_directory("/" + std::string(100, 'r')); }, "invalid_argument"},
      {"accelerator left open", [](v1::VmSpec& s) { s.set_accelerator("auto"); }, "invalid_argument"},
      {"method left open", [](v1::VmSpec& s) { s.set_memory_method({}); }, "invalid_argument"},
      {"architecture", [](v1::VmSpec& s) { s.set_architecture("vax"); }, "unsupported"},
      {"no vCPU", [](v1::VmSpec& s) { s.set_boot_vcpus(0); }, "out_of_range"},
      {"maximum below boot", [](v1::VmSpec& s) { s.set_max_vcpus(0); }, "out_of_range"},
      {"memory below boot", [](v1::VmSpec& s) { s.set_max_bytes(128 * mib); }, "out_of_range"},
      {"tiny memory", [](v1::VmSpec& s) { s.set_boot_bytes(1 * mib); }, "out_of_range"},
      {"odd memory", [](v1::VmSpec& s) { s.set_boot_bytes(256 * mib + 1); }, "out_of_range"},
      {"no slots", [](v1::VmSpec& s) { s.set_memory_slots(0); }, "out_of_range"},
      {"too many slots", [](v1::VmSpec& s) { s.set_memory_slots(257); }, "out_of_range"},
      {"too many bridges", [](v1::VmSpec& s) { s.set_bridges(9); }, "out_of_range"},
      {"too many ports", [](v1::VmSpec& s) { s.set_free_root_ports(121); }, "out_of_range"},
  };
  for (const auto& r : rows) {
    auto s = spec();
    r.change(s);
    EXPECT_EQ(refused(s), r.code) << r.what;
  }
  EXPECT_EQ(refused(spec()), "carried");
}

TEST(domain_xml, names_and_ids_are_stable) {
  EXPECT_EQ(domain_name("a-1"), "caisson-a-1");
  EXPECT_EQ(sandbox_of_domain("caisson-a-1"), "a-1");
  EXPECT_EQ(sandbox_of_domain("somebody-else"), "");
  EXPECT_EQ(sandbox_of_domain("caisson-A"), "");
  EXPECT_EQ(domain_uuid("/s", "a"), domain_uuid("/s", "a"));
  EXPECT_NE(domain_uuid("/s", "a"), domain_uuid("/t", "a"));
  EXPECT_NE(domain_uuid("/s", "a"), domain_uuid("/s", "b"));
  auto changed = spec();
  changed.set_bridges(1);
  EXPECT_NE(spec_digest(changed), spec_digest(spec()));
}

TEST(device_xml, dimms) {
  v1::Dimm dimm;
  dimm.set_id("m-1");
  dimm.set_size_bytes(256 * mib);
  EXPECT_EQ(dimm_xml(dimm), "<memory model=\"dimm\">\n"
                            "  <target>\n"
                            "    <size unit=\"KiB\">262144</size>\n"
                            "    <node>0</node>\n"
                            "  </target>\n"
                            "  <alias name=\"ua-dimm-m-1\" />\n"
                            "</memory>\n");
  EXPECT_EQ(dimm_of_alias("ua-dimm-m-1"), "m-1");
  EXPECT_EQ(dimm_of_alias("ua-virtio-mem"), "");
  dimm.set_size_bytes(100 * mib);
  EXPECT_THROW(dimm_xml(dimm), failure);
  for (auto id : {"", "a,b", "a b", "\n", "a'"})
    EXPECT_THROW(check_device_id(id), failure) << id;
}

TEST(device_xml, virtio_mem_is_asked_within_its_size) {
  auto live = domain_xml(spec(v1::MEMORY_METHOD_VIRTIO_MEM), state, false);
  pugi::xml_document d;
  ASSERT_TRUE(d.load_string(virtio_mem_request_xml(live, 512 * mib).c_str()));
  EXPECT_EQ(text(d, "/memory/target/requested"), std::to_string(512 * 1024));
  EXPECT_EQ(text(d, "/memory/alias/@name"), "ua-virtio-mem");
  EXPECT_THROW(virtio_mem_request_xml(live, 512 * mib + 1), failure);
  EXPECT_THROW(virtio_mem_request_xml(live, 1ull << 60), failure);
  EXPECT_THROW(virtio_mem_request_xml(domain_xml(spec(), state, false), 2 * mib), failure);
  EXPECT_THROW(read_domain_xml("<domain"), failure);
}

TEST(monitor_reading, sums_what_is_there) {
  auto m = read_memory_devices(
      R"({"return":[{"type":"dimm","data":{"memdev":"/objects/memua-dimm-a","hotplugged":true,"addr":4294967296,
          "hotpluggable":true,"size":134217728,"slot":0,"node":0,"id":"ua-dimm-a"}},
        {"type":"dimm","data":{"addr":1,"size":134217728,"id":"another-one"}},
        {"type":"virtio-mem","data":{"block-size":2097152,"size":6291456,"requested-size":8388608,"max-size":1,
          "memaddr":0,"node":0,"memdev":"x","id":"ua-virtio-mem"}}],"id":"libvirt-1"})");
  ASSERT_EQ(m.dimms.size(), 1u);
  EXPECT_EQ(m.dimms[0].id(), "a");
  EXPECT_EQ(m.dimms[0].address(), 4294967296u);
  EXPECT_TRUE(m.virtio_mem);
  EXPECT_EQ(m.virtio_mem_size_bytes, 6u * mib);
  EXPECT_EQ(m.virtio_mem_requested_bytes, 8u * mib);
  EXPECT_EQ(read_boot_bytes(R"({"return":{"base-memory":268435456,"plugged-memory":0}})"), 256 * mib);
  EXPECT_EQ(read_plugged_vcpus(
                R"({"error":{"class":"GenericError","desc":"The feature 'query-hotpluggable-cpus' is not enabled"}})"),
            0u)
      << "ARM64's machine has what it was made with";
  EXPECT_THROW(read_plugged_vcpus(R"({"error":{"class":"GenericError","desc":"something else"}})"), failure);
  EXPECT_EQ(read_plugged_vcpus(R"({"return":[{"props":{"socket-id":1},"vcpus-count":1,"type":"t"},
    {"props":{"socket-id":0},"vcpus-count":1,"qom-path":"/machine/unattached/device[0]","type":"t"}]})"), 1u);
}

TEST(monitor_reading, the_vcpus_that_can_leave_are_told_last_one_first) {
  auto slot = [](const std::string& path) {
    return R"({"props":{"socket-id":1},"vcpus-count":1,"type":"t")" + (path.empty() ? "" : R"(,"qom-path":")" + path + '"') +
           "},";
  };
  auto answer = R"({"return":[)" + slot("") + slot("/machine/peripheral/vcpu10") + slot("/machine/peripheral/vcpu9") +
                slot("/machine/peripheral/vcpux") + slot("/machine/peripheral/vcpu1\\\"}") +
                slot("/machine/unattached/device[0]");
  answer.back() = ']';
  EXPECT_EQ(read_removable_vcpus(answer + '}'), (std::vector<std::string>{"vcpu10", "vcpu9"}));
  EXPECT_THROW(read_removable_vcpus(R"({"error":{"class":"GenericError","desc":"something else"}})"), failure);
  EXPECT_NO_THROW(read_taken(R"({"return":{},"id":"libvirt-7"})", "device_del"));
  EXPECT_THROW(read_taken(R"({"error":{"class":"DeviceNotFound","desc":"Device 'vcpu2' not found"}})", "device_del"),
               failure);
}

TEST(monitor_reading, keeps_qemus_own_words) {
  try {
    read_boot_bytes(R"({"error":{"class":"GenericError","desc":"no such thing"}})");
    FAIL() << "no failure";
  } catch (const failure& e) {
    EXPECT_EQ(e.code(), "backend_refused");
    EXPECT_NE(std::string{e.what()}.find("no such thing"), std::string::npos);
  }
  for (auto bad : {"", "nonsense", "{}", R"({"return":[]})", R"({"return":{"base-memory":"x"}})"})
    EXPECT_THROW(read_boot_bytes(bad), failure) << bad;
}

TEST(text_checks, shows_no_raw_bytes) {
  EXPECT_EQ(printable("a\x1b\n\xc3"), "a\\x1b\\x0a\\xc3");
  EXPECT_EQ(printable(std::string(300, 'x')).size(), 203u);
}

} // namespace
} // namespace caisson::qemu
