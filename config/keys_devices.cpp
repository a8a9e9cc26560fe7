#include "config/keys.hpp"

/// [hypervisor.X]: PCI, disks, shared file systems, network and the other devices of the VM.
namespace caisson::config {
namespace {

using enum value_type;
using enum treatment;
constexpr auto hv = table::hypervisor;
constexpr std::string_view no_vfio = "Caisson passes no host devices through (VFIO)";
constexpr std::string_view no_vhost_user = "Caisson attaches no vhost-user devices";
constexpr std::string_view no_share = "nothing is shared with the guest by a file system";
constexpr std::string_view disk_defaults = "disks are attached with the backend's own options";
constexpr std::string_view net_defaults = "network devices are attached with the backend's own options";

// clang-format off
constexpr key rows[] = {
  // --- PCI ---
  {.in = hv, .name = "default_bridges", .type = integer, .preset = "1", .high = 5, .backends = on::qemu,
   .doc = "PCI bridges of the VM. 0: 1."},
  {.in = hv, .name = "pcie_root_port", .type = integer, .preset = "0", .high = 16, .backends = on::qemu,
   .annotation = "=",
   .doc = "PCIe root ports that stay free for hotplug, beyond those that the sandbox itself uses."},
  {.in = hv, .name = "default_root_ports", .type = integer, .high = 16, .backends = on::qemu, .from = family::kata_1x,
   .doc = "Another name of `pcie_root_port` (the secure-container page's). The two may not differ."},
  {.in = hv, .name = "pcie_switch_port", .type = integer, .preset = "0", .high = 16, .backends = on::qemu,
   .annotation = "=", .what = refused, .why = "there are root ports (`pcie_root_port`), no switches",
   .doc = "PCIe switch ports."},
  {.in = hv, .name = "hot_plug_vfio", .type = text, .preset = "\"no-port\"",
   .choices = "no-port|bridge-port|root-port|switch-port", .annotation = "=", .what = refused, .inert = "no-port",
   .why = no_vfio, .doc = "Where VFIO devices are hotplugged."},
  {.in = hv, .name = "cold_plug_vfio", .type = text, .preset = "\"no-port\"",
   .choices = "no-port|bridge-port|root-port|switch-port", .annotation = "=", .what = refused, .inert = "no-port",
   .why = no_vfio, .doc = "Where VFIO devices are plugged before the boot."},
  {.in = hv, .name = "hotplug_vfio_on_root_bus", .type = boolean, .preset = "false", .from = family::kata_1x,
   .annotation = "=", .what = refused, .why = no_vfio, .doc = "VFIO devices on the root bus."},
  {.in = hv, .name = "enable_iommu", .type = boolean, .preset = "false", .annotation = "=", .what = refused,
   .why = no_vfio, .doc = "A virtual IOMMU."},
  {.in = hv, .name = "enable_iommu_platform", .type = boolean, .preset = "false", .annotation = "=", .what = refused,
   .why = "there is no virtual IOMMU", .doc = "Devices behind the virtual IOMMU."},

  // --- random numbers ---
  {.in = hv, .name = "entropy_source", .type = text, .unit = "path", .preset = "\"/dev/urandom\"", .annotation = "=",
   .doc = "Host file behind the guest's random device. Empty: none."},
  {.in = hv, .name = "valid_entropy_sources", .type = text_list, .unit = "globs", .preset = "[]",
   .doc = "What the annotation `entropy_source` may name."},

  // --- disks ---
  {.in = hv, .name = "block_device_driver", .type = text, .preset = "\"virtio-blk\"",
   .choices = "virtio-scsi|virtio-blk|virtio-blk-pci|virtio-blk-mmio|virtio-blk-ccw|virtio-mmio|nvdimm|virtio-pmem",
   .annotation = "=", .what = accepted, .inert = "*", .why = "container images reach the guest by virtio-blk",
   .doc = "Device of a container's block image."},
  {.in = hv, .name = "block_device_aio", .type = text, .preset = "\"io_uring\"", .choices = "threads|native|io_uring",
   .annotation = "=", .what = accepted, .inert = "*", .why = disk_defaults, .doc = "How disks do their I/O."},
  {.in = hv, .name = "block_device_cache_set", .type = boolean, .preset = "false", .annotation = "=",
   .what = accepted, .why = disk_defaults, .doc = "Set the two cache options below."},
  {.in = hv, .name = "block_device_cache_direct", .type = boolean, .preset = "false", .annotation = "=",
   .what = accepted, .why = disk_defaults, .doc = "O_DIRECT."},
  {.in = hv, .name = "block_device_cache_noflush", .type = boolean, .preset = "false", .annotation = "=",
   .what = refused, .why = "a disk that ignores flushes loses data", .doc = "Ignore the guest's flushes."},
  {.in = hv, .name = "block_device_logical_sector_size", .type = integer, .unit = "bytes", .preset = "0",
   .high = 65536, .what = accepted, .inert = "512", .why = disk_defaults,
   .doc = "Logical sector size; 0: the device's."},
  {.in = hv, .name = "block_device_physical_sector_size", .type = integer, .unit = "bytes", .preset = "0",
   .high = 65536, .what = accepted, .inert = "512", .why = disk_defaults,
   .doc = "Physical sector size; 0: the device's."},
  {.in = hv, .name = "disable_block_device_use", .type = boolean, .preset = "false", .annotation = "=",
   .what = accepted, .inert = "*", .why = "a container's block device is used where there is one",
   .doc = "Never pass a block image to the guest."},
  {.in = hv, .name = "enable_iothreads", .type = boolean, .preset = "false", .annotation = "=", .what = accepted,
   .why = disk_defaults, .doc = "Disk I/O in a thread of its own."},
  {.in = hv, .name = "indep_iothreads", .type = integer, .preset = "0", .high = 1024, .what = accepted,
   .why = disk_defaults, .doc = "Further I/O threads for hotplugged disks."},
  {.in = hv, .name = "num_queues", .type = integer, .preset = "1", .low = 1, .high = 1024, .from = family::kata_rs,
   .what = accepted, .why = disk_defaults, .doc = "Queues of a disk."},
  {.in = hv, .name = "queue_size", .type = integer, .preset = "128", .low = 1, .high = 32768, .from = family::kata_rs,
   .what = accepted, .why = disk_defaults, .doc = "Entries of a disk's queue."},
  {.in = hv, .name = "disk_rate_limiter_bw_max_rate", .type = integer, .unit = "bit/s", .preset = "0",
   .high = 9223372036854775807, .what = refused, .why = "disks are not limited", .doc = "Disk bandwidth."},
  {.in = hv, .name = "disk_rate_limiter_bw_one_time_burst", .type = integer, .unit = "bits", .preset = "0",
   .high = 9223372036854775807, .what = refused, .why = "disks are not limited",
   .doc = "Burst of the disk bandwidth."},
  {.in = hv, .name = "disk_rate_limiter_ops_max_rate", .type = integer, .unit = "operations/s", .preset = "0",
   .high = 9223372036854775807, .what = refused, .why = "disks are not limited", .doc = "Disk operations."},
  {.in = hv, .name = "disk_rate_limiter_ops_one_time_burst", .type = integer, .unit = "operations", .preset = "0",
   .high = 9223372036854775807, .what = refused, .why = "disks are not limited", .doc = "Burst of disk operations."},
  {.in = hv, .name = "enable_blk_mount", .type = boolean, .preset = "false", .from = family::kata_1x,
   .what = accepted, .inert = "*", .why = "a container's block device is used where there is one",
   .doc = "Mount block devices inside the guest."},

  // --- shared file systems ---
  {.in = hv, .name = "shared_fs", .type = text, .preset = "\"virtio-fs\"",
   .choices = "virtio-fs|virtio-9p|virtio-fs-nydus|inline-virtio-fs|none", .annotation = "=", .what = accepted,
   .inert = "*", .why = no_share, .doc = "How a container's files reach the guest."},
  {.in = hv, .name = "virtio_fs_daemon", .type = text, .unit = "path", .annotation = "=", .what = accepted,
   .inert = "*", .why = no_share,
   .doc = "Program of the virtio-fs daemon. One that is not there is replaced by the host's own, which is reported."},
  {.in = hv, .name = "valid_virtio_fs_daemon_paths", .type = text_list, .unit = "globs", .preset = "[]",
   .doc = "What the annotation `virtio_fs_daemon` may name."},
  {.in = hv, .name = "virtio_fs_cache", .type = text, .preset = "\"auto\"",
   .choices = "never|metadata|auto|always|none", .annotation = "=", .what = accepted, .inert = "*", .why = no_share,
   .doc = "Cache mode of virtio-fs."},
  {.in = hv, .name = "virtio_fs_cache_size", .type = integer, .unit = "MiB", .preset = "0", .annotation = "=",
   .what = accepted, .why = no_share, .doc = "DAX window of virtio-fs."},
  {.in = hv, .name = "virtio_fs_queue_size", .type = integer, .preset = "1024", .high = 32768, .what = accepted,
   .inert = "*", .why = no_share, .doc = "Entries of the virtio-fs queue."},
  {.in = hv, .name = "virtio_fs_extra_args", .type = text_list, .preset = "[]", .annotation = "=", .what = accepted,
   .inert = "*", .why = no_share, .doc = "Further arguments of the virtio-fs daemon."},
  {.in = hv, .name = "virtio_fs_is_dax", .type = boolean, .preset = "false", .from = family::kata_rs,
   .what = accepted, .why = no_share, .doc = "DAX for virtio-fs."},
  {.in = hv, .name = "msize_9p", .type = integer, .unit = "bytes", .preset = "8192", .backends = on::qemu,
   .annotation = "=", .what = accepted, .inert = "*", .why = "9p is not used", .doc = "Message size of 9p."},
  {.in = hv, .name = "prefetch_list_path", .type = text, .unit = "path", .preset = "\"\"", .from = family::kata_rs,
   .what = accepted, .why = no_share, .doc = "Files to prefetch (nydus)."},

  // --- vhost-user storage ---
  {.in = hv, .name = "enable_vhost_user_store", .type = boolean, .preset = "false", .annotation = "=",
   .what = refused, .why = no_vhost_user, .doc = "SPDK disks by vhost-user."},
  {.in = hv, .name = "vhost_user_store_path", .type = text, .unit = "path",
   .preset = "\"/var/run/kata-containers/vhost-user\"", .annotation = "=", .what = accepted, .inert = "*",
   .why = no_vhost_user, .doc = "Base directory of vhost-user disks."},
  {.in = hv, .name = "valid_vhost_user_store_paths", .type = text_list, .unit = "globs", .preset = "[]",
   .what = accepted, .inert = "*", .why = no_vhost_user,
   .doc = "What the annotation `vhost_user_store_path` may name."},
  {.in = hv, .name = "vhost_user_reconnect_timeout_sec", .type = integer, .unit = "s", .preset = "0",
   .annotation = "=", .what = accepted, .why = no_vhost_user, .doc = "Reconnect timeout of vhost-user devices."},

  // --- network ---
  {.in = hv, .name = "disable_vhost_net", .type = boolean, .preset = "false", .annotation = "=", .what = accepted,
   .inert = "*", .why = net_defaults, .doc = "No vhost-net."},
  {.in = hv, .name = "network_queues", .type = integer, .preset = "1", .low = 1, .high = 256, .from = family::kata_rs,
   .what = accepted, .why = net_defaults, .doc = "Queues of a network device."},
  {.in = hv, .name = "rx_rate_limiter_max_rate", .type = integer, .unit = "bit/s", .preset = "0",
   .high = 9223372036854775807, .annotation = "=", .what = refused, .why = "the network is not limited",
   .doc = "Inbound bandwidth."},
  {.in = hv, .name = "tx_rate_limiter_max_rate", .type = integer, .unit = "bit/s", .preset = "0",
   .high = 9223372036854775807, .annotation = "=", .what = refused, .why = "the network is not limited",
   .doc = "Outbound bandwidth."},
  {.in = hv, .name = "net_rate_limiter_bw_max_rate", .type = integer, .unit = "bit/s", .preset = "0",
   .high = 9223372036854775807, .from = family::kata_go, .what = refused, .why = "the network is not limited",
   .doc = "Network bandwidth."},
  {.in = hv, .name = "net_rate_limiter_bw_one_time_burst", .type = integer, .unit = "bits", .preset = "0",
   .high = 9223372036854775807, .from = family::kata_go, .what = refused, .why = "the network is not limited",
   .doc = "Burst of the network bandwidth."},
  {.in = hv, .name = "net_rate_limiter_ops_max_rate", .type = integer, .unit = "operations/s", .preset = "0",
   .high = 9223372036854775807, .from = family::kata_go, .what = refused, .why = "the network is not limited",
   .doc = "Network packets."},
  {.in = hv, .name = "net_rate_limiter_ops_one_time_burst", .type = integer, .unit = "operations", .preset = "0",
   .high = 9223372036854775807, .from = family::kata_go, .what = refused, .why = "the network is not limited",
   .doc = "Burst of network packets."},
  {.in = hv, .name = "use_vsock", .type = boolean, .preset = "false", .from = family::kata_1x, .what = accepted,
   .inert = "*", .why = "the backend chooses the channel to the guest", .doc = "Talk to the guest by vsock."},
};
// clang-format on

} // namespace

std::span<const key> device_keys() {
  return rows;
}

} // namespace caisson::config
