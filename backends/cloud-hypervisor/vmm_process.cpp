#include "backends/cloud-hypervisor/vmm_process.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "backends/cloud-hypervisor/http_reply.hpp"
#include "backends/cloud-hypervisor/spec.hpp"

namespace caisson::cloud_hypervisor {

namespace fs = std::filesystem;

namespace {

constexpr off_t most_log_bytes = 1 << 20;
constexpr std::size_t last_words_bytes = 600;
constexpr std::size_t most_proc_bytes = 16 * 1024;

// Of /proc; "" also for a process that has ended between the opening and the reading.
std::string text_of_file(const std::string& path) {
  std::ifstream in{path};
  std::string text(most_proc_bytes, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(std::max<std::streamsize>(in.gcount(), 0)));
  return text;
}

} // namespace

reactor::program vmm_program(const v1::VmSpec& spec, const std::string& event_file, int log_fd) {
  reactor::program out;
  out.path = spec.vmm_path();
  out.arguments = {"--api-socket", "path=" + api_socket(spec.run_directory()), "--event-monitor", "path=" + event_file};
  // With several arenas glibc trims them from a thread whose seccomp filter does not know the file that it then opens:
  // the VMM dies of SIGSYS or hangs for ever at its end.
  out.environment = {"GLIBC_TUNABLES=glibc.malloc.arena_max=1"};
  // Would put stack traces into the texts of errors.
  out.without = {"RUST_BACKTRACE", "RUST_LIB_BACKTRACE"};
  out.umask = 077; // its sockets are the way to the guest
  out.descriptors = {{log_fd, 2}};
  return out;
}

pid_t find_vmm(const std::string& api_socket) {
  const std::string argument = '\0' + ("path=" + api_socket) + '\0';
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator{"/proc", ignored}) {
    const auto name = entry.path().filename().string();
    if (name.empty() || name.front() < '1' || name.front() > '9')
      continue;
    if (text_of_file(entry.path() / "cmdline").find(argument) == std::string::npos)
      continue;
    const auto pid = static_cast<pid_t>(std::strtol(name.c_str(), nullptr, 10));
    if (process_state(pid) != 'Z')
      return pid;
  }
  return 0;
}

char process_state(pid_t pid) {
  const auto text = text_of_file("/proc/" + std::to_string(pid) + "/stat");
  const auto at = text.rfind(") ");
  return at == std::string::npos || at + 2 >= text.size() ? '\0' : text[at + 2];
}

int open_log(const std::string& path) {
  return ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
}

void bound_log(const std::string& path) {
  struct stat s {};
  if (::stat(path.c_str(), &s) == 0 && s.st_size > most_log_bytes) [[maybe_unused]]
    auto rc = ::truncate(path.c_str(), 0);
}

std::string last_words(const std::string& path) {
  std::ifstream in{path, std::ios::binary | std::ios::ate};
  if (!in)
    return {};
  const auto size = static_cast<std::streamoff>(in.tellg());
  const auto take = std::min<std::streamoff>(size, last_words_bytes);
  std::string text(static_cast<std::size_t>(take), '\0');
  in.seekg(size - take);
  in.read(text.data(), take);
  if (size > take)
    text.erase(0, text.find('\n') == std::string::npos ? 0 : text.find('\n') + 1);
  std::replace(text.begin(), text.end(), '\n', ' ');
  while (!text.empty() && text.back() == ' ')
    text.pop_back();
  return escaped_text(text, last_words_bytes);
}

std::string socket_problem(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return "its path is too long";
  path.copy(address.sun_path, path.size());
  // A socket of another type finds its peer and is then refused for its type: the peer does not notice.
  const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0)
    return std::strerror(errno);
  const int rc = ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address);
  const int why = rc == 0 ? 0 : errno;
  ::close(fd);
  switch (why) {
  case EPROTOTYPE:
    return {};
  case 0:
    return "a datagram socket is bound there, no daemon that serves shares";
  case ENOENT:
    return "there is no such socket; start its daemon first";
  case ECONNREFUSED:
    return "nobody listens there; start its daemon (again)";
  default:
    return std::strerror(why);
  }
}

void remove_run_files(const std::string& run_directory, bool directory_too) {
  for (const auto& path : {api_socket(run_directory), api_socket(run_directory) + ".lock", vsock_socket(run_directory),
                           console_socket(run_directory)})
    ::unlink(path.c_str());
  if (directory_too)
    ::rmdir(run_directory.c_str());
}

std::string find_firmware(const std::string& architecture, std::string& looked) {
  const std::string name = architecture == "aarch64" ? "CLOUDHV_EFI.fd" : "CLOUDHV.fd";
  for (const char* directory : {"/usr/share/cloud-hypervisor/", "/usr/local/share/cloud-hypervisor/",
                                "/usr/share/edk2/", "/opt/cloud-hypervisor/"}) {
    const auto path = directory + name;
    if (::access(path.c_str(), R_OK) == 0)
      return path;
    looked += (looked.empty() ? "" : ", ") + path;
  }
  return {};
}

} // namespace caisson::cloud_hypervisor
