#include "backends/cloud-hypervisor/request_schema.hpp"

#include <array>
#include <limits>

namespace caisson::cloud_hypervisor::schema {
namespace {

constexpr std::int64_t most_int64 = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t most_vcpus = 8192;
constexpr std::int64_t least_queue = 1;
constexpr std::int64_t most_queue = 32768;

constexpr field boolean(std::string_view name) {
  return {.name = name, .type = kind::boolean};
}
constexpr field text(std::string_view name, bool required = false, std::span<const std::string_view> choices = {}) {
  return {.name = name, .type = kind::text, .required = required, .choices = choices};
}
constexpr field integer(std::string_view name, bool required, std::int64_t least, std::int64_t most = most_int64) {
  return {.name = name, .type = kind::integer, .required = required, .least = least, .most = most};
}
constexpr field part(std::string_view name, const object& of, bool required = false) {
  return {.name = name, .type = kind::object, .required = required, .of = &of};
}
constexpr field list(std::string_view name, const object& of) {
  return {.name = name, .type = kind::list, .of = &of};
}

constexpr bool needed = true;

constexpr std::array<std::string_view, 2> hotplug_methods{"Acpi", "VirtioMem"};
constexpr std::array<std::string_view, 1> image_types{"Raw"};
constexpr std::array<std::string_view, 6> serial_modes{"Off", "Null", "Tty", "Pty", "File", "Socket"};
constexpr std::array<std::string_view, 5> console_modes{"Off", "Null", "Tty", "Pty", "File"};

constexpr std::array cpus_fields{integer("boot_vcpus", needed, 1, most_vcpus), integer("max_vcpus", needed, 1, most_vcpus)};
constexpr object cpus{"CpusConfig", cpus_fields};

constexpr std::array memory_fields{integer("size", needed, 1),
                                   integer("hotplug_size", false, 1),
                                   integer("hotplugged_size", false, 1),
                                   text("hotplug_method", needed, hotplug_methods),
                                   boolean("shared"),
                                   boolean("hugepages"),
                                   boolean("prefault")};
constexpr object memory{"MemoryConfig", memory_fields};

constexpr std::array payload_fields{text("firmware"), text("kernel"), text("cmdline"), text("initramfs")};
constexpr object payload{"PayloadConfig", payload_fields};

constexpr std::array disk_fields{text("id"), text("path", needed), boolean("readonly"),
                                 text("image_type", needed, image_types)};
constexpr object disk{"DiskConfig", disk_fields};

constexpr std::array net_fields{text("id"), text("mac"), integer("num_queues", needed, 2, 512)};
constexpr object net{"NetConfig", net_fields};

constexpr std::array fs_fields{text("id"), text("tag", needed), text("socket", needed),
                               integer("num_queues", needed, least_queue, most_queue),
                               integer("queue_size", needed, least_queue, most_queue)};
constexpr object fs{"FsConfig", fs_fields};

constexpr std::array rng_fields{text("src", needed)};
constexpr object rng{"RngConfig", rng_fields};

constexpr std::array balloon_fields{integer("size", needed, 0), boolean("deflate_on_oom"), boolean("free_page_reporting")};
constexpr object balloon{"BalloonConfig", balloon_fields};

// Up to v53 the VMM's document has one object for both.
constexpr std::array serial_fields{text("mode", needed, serial_modes), text("file"), text("socket")};
constexpr object serial{"SerialConfig", serial_fields};
constexpr std::array console_fields{text("mode", needed, console_modes), text("file")};
constexpr object console{"ConsoleConfig", console_fields};

constexpr std::array vsock_fields{integer("cid", needed, 3, 0xffff'fffe), text("socket", needed)};
constexpr object vsock{"VsockConfig", vsock_fields};

constexpr std::array vm_fields{part("cpus", cpus, needed),
                               part("memory", memory, needed),
                               part("payload", payload, needed),
                               list("disks", disk),
                               list("fs", fs),
                               part("rng", rng),
                               part("balloon", balloon),
                               part("serial", serial, needed),
                               part("console", console, needed),
                               part("vsock", vsock),
                               boolean("pvpanic"),
                               boolean("watchdog")};
constexpr object vm{"VmConfig", vm_fields};

constexpr std::array resize_fields{integer("desired_ram", false, 1), integer("desired_vcpus", false, 1, most_vcpus),
                                   integer("desired_balloon", false, 0)};
constexpr object resize{"VmResize", resize_fields, true};

constexpr std::array remove_fields{text("id", needed)};
constexpr object remove{"VmRemoveDevice", remove_fields};

constexpr std::array table{endpoint{"GET", "vmm.ping"},
                           endpoint{"PUT", "vmm.shutdown"},
                           endpoint{"GET", "vm.info"},
                           endpoint{"GET", "vm.counters"},
                           endpoint{"PUT", "vm.create", &vm},
                           endpoint{"PUT", "vm.boot"},
                           endpoint{"PUT", "vm.pause"},
                           endpoint{"PUT", "vm.resume"},
                           endpoint{"PUT", "vm.shutdown"},
                           endpoint{"PUT", "vm.delete"},
                           endpoint{"PUT", "vm.power-button"},
                           endpoint{"PUT", "vm.resize", &resize},
                           endpoint{"PUT", "vm.add-disk", &disk},
                           endpoint{"PUT", "vm.add-net", &net},
                           endpoint{"PUT", "vm.add-fs", &fs},
                           endpoint{"PUT", "vm.remove-device", &remove}};

} // namespace

std::span<const endpoint> endpoints() {
  return table;
}

} // namespace caisson::cloud_hypervisor::schema
