#include "guest/agent/virtio_mem.hpp"

#include "guest/agent/files.hpp"
#include "guest/agent/unique_fd.hpp"

#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/virtio_pci.h>

#include <string>

namespace caisson::agent {

namespace {

constexpr std::uint32_t plugged_size_offset = 40;  // struct virtio_mem_config (linux/virtio_mem.h)

/// A PCI function's configuration space.
class pci_config {
public:
  explicit pci_config(const std::string& path) : file_{::open(path.c_str(), O_RDWR | O_CLOEXEC)} {}

  template <class T>
  T get(unsigned at) const {
    T value{};
    if (::pread(file_.get(), &value, sizeof value, at) != sizeof value)
      value = {};
    return value;
  }
  template <class T>
  void put(unsigned at, T value) const {
    [[maybe_unused]] const auto n = ::pwrite(file_.get(), &value, sizeof value, at);
  }

private:
  unique_fd file_;
};

std::uint64_t plugged_bytes(const pci_config& pci) {
  unsigned window = 0;
  std::uint8_t bar = 0;
  std::uint32_t device = 0;
  bool found = false;
  unsigned at = pci.get<std::uint8_t>(PCI_CAPABILITY_LIST);
  for (int n = 0; at != 0 && n < 48; ++n, at = pci.get<std::uint8_t>(at + PCI_CAP_LIST_NEXT)) {
    if (pci.get<std::uint8_t>(at) != PCI_CAP_ID_VNDR)
      continue;
    const auto type = pci.get<std::uint8_t>(at + VIRTIO_PCI_CAP_CFG_TYPE);
    if (type == VIRTIO_PCI_CAP_PCI_CFG) {
      window = at;
    } else if (type == VIRTIO_PCI_CAP_DEVICE_CFG && !found) {
      found = true;
      bar = pci.get<std::uint8_t>(at + VIRTIO_PCI_CAP_BAR);
      device = pci.get<std::uint32_t>(at + VIRTIO_PCI_CAP_OFFSET);
    }
  }
  if (window == 0 || !found)
    return 0;
  const auto read = [&](std::uint32_t offset) {
    pci.put<std::uint8_t>(window + VIRTIO_PCI_CAP_BAR, bar);
    pci.put<std::uint32_t>(window + VIRTIO_PCI_CAP_OFFSET, device + offset);
    pci.put<std::uint32_t>(window + VIRTIO_PCI_CAP_LENGTH, 4);
    return pci.get<std::uint32_t>(window + sizeof(virtio_pci_cap));
  };
  const auto high = read(plugged_size_offset + 4);
  return std::uint64_t{high} << 32 | read(plugged_size_offset);
}

} // namespace

std::uint64_t virtio_mem_plugged_bytes() {
  const std::string driver = "/sys/bus/virtio/drivers/virtio_mem/";
  std::uint64_t bytes = 0;
  for (const auto& device : list_directory(driver, "virtio"))
    bytes += plugged_bytes(pci_config{driver + device + "/../config"});
  return bytes;
}

} // namespace caisson::agent
