#pragma once

/// One small file a VM beside libvirt's root, written before the VM is made and removed when nothing of it is left: it tells
/// a later process where the VM's sockets are, also when the VM has died meanwhile.

#include <optional>
#include <string>
#include <vector>

namespace caisson::qemu {

struct vm_record {
  std::string sandbox_id;
  std::string run_directory;
  std::string libvirt_uri;
};

class records {
public:
  explicit records(std::string directory) : directory_(std::move(directory)) {}
  /// Throws failure (host_io).
  void save(const vm_record& record) const;
  void remove(const std::string& sandbox_id) const;
  /// Files that do not parse are left out.
  std::vector<vm_record> all() const;

private:
  std::string path_of(const std::string& sandbox_id) const;
  std::string directory_;
};

} // namespace caisson::qemu
