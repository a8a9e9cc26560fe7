#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "config/resolve.hpp"

/// The only file of config/ that looks at the host.
namespace caisson::config {
namespace {

constexpr std::size_t most_bytes = 1 << 20;
constexpr std::size_t most_drop_ins = 256;

struct descriptor {
  int fd = -1;
  ~descriptor() {
    if (fd >= 0)
      ::close(fd);
  }
};

void say(sources& out, const std::string& file, std::string what,
         v1::ConfigSeverity severity = v1::CONFIG_SEVERITY_ERROR, std::string near = {}) {
  out.problems.push_back(make_problem({file, {1, 1}, {}}, {{}, {}, std::move(what), {}, std::move(near), severity}));
}

std::string octal(mode_t mode) {
  char buffer[8];
  std::snprintf(buffer, sizeof buffer, "%04o", mode & 07777);
  return buffer;
}

/// Who can write a file decides what the engine runs as its own.
bool is_safe(sources& out, const std::string& file, const struct stat& info, bool allow_writable) {
  if (info.st_mode & S_IWOTH) {
    say(out, file,
        "can be written by everybody (mode " + octal(info.st_mode) + "): chmod o-w it, or say --allow-writable",
        allow_writable ? v1::CONFIG_SEVERITY_WARNING : v1::CONFIG_SEVERITY_ERROR);
    return allow_writable;
  }
  struct stat above {};
  const auto directory = std::filesystem::path(file).parent_path().string();
  if (::stat(directory.empty() ? "." : directory.c_str(), &above) == 0 && (above.st_mode & S_IWOTH) &&
      !(above.st_mode & S_ISVTX)) {
    say(out, file,
        "its directory " + directory + " can be written by everybody (mode " + octal(above.st_mode) +
            "): chmod o-w it, or say --allow-writable",
        allow_writable ? v1::CONFIG_SEVERITY_WARNING : v1::CONFIG_SEVERITY_ERROR);
    return allow_writable;
  }
  return true;
}

/// Opens, checks and reads one file; what was checked is what is read.
bool read_file(sources& out, const std::string& path, const std::string& shown, bool allow_writable) {
  const descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)};
  struct stat info {};
  if (file.fd < 0 || ::fstat(file.fd, &info) != 0) {
    say(out, shown, std::string{"cannot be read: "} + std::strerror(errno));
    return false;
  }
  if (!S_ISREG(info.st_mode)) {
    say(out, shown, "is no regular file");
    return false;
  }
  if (!is_safe(out, path, info, allow_writable))
    return false;
  std::string text;
  char buffer[16384];
  while (true) {
    const auto got = ::read(file.fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR)
      continue;
    if (got < 0) {
      say(out, shown, std::string{"cannot be read: "} + std::strerror(errno));
      return false;
    }
    if (got == 0)
      break;
    text.append(buffer, static_cast<std::size_t>(got));
    if (text.size() > most_bytes) {
      say(out, shown, "is larger than 1 MiB");
      return false;
    }
  }
  out.files.push_back({shown, std::move(text)});
  return true;
}

void read_drop_ins(sources& out, const std::string& main_file, bool allow_writable, const host_facts& host) {
  const auto directory = std::filesystem::path(main_file).parent_path() / "config.d";
  auto names = host.list(directory.string());
  std::sort(names.begin(), names.end());
  std::size_t taken = 0;
  for (const auto& name : names) {
    const auto path = (directory / name).string();
    if (!name.ends_with(".toml") || name.starts_with('.')) {
      say(out, path, "is not applied: only config.d/*.toml is", v1::CONFIG_SEVERITY_WARNING);
      continue;
    }
    if (++taken > most_drop_ins) {
      say(out, path, "is one of more than " + std::to_string(most_drop_ins) + " drop-ins");
      return;
    }
    read_file(out, path, path, allow_writable);
  }
}

std::string environment(const char* name) {
  const char* found = std::getenv(name);
  return found ? found : "";
}

std::vector<std::string> list_directory(const std::string& path) {
  std::vector<std::string> names;
  auto* directory = ::opendir(path.c_str());
  if (!directory)
    return names;
  while (auto* each = ::readdir(directory)) {
    const std::string name = each->d_name;
    if (name != "." && name != "..")
      names.push_back(name);
    if (names.size() == 4096)
      break;
  }
  ::closedir(directory);
  return names;
}

} // namespace

sources read_sources(const std::string& path, bool allow_writable, const host_facts& host) {
  sources out;
  std::string chosen = path;
  if (chosen.empty()) {
    for (const auto& each : host.search_paths)
      if (host.exists(each)) {
        chosen = each;
        break;
      }
    if (chosen.empty())
      return out;
  }
  char* real = ::realpath(chosen.c_str(), nullptr);
  if (!real) {
    say(out, chosen, std::string{"cannot be read: "} + std::strerror(errno), v1::CONFIG_SEVERITY_ERROR,
        nearest_path(host, std::filesystem::absolute(chosen).lexically_normal().string()));
    return out;
  }
  out.path = real;
  std::free(real);
  if (read_file(out, out.path, chosen, allow_writable))
    read_drop_ins(out, out.path, allow_writable, host);
  return out;
}

host_facts read_host_facts() {
  host_facts out;
  std::ifstream meminfo("/proc/meminfo");
  std::string word;
  std::uint64_t number = 0;
  while (meminfo >> word)
    if (word == "MemTotal:" && meminfo >> number) {
      out.memory_bytes = number * 1024;
      break;
    }
  cpu_set_t set;
  out.cpus = ::sched_getaffinity(0, sizeof set, &set) == 0 ? static_cast<std::uint32_t>(CPU_COUNT(&set)) : 1;
  struct utsname names {};
  if (::uname(&names) == 0)
    out.architecture = names.machine;

  if (auto own = environment("XDG_CONFIG_HOME"); !own.empty())
    out.search_paths.push_back(own + "/caisson/configuration.toml");
  else if (auto home = environment("HOME"); !home.empty())
    out.search_paths.push_back(home + "/.config/caisson/configuration.toml");
  for (const char* each :
       {"/etc/caisson/configuration.toml", "/etc/kata-containers/configuration.toml",
        "/etc/kata-containers/runtime-rs/configuration.toml", "/usr/share/defaults/kata-containers/configuration.toml",
        "/usr/share/defaults/kata-containers/runtime-rs/configuration.toml",
        "/opt/kata/share/defaults/kata-containers/configuration.toml",
        "/opt/kata/share/defaults/kata-containers/runtime-rs/configuration.toml"})
    out.search_paths.emplace_back(each);

  std::string path = environment("PATH");
  for (std::size_t begin = 0; begin <= path.size();) {
    const auto end = std::min(path.find(':', begin), path.size());
    if (end > begin && path[begin] == '/')
      out.program_paths.push_back(path.substr(begin, end - begin));
    begin = end + 1;
  }
  for (const char* each : {"/usr/local/bin", "/usr/bin", "/usr/sbin", "/usr/libexec", "/usr/lib/qemu", "/opt/kata/bin",
                           "/opt/kata/libexec"})
    if (std::find(out.program_paths.begin(), out.program_paths.end(), each) == out.program_paths.end())
      out.program_paths.emplace_back(each);

  out.exists = [](const std::string& each) { return ::access(each.c_str(), F_OK) == 0; };
  out.list = list_directory;
  return out;
}

} // namespace caisson::config
