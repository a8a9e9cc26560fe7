#pragma once

/// VmSpec.cpu_features as people write it for QEMU's -cpu: "pmu=off,+aes,-avx2".

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace caisson::qemu {

struct cpu_feature_list {
  std::optional<bool> pmu;  ///< has an element of its own in libvirt
  std::vector<std::pair<std::string, bool>> flags;
};

/// Throws failure (invalid_argument) for a part that is neither NAME=on|off nor +NAME nor -NAME.
cpu_feature_list parse_cpu_features(std::string_view text);

} // namespace caisson::qemu
