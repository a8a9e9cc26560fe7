#include "backends/cloud-hypervisor/double/posix_host.hpp"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "backends/cloud-hypervisor/double/json_reader.hpp"

namespace caisson::cloud_hypervisor::api_double {
namespace {

class file_image : public disk_image {
public:
  explicit file_image(unique_fd fd) : fd_{std::move(fd)} {}

  bool lock(bool for_writing) override {
    struct flock range {};
    range.l_type = for_writing ? F_WRLCK : F_RDLCK;
    range.l_whence = SEEK_SET;
    return ::fcntl(fd_.get(), F_OFD_SETLK, &range) == 0;
  }

  std::uint64_t size_bytes() const override {
    const auto end = ::lseek(fd_.get(), 0, SEEK_END);
    return end < 0 ? 0 : static_cast<std::uint64_t>(end);
  }

  int resize(std::uint64_t bytes) override {
    return ::ftruncate(fd_.get(), static_cast<off_t>(bytes)) == 0 ? 0 : errno;
  }

  std::string image_type() const override {
    std::array<char, 8> head{};
    (void)!::pread(fd_.get(), head.data(), head.size(), 0);
    if (std::memcmp(head.data(), "QFI\xfb", 4) == 0)
      return "Qcow2";
    return std::memcmp(head.data(), "vhdxfile", 8) == 0 ? "Vhdx" : "Raw";
  }

private:
  unique_fd fd_;
};

class file_console : public console_sink {
public:
  explicit file_console(unique_fd fd, unique_fd peer = unique_fd{}, std::string path = {})
      : fd_{std::move(fd)}, peer_{std::move(peer)}, path_{std::move(path)} {}
  void write(std::string_view text) override { (void)!::write(fd_.get(), text.data(), text.size()); }
  void hang_up() override {}
  std::string path() const override { return path_; }

private:
  unique_fd fd_, peer_;
  std::string path_;
};

class tap_queues : public held_open {
public:
  /// 0 or an errno.
  int add(int descriptor) {
    unique_fd own{::fcntl(descriptor, F_DUPFD_CLOEXEC, 3)};
    ifreq of{};
    int header_bytes = 12;
    if (!own || ::fcntl(own.get(), F_SETFL, ::fcntl(own.get(), F_GETFL) | O_NONBLOCK) < 0 ||
        ::ioctl(own.get(), TUNGETIFF, &of) != 0)
      return errno;
    of.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if (::ioctl(own.get(), TUNSETIFF, &of) != 0 && errno != EEXIST)
      return errno;
    if (::ioctl(own.get(), TUNSETVNETHDRSZ, &header_bytes) != 0)
      return errno;
    all_.push_back(std::move(own));
    return 0;
  }

private:
  std::vector<unique_fd> all_;
};

class held_descriptor : public held_open {
public:
  explicit held_descriptor(unique_fd fd) : fd_{std::move(fd)} {}

private:
  unique_fd fd_;
};

unique_fd open_file(const std::string& path, int flags, int& error) {
  unique_fd fd{::open(path.c_str(), flags | O_CLOEXEC, 0600)};
  error = fd ? 0 : errno;
  return fd;
}

bool fits(const std::string& path, sockaddr_un& address) {
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return false;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return true;
}

} // namespace

unique_fd listen_on(const std::string& path, int backlog, int& error) {
  sockaddr_un address{};
  unique_fd fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!fits(path, address)) {
    error = ENAMETOOLONG;
    return unique_fd{};
  }
  if (!fd || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(fd.get(), backlog) != 0) {
    error = errno;
    return unique_fd{};
  }
  error = 0;
  return fd;
}

std::unique_ptr<disk_image> posix_host::open_disk(const std::string& path, bool read_only, int& error) {
  auto fd = open_file(path, read_only ? O_RDONLY : O_RDWR, error);
  return fd ? std::make_unique<file_image>(std::move(fd)) : nullptr;
}

std::uint64_t posix_host::file_size(const std::string& path, bool writable, int& error) {
  const auto fd = open_file(path, writable ? O_RDWR : O_RDONLY, error);
  const auto end = fd ? ::lseek(fd.get(), 0, SEEK_END) : 0;
  return end < 0 ? 0 : static_cast<std::uint64_t>(end);
}

kernel_kind posix_host::look_at_kernel(const std::string& path, int& error) {
  const auto fd = open_file(path, O_RDONLY, error);
  if (!fd)
    return kernel_kind::junk;
  std::array<char, 0x210> head{};
  (void)!::pread(fd.get(), head.data(), head.size(), 0);
  if (std::memcmp(head.data(), "\x7f"
                               "ELF",
                  4) == 0)
    return kernel_kind::elf;
  // The boot protocol's header; on ARM64 the image's own magic.
  if (std::memcmp(head.data() + 0x202, "HdrS", 4) == 0 || std::memcmp(head.data() + 0x38, "ARM\x64", 4) == 0)
    return kernel_kind::bzimage;
  return kernel_kind::junk;
}

bool posix_host::is_directory(const std::string& path) {
  struct stat s {};
  return ::stat(path.c_str(), &s) == 0 && S_ISDIR(s.st_mode);
}

int posix_host::write_new_file(const std::string& path, std::string_view text) {
  int error = 0;
  const auto fd = open_file(path, O_WRONLY | O_CREAT | O_EXCL, error);
  if (fd && ::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    error = EIO;
  return error;
}

std::string posix_host::read_file(const std::string& path, int& error) {
  const auto fd = open_file(path, O_RDONLY, error);
  std::string out;
  std::array<char, 4096> piece{};
  for (ssize_t n = 0; fd && (n = ::read(fd.get(), piece.data(), piece.size())) > 0;)
    out.append(piece.data(), static_cast<std::size_t>(n));
  return out;
}

std::unique_ptr<console_sink> posix_host::open_console(const std::string& mode, const std::string& path, int& error) {
  if (mode == "Socket")
    return make_socket_console(loop_, path, error);
  if (mode == "File") {
    auto fd = open_file(path, O_WRONLY | O_CREAT | O_TRUNC, error);
    return fd ? std::make_unique<file_console>(std::move(fd)) : nullptr;
  }
  if (mode == "Tty") {
    unique_fd fd{::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3)};
    error = fd ? 0 : errno;
    return fd ? std::make_unique<file_console>(std::move(fd)) : nullptr;
  }
  std::array<char, 64> name{};
  int main_end = -1, other_end = -1;
  if (::openpty(&main_end, &other_end, name.data(), nullptr, nullptr) != 0) {
    error = errno;
    return nullptr;
  }
  ::fcntl(main_end, F_SETFL, O_NONBLOCK);
  return std::make_unique<file_console>(unique_fd{main_end}, unique_fd{other_end}, name.data());
}

std::unique_ptr<vsock_listener> posix_host::listen_vsock(const std::string& path, int& error) {
  return make_vsock_listener(loop_, path, error);
}

std::unique_ptr<held_open> posix_host::connect_vhost_user(const std::string& path, int& error) {
  sockaddr_un address{};
  unique_fd fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  if (!fits(path, address)) {
    error = ENAMETOOLONG;
    return nullptr;
  }
  if (!fd || ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    error = errno;
    return nullptr;
  }
  error = 0;
  return std::make_unique<held_descriptor>(std::move(fd));
}

std::unique_ptr<held_open> posix_host::take_tap(const std::vector<int>& descriptors, int& error) {
  auto queues = std::make_unique<tap_queues>();
  error = 0;
  for (const auto fd : descriptors)
    if ((error = queues->add(fd)) != 0)
      return nullptr;
  return queues;
}

std::string posix_host::random_mac() {
  const auto n = random_();
  std::array<char, 18> text{};
  std::snprintf(text.data(), text.size(), "2e:%02x:%02x:%02x:%02x:%02x", n >> 24 & 255u, n >> 16 & 255u, n >> 8 & 255u,
                n & 255u, random_() & 255u);
  return text.data();
}

std::string event_text(std::chrono::nanoseconds since_start, const std::string& source, const std::string& name,
                       const std::vector<std::pair<std::string, std::string>>& properties) {
  json shown = nullptr;
  for (const auto& [key, value] : properties)
    shown[key] = value;
  const json event{{"timestamp",
                    json{{"secs", since_start.count() / 1'000'000'000}, {"nanos", since_start.count() % 1'000'000'000}}},
                   {"source", source},
                   {"event", name},
                   {"properties", shown}};
  return event.dump(2) + "\n\n";
}

void posix_host::event(const std::string& source, const std::string& name,
                       const std::vector<std::pair<std::string, std::string>>& properties) {
  ++told_;
  if (!events_.fd || (events_.lose_each > 0 && told_ % events_.lose_each == 0))
    return;
  const auto text = event_text(loop_.time.now(), source, name, properties);
  (void)!::write(events_.fd.get(), text.data(), text.size());
}

} // namespace caisson::cloud_hypervisor::api_double
