#pragma once

/// Which firmware a VM gets, and why. Firmware is found by the descriptors of QEMU's firmware interoperability format
/// (docs/interop/firmware.json in QEMU's sources) or named by the keys firmware, firmware_volume and pflashes; it is
/// checked before anything starts. An empty `firmware` means none (x86_64: the VMM's own); only `firmware = "auto"`
/// chooses by descriptors.

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace caisson::firmware {

/// `firmware = "auto"`: the best descriptor.
inline constexpr std::string_view automatic = "auto";
/// Size of each flash device of QEMU's virt machine; an image of another size does not start.
inline constexpr std::uint64_t virt_flash_bytes = 64ull << 20;

/// Something that the caller can mend. `code` is a name of messages/error.hpp.
class error : public std::runtime_error {
public:
  error(std::string code_name, const std::string& text) : std::runtime_error(text), code(std::move(code_name)) {}
  std::string code;
};

/// One descriptor file.
struct descriptor {
  struct target {
    std::string architecture;          ///< "x86_64", "aarch64"
    std::vector<std::string> machines; ///< patterns: "virt-*", "pc-q35-*"
  };
  std::string path; ///< of the descriptor itself
  std::string description;
  std::string device;      ///< "flash", "memory", "kernel"
  std::string code;        ///< image of the code
  std::string code_format; ///< "raw", "qcow2"
  std::string variables;   ///< template of the variable store; "" has none
  std::string variables_format;
  std::vector<target> targets;
  bool uefi = false;
  bool secure_boot = false;
  bool enrolled_keys = false;
};

struct catalogue {
  std::vector<descriptor> found;     ///< in the order in which they are preferred
  std::vector<std::string> unusable; ///< one sentence for each file that is no descriptor
};

/// Where descriptors lie; a file in a later directory takes the place of one of the same name before it, and an empty
/// one only hides it.
std::vector<std::string> usual_directories();
catalogue read_descriptors(const std::vector<std::string>& directories = usual_directories());

/// Throws error (invalid_argument) for what is no descriptor.
descriptor parse_descriptor(const std::string& path, const std::string& text);

struct wish {
  std::string architecture;
  std::string machine;      ///< "virt", "q35" or a versioned name
  bool secure_boot = false; ///< also asks for enrolled keys; never chosen unasked
};

/// The first UEFI descriptor for the machine, in flash, raw, whose files are there.
std::optional<descriptor> choose(const catalogue& from, const wish& asked);

/// What a VM is started with.
struct images {
  std::string code;
  std::string variables; ///< template; "": none is needed (a flash machine then starts with an empty store)
  bool flash = false;    ///< two flash devices; else one read-only memory
  bool none() const { return code.empty(); }
};

/// The images that `firmware` and `firmware_volume` name, checked. "" is none; "auto" asks the descriptors; a path
/// without `firmware_volume` takes the template that its descriptor names. Throws error (host_missing,
/// invalid_argument) with the key, the file, what was expected and the mend.
images settle(const wish& asked, const std::string& firmware, const std::string& firmware_volume,
              const catalogue& known);

/// Throws error where the file is no flash image of this machine. `key` names it in the text.
void check_flash(const wish& asked, std::string_view key, const std::string& path);

/// Makes a VM's own writable variable store at `path` (mode 0600), an empty one where there is no template.
void make_variables(const images& from, const wish& asked, const std::string& path);

/// Makes code.fd and variables.fd in `directory`, each of the size that the machine's flash has, from an installed EDK2
/// build. `source` "" takes what the package has brought. What is there already is replaced.
images prepare(const wish& asked, const std::string& source, const std::string& directory, const catalogue& known);

/// Name of the Debian package with UEFI firmware for this architecture.
std::string package_of(std::string_view architecture);

/// Why DIMMs do not work without firmware here, and the mend; "" where they do.
std::string dimm_without_firmware(const wish& asked, const catalogue& known);

/// "q35" or "virt".
std::string machine_of(std::string_view architecture);

} // namespace caisson::firmware
