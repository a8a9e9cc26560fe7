#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "engine/directories.hpp"
#include "messages/error.hpp"

namespace caisson::engine {
namespace {

namespace fs = std::filesystem;

constexpr std::uintmax_t largest_manifest_bytes = 1u << 20;

/// What is booted without firmware; with it too on ARM64, where one image serves both.
std::string kernel_name(std::string_view architecture) {
  return architecture == "aarch64" ? "Image" : "vmlinux";
}

std::string missing_in(const fs::path& dir, std::string_view architecture) {
  std::string missing;
  std::error_code error;
  for (const auto& name : {kernel_name(architecture), std::string{"initramfs.cpio"}, std::string{"manifest.json"}})
    if (!fs::is_regular_file(dir / name, error))
      missing += (missing.empty() ? "" : ", ") + name;
  return missing;
}

std::string text_of_key(const nlohmann::json& manifest, const char* key) {
  auto at = manifest.find(key);
  return at != manifest.end() && at->is_string() ? at->get<std::string>() : std::string{};
}

} // namespace

std::string build_tree(const directories& where) {
  auto above = fs::path{where.programs}.parent_path();
  std::error_code error;
  return fs::is_regular_file(above / "CMakeCache.txt", error) ? above.string() : std::string{};
}

std::string made_guest_directory(std::string_view architecture, const directories& where) {
  if (const auto build = build_tree(where); !build.empty())
    return fmt::format("{}/guest/{}", build, architecture);
  return where.cache.empty() ? std::string{} : fmt::format("{}/guest-{}/{}", where.cache, CAISSON_VERSION, architecture);
}

std::variant<guest_files, v1::Error> find_guest(std::string_view architecture, const options& o, const directories& where) {
  const auto* variable = std::getenv("CAISSON_GUEST_DIR");
  const bool by_option = !o.guest_directory.empty();
  const bool by_variable = !by_option && variable && *variable;
  std::vector<fs::path> candidates;
  if (by_option || by_variable) {
    fs::path given = by_option ? o.guest_directory : std::string{variable};
    candidates = {given, given / architecture};
  } else {
    fs::path programs = where.programs;
    for (const char* step : {"../guest", "../share/caisson/guest", "../../share/caisson/guest"})
      candidates.push_back((programs / step / architecture).lexically_normal());
    if (fs::path made = made_guest_directory(architecture, where); !made.empty() && made != candidates.front())
      candidates.push_back(made);
  }
  std::string looked;
  std::error_code error;
  for (const auto& dir : candidates) {
    auto missing = missing_in(dir, architecture);
    if (!missing.empty()) {
      if (fs::is_directory(dir, error) || !(by_option || by_variable))
        looked += fmt::format("{}{} (without {})", looked.empty() ? "" : "; ", dir.string(), missing);
      continue;
    }
    guest_files found;
    found.directory = fs::absolute(dir, error).string();
    found.kernel_path = found.directory + "/" + kernel_name(architecture);
    found.initrd_path = found.directory + "/initramfs.cpio";
    if (architecture == "aarch64")
      found.bzimage_path = found.kernel_path;
    else if (fs::is_regular_file(dir / "bzImage", error))
      found.bzimage_path = found.directory + "/bzImage";
    nlohmann::json manifest;
    if (std::ifstream in{dir / "manifest.json"}; fs::file_size(dir / "manifest.json", error) <= largest_manifest_bytes)
      manifest = nlohmann::json::parse(in, nullptr, false);
    if (!manifest.is_object())
      return error_message(ec::host_missing, fmt::format("guest in {}: manifest.json cannot be read as JSON; make the guest "
                                                         "again with guest/image/build",
                                                         found.directory));
    if (auto is = text_of_key(manifest, "architecture"); !is.empty() && is != architecture)
      return error_message(ec::host_missing, fmt::format("guest in {} is for {}, and {} is asked; give another directory, or "
                                                         "make one: guest/image/build --arch {} --out DIRECTORY",
                                                         found.directory, is, architecture, architecture));
    found.command_line = text_of_key(manifest, "kernel_parameters");
    return found;
  }
  if (looked.empty())
    looked = candidates.front().string() + " (no such directory)";
  auto out = candidates.front().string();
  if (auto made = made_guest_directory(architecture, where); !made.empty() && !by_option && !by_variable)
    out = made;
  return error_message(
      ec::host_missing,
      fmt::format("no guest for {}: looked in {}{}. Make it with `guest/image/build --arch {} --out {}` (caisson run and "
                  "./scripts/quickstart do), or say where it is with CAISSON_GUEST_DIR",
                  architecture, looked,
                  by_option     ? ", the directory that was given"
                  : by_variable ? ", from CAISSON_GUEST_DIR"
                                : "",
                  architecture, out));
}

} // namespace caisson::engine
