#include "engine/directories.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <pwd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include <fmt/format.h>

#include "engine/safe_way.hpp"
#include "messages/error.hpp"
#include "messages/validate.hpp"

namespace caisson::engine {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view lock_file = "/engine.lock";

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

/// As the XDG base directory specification has it: what is not absolute is not there.
std::string xdg(const char* name, const std::string& below_home) {
  if (auto dir = environment(name); dir.starts_with('/'))
    return dir;
  auto home = environment("HOME");
  if (!home.starts_with('/')) {
    passwd entry{};
    passwd* found = nullptr;
    std::array<char, 4096> text{};
    if (::getpwuid_r(::geteuid(), &entry, text.data(), text.size(), &found) == 0 && found)
      home = found->pw_dir;
  }
  return home.starts_with('/') ? home + below_home : "";
}

bool on_tmpfs(const std::string& path) {
  struct statfs s{};
  return ::statfs(path.c_str(), &s) == 0 && (s.f_type == TMPFS_MAGIC || s.f_type == RAMFS_MAGIC);
}

std::string default_run_directory(const std::string& state) {
  const auto user = ::geteuid();
  const auto below = "/caisson/" + short_hash(state);
  if (user == 0) {
    if (on_tmpfs("/run"))
      return "/run" + below;
  } else if (auto dir = environment("XDG_RUNTIME_DIR"); dir.starts_with('/') && on_tmpfs(dir)) {
    return dir + below;
  }
  return fmt::format("/dev/shm/caisson-{}/{}", user, short_hash(state));
}

/// The run directory of the engine that had this state directory last: VMs that still run have their sockets there.
std::string noted_run_directory(const std::string& state) {
  std::ifstream in{state + std::string{lock_file}};
  std::string pid, run;
  if (!std::getline(in, pid) || !std::getline(in, run) || !run.starts_with('/'))
    return {};
  std::error_code error;
  return fs::is_directory(run, error) ? run : std::string{};
}

v1::Error check_text(const std::string& path, std::string_view what, std::string_view option) {
  auto refuse = [&](std::string_view why) {
    return error_message(ec::configuration, fmt::format("{} {}: {}; choose another one{}", what,
                                                        escape_guest_text(path, 300), why, option));
  };
  for (unsigned char c : path)
    if (c < 0x20 || c == 0x7f)
      return refuse("the path has control characters in it");
  if (!is_utf8(path))
    return refuse("the path is not UTF-8, which domain documents and messages are written in");
  if (path.size() > 1024)
    return refuse(fmt::format("the path has {} bytes, at most 1024 are taken", path.size()));
  return {};
}

std::string absolute(const std::string& path) {
  std::error_code error;
  auto whole = fs::absolute(path, error).string();
  while (whole.size() > 1 && whole.back() == '/')
    whole.pop_back();
  return whole;
}

/// Directories that may hold caisson-backend-*: of the running program, of this library, of the build, of the installation.
std::string find_programs() {
  std::error_code error;
  std::vector<fs::path> near{fs::read_symlink("/proc/self/exe", error).parent_path()};
  Dl_info about{};
  if (::dladdr(reinterpret_cast<const void*>(&find_programs), &about) != 0 && about.dli_fname)
    near.push_back(fs::weakly_canonical(fs::path{about.dli_fname}, error).parent_path());
  std::vector<fs::path> candidates;
  for (const auto& dir : near)
    for (const char* step : {".", "../libexec/caisson", "../../libexec/caisson", "../bin", "../../bin"})
      candidates.push_back((dir / step).lexically_normal());
#ifdef CAISSON_LIBEXEC_DIRECTORY
  candidates.emplace_back(CAISSON_LIBEXEC_DIRECTORY);
#endif
  for (const auto& dir : candidates)
    if (::access((dir / "caisson-backend-qemu").c_str(), X_OK) == 0)
      return absolute(dir.string());
  return near.front().string();
}

bool set(v1::Error* to, v1::Error why) {
  if (why.code().empty())
    return false;
  *to = std::move(why);
  return true;
}

} // namespace

std::string short_hash(std::string_view text) {
  std::uint64_t h = 0xcbf29ce484222325;  // FNV-1a
  for (unsigned char c : text)
    h = (h ^ c) * 0x100000001b3;
  return fmt::format("{:08x}", static_cast<std::uint32_t>(h ^ (h >> 32)));
}

std::string checked_way(const std::string& path, std::string_view what, v1::Error& why) {
  std::string refusal;
  auto real = safe_way(path, ::geteuid(), refusal);
  if (!refusal.empty())
    why = error_message(ec::host_denied, fmt::format("{} {}: {}", what, path, refusal));
  return real;
}

directories resolve_directories(const options& o, v1::Error* error) {
  directories d;
  const bool root = ::geteuid() == 0;
  auto take = [&](const std::string& asked, std::string by_default, std::string_view what, std::string_view option,
                  std::string& into) {
    const auto& path = asked.empty() ? by_default : asked;
    if (path.empty())
      return !set(error, error_message(ec::configuration, fmt::format("{}: none is given, and neither XDG's variables nor "
                                                                      "HOME say where it could be{}",
                                                                      what, option)));
    if (set(error, check_text(path, what, option)))
      return false;
    v1::Error why;
    into = checked_way(absolute(path), what, why);
    return !set(error, std::move(why)) && !set(error, check_text(into, what, option));
  };

  if (!take(o.state_directory, root ? "/var/lib/caisson" : xdg("XDG_STATE_HOME", "/.local/state") + "/caisson",
            "state directory", " (--state-dir)", d.state))
    return d;
  auto run = o.run_directory.empty() ? noted_run_directory(d.state) : o.run_directory;
  if (!take(run, default_run_directory(d.state), "run directory", " (--run-dir)", d.run))
    return d;
  if (auto longest = d.run.size() + longest_socket_bytes; longest > socket_path_limit_bytes) {
    set(error, error_message(ec::configuration,
                             fmt::format("run directory {}: its path has {} bytes, so socket paths below it would have up to "
                                         "{}, and the system takes {}; give one of at most {} bytes (--run-dir), on a tmpfs",
                                         d.run, d.run.size(), longest, socket_path_limit_bytes,
                                         socket_path_limit_bytes - longest_socket_bytes)));
    return d;
  }
  auto cache = o.cache_directory.empty() ? environment("CAISSON_CACHE_DIR") : o.cache_directory;
  if (!take(cache, root ? "/var/cache/caisson" : xdg("XDG_CACHE_HOME", "/.cache") + "/caisson", "cache directory",
            " (CAISSON_CACHE_DIR)", d.cache))
    return d;
  d.logs = d.state + "/logs";
  d.programs = o.program_directory.empty() ? find_programs() : absolute(o.program_directory);
  d.socket = d.run + "/engine.sock";
  return d;
}

directories prepare_directories(const options& o, v1::Error* error) {
  auto d = resolve_directories(o, error);
  if (!error->code().empty())
    return d;
  struct {
    const std::string& path;
    std::string_view what;
    bool private_to_us;
  } all[] = {{d.state, "state directory", true},
             {d.run, "run directory", true},
             {d.logs, "log directory", true},
             {d.cache, "cache directory", false}};
  for (const auto& one : all) {
    std::string refusal;
    auto kind = make_safe_directory(one.path, ::geteuid(), one.private_to_us, refusal);
    if (kind != safe_directory::made) {
      *error = error_message(kind == safe_directory::unsafe ? ec::host_denied : ec::host_io,
                             fmt::format("{} {}: {}", one.what, one.path, refusal));
      return d;
    }
  }
  return d;
}

directory_lock::directory_lock(directory_lock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

directory_lock& directory_lock::operator=(directory_lock&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

directory_lock::~directory_lock() {
  if (fd_ >= 0)
    ::close(fd_);
}

std::variant<directory_lock, v1::Error> lock_directory(const std::string& state, const std::string& run) {
  const auto path = state + std::string{lock_file};
  auto failed = [&](ec code, std::string_view doing) {
    return error_message(code, fmt::format("{}: cannot {}: {}; it must be a plain file of the engine's user", path, doing,
                                           std::strerror(errno)));
  };
  int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
  if (fd < 0)
    return failed(errno == EACCES || errno == EROFS || errno == ELOOP ? ec::host_denied : ec::host_io, "open it");
  directory_lock lock{fd};
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK)
      return failed(ec::host_io, "lock it");
    std::array<char, 32> text{};
    auto n = ::pread(fd, text.data(), text.size() - 1, 0);
    auto pid = n > 0 ? std::strtol(text.data(), nullptr, 10) : 0;
    std::string name;
    if (pid > 0) {
      std::ifstream comm{fmt::format("/proc/{}/comm", pid)};
      std::getline(comm, name);
    }
    auto holder = pid == ::getpid()  ? std::string{"by another engine of this program"}
                  : pid > 0          ? fmt::format("by process {} ({})", pid, name.empty() ? "?" : escape_guest_text(name, 64))
                                     : std::string{"by a process that has not said its number"};
    return error_message(ec::busy, fmt::format("state directory {} is in use {}. One engine has a state directory: use that "
                                               "one, end it, or give another directory (--state-dir)",
                                               state, holder));
  }
  auto note = fmt::format("{}\n{}\n", ::getpid(), run);
  if (::ftruncate(fd, 0) != 0 || ::pwrite(fd, note.data(), note.size(), 0) != static_cast<ssize_t>(note.size()))
    return failed(ec::host_io, "write it");
  return lock;
}

} // namespace caisson::engine
