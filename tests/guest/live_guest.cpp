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

const char* qemu = "/usr/bin/qemu-system-x86_64";

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

std::string live_guest::unavailable(const std::string& image) {
  if (::access(qemu, X_OK) != 0)
    return std::string{qemu} + " is not there (package qemu-system-x86)";
  if (::access((image + "/manifest.json").c_str(), R_OK) != 0)
    return "there is no guest image in " + image + " (target guest_image or hostile_guest_image makes it)";
  return "";
}

live_guest::live_guest(const options& o) {
  char name[] = "/tmp/caisson-guest-test-XXXXXX";
  directory_ = ::mkdtemp(name);
  const auto manifest = nlohmann::json::parse(read_all(o.image + "/manifest.json"));
  const auto parameters = manifest.at("kernel_parameters").get<std::string>() + " " + o.parameters;
  std::vector<std::string> arguments{
      qemu, "-accel", "tcg", "-M", "q35,memory-backend=m0", "-nodefaults", "-no-user-config", "-display", "none",
      "-m", "256M,slots=4,maxmem=2G", "-object", "memory-backend-memfd,id=m0,size=256M,share=on",
      "-smp", "1,maxcpus=3", "-kernel", o.image + "/vmlinux", "-initrd", o.image + "/initramfs.cpio",
      "-append", parameters, "-device", "virtio-serial-pci",
      "-chardev", "socket,id=agent,server=on,wait=off,path=" + directory_ + "/agent",
      "-device", "virtserialport,chardev=agent,name=caisson.agent.0",
      "-serial", "file:" + directory_ + "/console", "-no-reboot",
      "-qmp", "unix:" + directory_ + "/qmp,server=on,wait=off"};
  arguments.insert(arguments.end(), o.more.begin(), o.more.end());
  std::vector<char*> argv;
  for (auto& argument : arguments)
    argv.push_back(argument.data());
  argv.push_back(nullptr);
  if (::posix_spawn(&pid_, qemu, nullptr, nullptr, argv.data(), environ) != 0)
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

std::string live_guest::qmp(const std::string& command) {
  const auto read_line = [this] {
    std::string line;
    char c = 0;
    pollfd p{qmp_, POLLIN, 0};
    while (::poll(&p, 1, 10'000) > 0 && ::read(qmp_, &c, 1) == 1 && c != '\n')
      line += c;
    return line;
  };
  const auto execute = [&](const std::string& text) -> std::string {
    if (::send(qmp_, text.data(), text.size(), MSG_NOSIGNAL) < 0)
      return "";
    for (;;) {
      auto line = read_line();
      if (line.empty() || line.find("\"event\"") == std::string::npos)
        return line;
    }
  };
  if (qmp_ < 0) {
    qmp_ = connect_to("qmp");
    read_line();
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
