#include "backends/firmware.hpp"

#include <fcntl.h>
#include <fnmatch.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

namespace caisson::firmware {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uintmax_t largest_descriptor_bytes = 256u << 10;
constexpr std::uintmax_t largest_image_bytes = 256ull << 20;
constexpr std::size_t most_descriptors = 256;
// What QEMU maps below 4 GiB as read-only memory, and the steps of it.
constexpr std::uint64_t rom_step_bytes = 64u << 10;
constexpr std::uint64_t largest_rom_bytes = 16u << 20;
constexpr std::string_view volume_key = "firmware_volume";
constexpr std::array<char, 4> qcow2_magic{'Q', 'F', 'I', '\xfb'};

std::string text_in(const json& object, const char* key) {
  auto at = object.is_object() ? object.find(key) : object.end();
  return object.is_object() && at != object.end() && at->is_string() ? at->get<std::string>() : std::string{};
}

std::vector<std::string> texts_in(const json& object, const char* key) {
  std::vector<std::string> out;
  if (object.is_object() && object.contains(key) && object[key].is_array())
    for (const auto& each : object[key])
      if (each.is_string())
        out.push_back(each.get<std::string>());
  return out;
}

bool contains(const std::vector<std::string>& all, std::string_view one) {
  return std::find(all.begin(), all.end(), one) != all.end();
}

bool matches(const std::string& pattern, const std::string& machine) {
  // Patterns are for versioned names; "virt" and "q35" stand for the newest of theirs.
  for (const auto& name : {machine, machine == "q35" ? std::string{"pc-q35-0"} : machine + "-0"})
    if (::fnmatch(pattern.c_str(), name.c_str(), 0) == 0)
      return true;
  return false;
}

bool serves(const descriptor& d, const wish& asked) {
  auto machine = asked.machine.empty() ? machine_of(asked.architecture) : asked.machine;
  return std::any_of(d.targets.begin(), d.targets.end(), [&](const auto& t) {
    return t.architecture == asked.architecture &&
           std::any_of(t.machines.begin(), t.machines.end(),
                       [&](const auto& pattern) { return matches(pattern, machine); });
  });
}

bool is_file(const std::string& path) {
  std::error_code ignored;
  return !path.empty() && fs::is_regular_file(path, ignored);
}

std::string mib_text(std::uint64_t bytes) {
  return bytes % (1u << 20) == 0 ? std::to_string(bytes >> 20) + " MiB" : std::to_string(bytes) + " bytes";
}

bool virt(const wish& asked) {
  return asked.architecture == "aarch64";
}

/// Copies into a new file of `size_bytes` (0: as long as the source), filled up with zeros. Throws error (host_io).
void copy_padded(const std::string& from, const std::string& to, std::uint64_t size_bytes, mode_t mode) {
  auto failed = [&](const std::string& what) {
    auto why = std::string{::strerror(errno)};
    ::unlink(to.c_str());
    return error{"host_io", what + ": " + why};
  };
  ::unlink(to.c_str());
  int out = ::open(to.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
  if (out < 0)
    throw error{"host_io", "cannot make " + to + ": " + ::strerror(errno)};
  int in = from.empty() ? -1 : ::open(from.c_str(), O_RDONLY | O_CLOEXEC);
  bool good = from.empty() || in >= 0;
  std::vector<char> piece(1u << 20);
  off_t at = 0;
  // Zeros are left out, so that a flash image of 64 MiB costs a tmpfs what is in it.
  while (good && in >= 0) {
    auto n = ::read(in, piece.data(), piece.size());
    if (n == 0)
      break;
    good = n > 0;
    bool empty = good && std::all_of(piece.begin(), piece.begin() + n, [](char c) { return c == 0; });
    if (good && !empty)
      good = ::pwrite(out, piece.data(), static_cast<std::size_t>(n), at) == n;
    at += good ? n : 0;
  }
  auto end = std::max<off_t>(at, static_cast<off_t>(size_bytes));
  if (good)
    good = ::ftruncate(out, end) == 0;
  auto why = good ? error{"", ""} : failed("cannot copy " + (from.empty() ? "nothing" : from) + " to " + to);
  if (in >= 0)
    ::close(in);
  ::close(out);
  if (!good)
    throw why;
}

/// The template that belongs to this code, by a descriptor; or the one beside it, as EDK2's packages name them.
std::string template_of(const std::string& code, const catalogue& known) {
  std::error_code ignored;
  // Of several descriptors with the same code, the one without enrolled keys.
  const descriptor* best = nullptr;
  for (const auto& d : known.found)
    if (!d.variables.empty() && fs::equivalent(d.code, code, ignored) &&
        (!best || (best->enrolled_keys && !d.enrolled_keys)))
      best = &d;
  if (best && is_file(best->variables))
    return best->variables;
  auto name = fs::path{code}.filename().string();
  if (auto at = name.find("CODE"); at != name.npos) {
    auto beside = fs::path{code}.parent_path() / (name.substr(0, at) + "VARS" + name.substr(at + 4));
    if (is_file(beside))
      return beside;
  }
  return {};
}

/// What this host has in place of a file that is not there; `code` is the one that the variables are for.
std::string mend(const wish& asked, std::string_view key, const std::string& code, const catalogue& known) {
  auto here = choose(known, {asked.architecture, asked.machine, asked.secure_boot});
  auto package = package_of(asked.architecture);
  if (key == volume_key) {
    if (auto own = template_of(code, known); !own.empty())
      return "leave firmware_volume out, which takes " + own + ", the template that belongs to " + code;
    if (here && !here->variables.empty())
      return "this host has " + here->variables + " for " + here->code + " (" + package + ")";
  } else if (here) {
    return "this host has " + here->code + " (" + package + "), which firmware = \"auto\" takes";
  }
  return "install the package " + package;
}

/// Opens the image, whatever it is for. Throws error where it cannot be one; answers its size.
std::uint64_t check_image(const wish& asked, std::string_view key, const std::string& path,
                          std::array<char, 4096>& head) {
  auto named = std::string{key} + " = \"" + path + "\": ";
  auto expected = key == volume_key ? std::string{"expected the template of a variable store"}
                                    : std::string{"expected a firmware image"};
  struct stat s {};
  if (::stat(path.c_str(), &s) != 0)
    throw error{"host_missing",
                named + ::strerror(errno) + "; " + expected + " (package " + package_of(asked.architecture) + ")"};
  if (!S_ISREG(s.st_mode))
    throw error{"invalid_argument", named + "is no regular file; " + expected};
  std::ifstream in{path, std::ios::binary};
  if (!in.read(head.data(), head.size()) || s.st_size < static_cast<off_t>(head.size()))
    throw error{in.is_open() ? "invalid_argument" : "host_denied",
                named + (in.is_open() ? "is shorter than 4 KiB, which no firmware image is" : "cannot be read") + "; " +
                    expected};
  if (std::equal(qcow2_magic.begin(), qcow2_magic.end(), head.begin()))
    throw error{"invalid_argument", named + "is a qcow2 image; expected a raw one (qemu-img convert -O raw)"};
  return static_cast<std::uint64_t>(s.st_size);
}

/// An image without variables: read-only memory that ends at 4 GiB, where the processor starts 16 bytes before.
void check_rom(const wish& asked, const std::string& path) {
  auto named = "firmware = \"" + path + "\": ";
  std::array<char, 4096> head{};
  auto size = check_image(asked, "firmware", path, head);
  if (size % rom_step_bytes != 0 || size > largest_rom_bytes)
    throw error{"invalid_argument",
                named + "has " + mib_text(size) +
                    "; expected a multiple of 64 KiB, 16 MiB at most: an image without a variable store is read-only "
                    "memory (as bios-256k.bin of seabios, OVMF.fd of ovmf). Code that keeps its variables elsewhere "
                    "(OVMF_CODE*.fd) needs their template in firmware_volume"};
  std::array<char, 16> start{};
  std::ifstream in{path, std::ios::binary};
  if (!in.seekg(static_cast<std::streamoff>(size - start.size())).read(start.data(), start.size()))
    throw error{"host_io", named + "its last 16 bytes cannot be read"};
  if (std::all_of(start.begin(), start.end(), [&](char c) { return c == start[0]; }))
    throw error{"invalid_argument",
                named + "has nothing in its last 16 bytes, where the processor starts; expected a firmware image for " +
                    asked.architecture + " (a variable store belongs to firmware_volume)"};
}

} // namespace

std::string machine_of(std::string_view architecture) {
  return architecture == "aarch64" ? "virt" : "q35";
}

std::string package_of(std::string_view architecture) {
  return architecture == "aarch64" ? "qemu-efi-aarch64" : "ovmf";
}

std::vector<std::string> usual_directories() {
  std::vector<std::string> out{"/usr/share/qemu/firmware", "/etc/qemu/firmware"};
  const char* home = std::getenv("HOME");
  if (const char* xdg = std::getenv("XDG_CONFIG_HOME"); xdg && *xdg == '/')
    out.push_back(std::string{xdg} + "/qemu/firmware");
  else if (home && *home == '/')
    out.push_back(std::string{home} + "/.config/qemu/firmware");
  return out;
}

descriptor parse_descriptor(const std::string& path, const std::string& text) {
  auto said = json::parse(text, nullptr, false);
  if (!said.is_object())
    throw error{"invalid_argument", path + ": is no JSON object, so no firmware descriptor"};
  descriptor d;
  d.path = path;
  d.description = text_in(said, "description");
  d.uefi = contains(texts_in(said, "interface-types"), "uefi");
  auto features = texts_in(said, "features");
  d.secure_boot = contains(features, "secure-boot");
  d.enrolled_keys = contains(features, "enrolled-keys");
  const json nothing = json::object();
  auto child = [&](const json& of, const char* key) -> const json& {
    return of.is_object() && of.contains(key) ? of.at(key) : nothing;
  };
  const auto& mapping = child(said, "mapping");
  d.device = text_in(mapping, "device");
  if (d.device == "flash") {
    const auto& code = child(mapping, "executable");
    const auto& variables = child(mapping, "nvram-template");
    d.code = text_in(code, "filename");
    d.code_format = text_in(code, "format");
    d.variables = text_in(variables, "filename");
    d.variables_format = text_in(variables, "format");
  } else {
    d.code = text_in(mapping, "filename");
    d.code_format = "raw";
  }
  const auto& targets = child(said, "targets");
  if (targets.is_array())
    for (const auto& each : targets)
      d.targets.push_back({text_in(each, "architecture"), texts_in(each, "machines")});
  if (d.device.empty() || d.code.empty() || d.code.front() != '/' || d.targets.empty())
    throw error{"invalid_argument",
                path + ": is no firmware descriptor: expected mapping.device, the absolute path of an image, "
                       "and targets"};
  return d;
}

catalogue read_descriptors(const std::vector<std::string>& directories) {
  std::map<std::string, fs::path> by_name; // names order them: 40-... before 60-...
  for (const auto& directory : directories) {
    std::error_code ignored;
    for (fs::directory_iterator at{directory, ignored}, end; !ignored && at != end; at.increment(ignored))
      if (at->path().extension() == ".json" &&
          (by_name.size() < most_descriptors || by_name.count(at->path().filename())))
        by_name[at->path().filename()] = at->path();
  }
  catalogue out;
  for (const auto& [name, path] : by_name) {
    std::error_code bad;
    auto size = fs::file_size(path, bad);
    if (!bad && size == 0)
      continue; // hides the one of this name
    try {
      if (bad || size > largest_descriptor_bytes)
        throw error{"host_io", path.string() + ": cannot be read, or is over " +
                                   std::to_string(largest_descriptor_bytes >> 10) +
                                   " KiB, which no firmware descriptor is"};
      std::ifstream in{path, std::ios::binary};
      out.found.push_back(parse_descriptor(path, {std::istreambuf_iterator<char>{in}, {}}));
    } catch (const error& e) {
      out.unusable.push_back(e.what());
    }
  }
  return out;
}

std::optional<descriptor> choose(const catalogue& from, const wish& asked) {
  for (const auto& d : from.found)
    if (d.uefi && d.device == "flash" && d.code_format == "raw" &&
        (d.variables.empty() || d.variables_format == "raw") &&
        (d.secure_boot || d.enrolled_keys) == asked.secure_boot && serves(d, asked) && is_file(d.code) &&
        (d.variables.empty() || is_file(d.variables)))
      return d;
  return {};
}

void check_flash(const wish& asked, std::string_view key, const std::string& path) {
  auto named = std::string{key} + " = \"" + path + "\": ";
  std::array<char, 4096> head{};
  auto size = check_image(asked, key, path, head);
  if (virt(asked) && size != virt_flash_bytes)
    throw error{"invalid_argument", named + "has " + mib_text(size) +
                                        "; each flash of QEMU's virt machine has exactly " +
                                        mib_text(virt_flash_bytes) +
                                        ": make the pair from an EDK2 build with `caisson firmware "
                                        "prepare --arch " +
                                        asked.architecture + " --dir DIRECTORY`"};
  if (!virt(asked) && (size % 4096 != 0 || size > (8u << 20)))
    throw error{"invalid_argument", named + "has " + mib_text(size) + "; expected whole pages of 4 KiB, 8 MiB at most"};
  if (key != volume_key && std::all_of(head.begin(), head.end(), [](char c) { return c == 0; }))
    throw error{"invalid_argument",
                named + "begins with nothing but zeros, as a variable store does; expected the code of a "
                        "firmware (variables belong to firmware_volume)"};
}

images settle(const wish& asked, const std::string& firmware, const std::string& volume, const catalogue& known) {
  images out;
  if (firmware.empty())
    return out;
  if (firmware == automatic) {
    auto d = choose(known, asked);
    if (!d)
      throw error{"host_missing",
                  "firmware = \"auto\": no descriptor in /usr/share/qemu/firmware or /etc/qemu/firmware serves " +
                      asked.architecture + " machines and names files that are there; install the package " +
                      package_of(asked.architecture) + ", or name the image in `firmware`"};
    out = {d->code, volume.empty() ? d->variables : volume, true};
  } else {
    out = {firmware, volume.empty() ? template_of(firmware, known) : volume, false};
    out.flash = virt(asked) || !out.variables.empty();
  }
  std::string_view key = "firmware";
  try {
    if (out.flash)
      check_flash(asked, key, out.code);
    else
      check_rom(asked, out.code);
    key = volume_key;
    if (!out.variables.empty())
      check_flash(asked, key, out.variables);
  } catch (const error& e) {
    if (e.code != "host_missing")
      throw;
    throw error{e.code, std::string{e.what()} + "; " + mend(asked, key, out.code, known)};
  }
  return out;
}

void make_variables(const images& from, const wish& asked, const std::string& path) {
  copy_padded(from.variables, path, virt(asked) ? virt_flash_bytes : 0, 0600);
}

images prepare(const wish& asked, const std::string& source, const std::string& directory, const catalogue& known) {
  if (!virt(asked))
    throw error{"unsupported",
                "architecture " + asked.architecture +
                    ": only QEMU's virt machine (aarch64) wants flash images of a "
                    "size of their own; name OVMF's files in `firmware` and `firmware_volume` as they are"};
  std::vector<std::string> looked{source};
  if (source.empty()) {
    looked = {"/usr/share/qemu-efi-aarch64/QEMU_EFI.fd", "/usr/share/edk2/aarch64/QEMU_EFI.fd",
              "/usr/share/AAVMF/AAVMF_CODE.fd"};
    if (auto d = choose(known, asked))
      looked.push_back(d->code);
  }
  auto found = std::find_if(looked.begin(), looked.end(), is_file);
  if (found == looked.end()) {
    std::string all;
    for (const auto& each : looked)
      all += (all.empty() ? "" : ", ") + each;
    throw error{"host_missing", "no EDK2 build for " + asked.architecture + ": looked for " + all +
                                    "; install the package " + package_of(asked.architecture) +
                                    ", or name the file with --from"};
  }
  std::error_code bad;
  auto size = fs::file_size(*found, bad);
  if (bad || size == 0 || size > virt_flash_bytes || size > largest_image_bytes)
    throw error{"invalid_argument", *found + ": has " + mib_text(bad ? 0 : size) +
                                        "; expected an EDK2 build of at most " + mib_text(virt_flash_bytes)};
  fs::create_directories(directory, bad);
  if (bad)
    throw error{"host_io", "cannot make the directory " + directory + ": " + bad.message()};
  images out{directory + "/code.fd", directory + "/variables.fd", true};
  for (const auto& [from, to] : {std::pair{*found, out.code}, std::pair{template_of(*found, known), out.variables}}) {
    auto part = to + ".part" + std::to_string(::getpid());
    copy_padded(from, part, virt_flash_bytes, 0644);
    fs::rename(part, to, bad);
    if (bad)
      throw error{"host_io", "cannot make " + to + ": " + bad.message()};
  }
  check_flash(asked, "firmware", out.code);
  check_flash(asked, "firmware_volume", out.variables);
  return out;
}

std::string dimm_without_firmware(const wish& asked, const catalogue& known) {
  if (!virt(asked))
    return {};
  auto here = choose(known, {asked.architecture, asked.machine, false});
  return "DIMMs on ARM64 need UEFI firmware, since ACPI depends on it, and the key `firmware` is empty: set firmware = "
         "\"" +
         (here ? here->code : "/usr/share/AAVMF/AAVMF_CODE.fd") + "\" (package " + package_of(asked.architecture) +
         (here ? ", installed here" : ", not installed here") +
         "), or take memory_method = \"virtio-mem\", which needs no firmware";
}

} // namespace caisson::firmware
