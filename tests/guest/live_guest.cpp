#include "tests/guest/live_guest.hpp"

#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

namespace caisson::guest_protocol {

namespace {

std::string read_all(const std::string& path) {
  std::ifstream in{path, std::ios::binary};
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

std::string qemu_of(const std::string& architecture) { return "/usr/bin/qemu-system-" + architecture; }

// Waits until a file is there; the sockets are QEMU's sign of life.
bool wait_for_file(const std::string& directory, const std::string& name, int within_ms) {
  const int watch = ::inotify_init1(IN_CLOEXEC);
  ::inotify_add_watch(watch, directory.c_str(), IN_CREATE);
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds{within_ms};
  bool there = false;
  while (!(there = std::filesystem::exists(directory + "/" + name))) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count();
    pollfd p{watch, POLLIN, 0};
    if (left <= 0 || ::poll(&p, 1, static_cast<int>(left)) <= 0)
      break;
    char events[4096];
    if (::read(watch, events, sizeof events) < 0)
      break;
  }
  ::close(watch);
  return there;
}

} // namespace

std::string live_guest::unavailable(const std::string& image, const std::string& architecture) {
  if (const auto qemu = qemu_of(architecture); ::access(qemu.c_str(), X_OK) != 0)
    return qemu + " is not there (package " + (architecture == "x86_64" ? "qemu-system-x86" : "qemu-system-arm") + ")";
  if (::access((image + "/manifest.json").c_str(), R_OK) != 0)
    return "there is no guest image in " + image + " (target guest_image or hostile_guest_image makes it)";
  return "";
}

live_guest::live_guest(const options& o) {
  char name[] = "/tmp/caisson-guest-test-XXXXXX";
  directory_ = ::mkdtemp(name);
  const auto manifest = nlohmann::json::parse(read_all(o.image + "/manifest.json"));
  const auto parameters = manifest.at("kernel_parameters").get<std::string>() + " " + o.parameters;
  const bool x86 = o.architecture == "x86_64";
  const auto qemu = qemu_of(o.architecture);
  std::vector<std::string> arguments{
      qemu, "-accel", "tcg", "-M", x86 ? "q35,memory-backend=m0" : "virt,gic-version=3,memory-backend=m0",
      "-nodefaults", "-no-user-config", "-display", "none",
      "-m", "256M,slots=" + std::to_string(o.slots) + ",maxmem=" + std::to_string(o.max_mib) + "M",
      "-object", "memory-backend-memfd,id=m0,size=256M,share=on",
      "-smp", x86 ? "1,maxcpus=3" : "1", "-kernel", o.image + (x86 ? "/vmlinux" : "/Image"),
      "-initrd", o.image + "/initramfs.cpio",
      "-append", parameters, "-device", "virtio-serial-pci",
      "-chardev", "socket,id=agent,server=on,wait=off,path=" + directory_ + "/agent",
      "-device", "virtserialport,chardev=agent,name=caisson.agent.0",
      "-serial", "file:" + directory_ + "/console", "-no-reboot",
      "-qmp", "unix:" + directory_ + "/qmp,server=on,wait=off"};
  if (!x86)
    arguments.insert(arguments.end(), {"-cpu", "cortex-a72"});
  if (!o.firmware.empty()) {
    const auto variables = directory_ + "/variables.fd";
    std::ofstream{variables}.close();
    std::filesystem::resize_file(variables, std::filesystem::file_size(o.firmware));
    arguments.insert(arguments.end(), {"-drive", "if=pflash,format=raw,readonly=on,file=" + o.firmware,
                                       "-drive", "if=pflash,format=raw,file=" + variables});
  }
  arguments.insert(arguments.end(), o.more.begin(), o.more.end());
  std::vector<char*> argv;
  for (auto& argument : arguments)
    argv.push_back(argument.data());
  argv.push_back(nullptr);
  if (::posix_spawn(&pid_, qemu.c_str(), nullptr, nullptr, argv.data(), environ) != 0)
    pid_ = -1;
  else
    pidfd_ = static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0));
}

live_guest::~live_guest() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  for (const int fd : {pidfd_, qmp_})
    if (fd >= 0)
      ::close(fd);
  std::filesystem::remove_all(directory_);
}

int live_guest::connect_to(const std::string& name) {
  if (!wait_for_file(directory_, name, 20'000))
    return -1;
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, (directory_ + "/" + name).c_str(), sizeof address.sun_path - 1);
  // The file appears with bind; listen follows at once.
  for (int attempt = 0; attempt < 100; ++attempt) {
    if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
      return fd;
    ::poll(nullptr, 0, 10);
  }
  ::close(fd);
  return -1;
}

int live_guest::connect_agent() { return connect_to("agent"); }

std::string live_guest::read_line(int within_ms) {
  std::string line;
  char c = 0;
  pollfd p{qmp_, POLLIN, 0};
  while (::poll(&p, 1, within_ms) > 0 && ::read(qmp_, &c, 1) == 1 && c != '\n')
    line += c;
  return line;
}

std::string live_guest::qmp_event(const std::string& name, const std::string& text, int within_ms) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds{within_ms};
  for (std::size_t looked = 0;;) {
    for (; looked < events_.size(); ++looked)
      if (auto& e = events_[looked]; e.find('"' + name + '"') != std::string::npos && e.find(text) != std::string::npos) {
        auto found = std::move(e);
        events_.erase(events_.begin() + static_cast<std::ptrdiff_t>(looked));
        return found;
      }
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count();
    auto line = left > 0 ? read_line(static_cast<int>(left)) : "";
    if (line.empty())
      return "";
    events_.push_back(std::move(line));
  }
}

std::string live_guest::qmp(const std::string& command) {
  const auto execute = [&](const std::string& text) -> std::string {
    if (::send(qmp_, text.data(), text.size(), MSG_NOSIGNAL) < 0)
      return "";
    for (;;) {
      auto line = read_line(10'000);
      if (line.empty() || line.find("\"event\"") == std::string::npos)
        return line;
      events_.push_back(std::move(line));
    }
  };
  if (qmp_ < 0) {
    qmp_ = connect_to("qmp");
    read_line(10'000);
    execute("{\"execute\":\"qmp_capabilities\"}\n");
  }
  return execute(command + "\n");
}

bool live_guest::ended(int within_ms) {
  pollfd p{pidfd_, POLLIN, 0};
  return ::poll(&p, 1, within_ms) == 1;
}

std::string live_guest::console() const { return read_all(directory_ + "/console"); }

} // namespace caisson::guest_protocol
