#include "engine/safe_way.hpp"

#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <deque>
#include <filesystem>

#include <fmt/format.h>

namespace caisson::engine {
namespace {

namespace fs = std::filesystem;

constexpr int most_links = 40;  // as the kernel's own limit

std::string user_name(uid_t id) {
  passwd entry{};
  passwd* found = nullptr;
  std::array<char, 4096> text{};
  if (::getpwuid_r(id, &entry, text.data(), text.size(), &found) == 0 && found)
    return found->pw_name;
  return fmt::format("number {}", id);
}

std::deque<std::string> parts_of(std::string_view path) {
  std::deque<std::string> parts;
  while (!path.empty()) {
    auto end = path.find('/');
    auto part = path.substr(0, end);
    if (!part.empty() && part != ".")
      parts.emplace_back(part);
    path = end == std::string_view::npos ? std::string_view{} : path.substr(end + 1);
  }
  return parts;
}

/// A group of the owner's own (Debian makes one a user) is no "others" on the way to a directory.
bool others_can_write(const struct stat& s) {
  return (s.st_mode & S_IWOTH) != 0 || ((s.st_mode & S_IWGRP) != 0 && s.st_gid != s.st_uid);
}

std::string shown_mode(const struct stat& s) {
  return fmt::format("mode {:04o}, owner {}", s.st_mode & 07777, user_name(s.st_uid));
}

std::string written_by_others(const struct stat& s, const std::string& path) {
  return fmt::format("it can be written by others ({}). Take that right away (chmod 0700 {}) or choose another one",
                     shown_mode(s), path);
}

} // namespace

std::string safe_way(const std::string& path, uid_t user, std::string& refusal) {
  struct stat top{};
  if (::stat("/", &top) != 0) {
    refusal = fmt::format("cannot look at /: {}", std::strerror(errno));
    return path;
  }
  auto trusted = [&](uid_t owner) { return owner == 0 || owner == user || owner == top.st_uid; };
  auto join = [](const std::string& dir, const std::string& entry) { return dir == "/" ? "/" + entry : dir + "/" + entry; };

  std::string real = "/";
  struct stat inside = top;
  auto left = parts_of(path);
  for (int links = 0; !left.empty();) {
    auto part = std::move(left.front());
    left.pop_front();
    if (part == "..") {
      real = fs::path{real}.parent_path().string();
      if (::lstat(real.c_str(), &inside) != 0)
        break;
      continue;
    }
    const bool shared = others_can_write(inside);
    const bool sticky = (inside.st_mode & S_ISVTX) != 0;
    if (shared && !sticky) {
      refusal = fmt::format("{} on the way to it can be written by others ({}), who could put something else in its place. "
                            "Take that right away (chmod go-w {}) or choose another place",
                            real, shown_mode(inside), real);
      return path;
    }
    auto next = join(real, part);
    struct stat s{};
    if (::lstat(next.c_str(), &s) != 0) {
      if (errno != ENOENT) {
        refusal = fmt::format("cannot look at {}: {}", next, std::strerror(errno));
        return path;
      }
      real = next;
      for (auto& rest : left)
        real = rest == ".." ? fs::path{real}.parent_path().string() : join(real, rest);
      return real;
    }
    if (!trusted(s.st_uid)) {
      refusal = fmt::format("{} belongs to user {}, who could put something else in its place. Choose a place of your own",
                            next, user_name(s.st_uid));
      return path;
    }
    if (S_ISLNK(s.st_mode)) {
      std::error_code error;
      auto target = fs::read_symlink(next, error).string();
      if (error || ++links > most_links) {
        refusal = fmt::format("cannot follow the link {}: {}", next, error ? error.message() : "too many links");
        return path;
      }
      auto more = parts_of(target);
      left.insert(left.begin(), more.begin(), more.end());
      if (target.starts_with('/')) {
        real.resize(1);
        inside = top;
      }
      continue;
    }
    if (!S_ISDIR(s.st_mode)) {
      refusal = fmt::format("{} is there and is no directory. Remove it or choose another place", next);
      return path;
    }
    real = std::move(next);
    inside = s;
  }
  if ((inside.st_mode & 022) != 0)
    refusal = written_by_others(inside, real);
  return real;
}

safe_directory make_safe_directory(const std::string& path, uid_t user, bool private_to_us, std::string& refusal) {
  struct stat s{};
  if (::lstat(path.c_str(), &s) != 0) {
    auto parent = fs::path{path}.parent_path().string();
    if (errno == ENOENT && ::lstat(parent.c_str(), &s) != 0)
      if (auto made = make_safe_directory(parent, user, false, refusal); made != safe_directory::made)
        return made;
    if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
      const bool denied = errno == EACCES || errno == EPERM || errno == EROFS;
      refusal = fmt::format("cannot make {}: {}. Give a place that this user can write", path, std::strerror(errno));
      return denied ? safe_directory::unsafe : safe_directory::failed;
    }
    if (::lstat(path.c_str(), &s) != 0) {
      refusal = fmt::format("cannot look at {}: {}", path, std::strerror(errno));
      return safe_directory::failed;
    }
  }
  if (!S_ISDIR(s.st_mode)) {
    refusal = fmt::format("{} is there and is no directory. Remove it or choose another place", path);
    return safe_directory::unsafe;
  }
  if (s.st_uid != user) {
    refusal = fmt::format("it belongs to user {}, not to {}. Choose a directory of your own", user_name(s.st_uid),
                          user_name(user));
    return safe_directory::unsafe;
  }
  if ((s.st_mode & 022) != 0) {
    refusal = written_by_others(s, path);
    return safe_directory::unsafe;
  }
  if (private_to_us && (s.st_mode & 077) != 0) {
    std::error_code error;
    if (!fs::is_empty(path, error) && !fs::exists(path + "/engine.lock", error) && !fs::exists(path + "/start.lock", error)) {
      refusal = fmt::format("it holds other files and others can look into it ({}). Give an empty directory, or close it "
                            "(chmod 0700 {})",
                            shown_mode(s), path);
      return safe_directory::unsafe;
    }
    if (::chmod(path.c_str(), 0700) != 0) {
      refusal = fmt::format("cannot close it to others (chmod 0700): {}", std::strerror(errno));
      return safe_directory::failed;
    }
  }
  return safe_directory::made;
}

bool is_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    auto c = static_cast<unsigned char>(text[i]);
    std::size_t more = c < 0x80 ? 0 : c >= 0xc2 && c < 0xe0 ? 1 : c >= 0xe0 && c < 0xf0 ? 2 : c >= 0xf0 && c < 0xf5 ? 3 : 4;
    if (more == 4 || i + more >= text.size())
      return false;
    std::uint32_t value = more == 0 ? c : c & (0x3fu >> more);
    for (std::size_t k = 1; k <= more; ++k) {
      auto d = static_cast<unsigned char>(text[i + k]);
      if ((d & 0xc0) != 0x80)
        return false;
      value = value << 6 | (d & 0x3fu);
    }
    if ((more == 2 && (value < 0x800 || (value >= 0xd800 && value < 0xe000))) ||
        (more == 3 && (value < 0x10000 || value > 0x10ffff)))
      return false;
    i += more + 1;
  }
  return true;
}

} // namespace caisson::engine
