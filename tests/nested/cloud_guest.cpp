#include "tests/nested/cloud_guest.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
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
#include <sstream>
#include <vector>

#include "guest/protocol/version.hpp"

namespace caisson::guest_protocol {

namespace {

using clock = std::chrono::steady_clock;
using std::chrono::seconds;

std::string read_all(const std::string& path) {
  std::ifstream in{path, std::ios::binary};
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

std::string program() {
  const char* variable = std::getenv("CH_BIN");
  return variable ? variable : "";
}

/// Reads up to `end` bytes, or (0) until a line's end; "" when the other side goes or is silent for `within`.
std::string read_some(int fd, std::size_t count, seconds within) {
  std::string text;
  char c = 0;
  pollfd p{fd, POLLIN, 0};
  while (::poll(&p, 1, static_cast<int>(std::chrono::milliseconds{within}.count())) > 0 && ::read(fd, &c, 1) == 1) {
    text += c;
    if (count == 0 ? c == '\n' : text.size() == count)
      return text;
  }
  return "";
}

} // namespace

std::string cloud_guest::unavailable(const std::string& image) {
  if (program().empty())
    return "CH_BIN names no Cloud Hypervisor";
  if (!std::getenv("CAISSON_NESTED"))
    return "a Linux guest needs a /dev/kvm with hardware virtualization: run it by tests/nested/run";
  if (::access((image + "/manifest.json").c_str(), R_OK) != 0)
    return "there is no guest image in " + image + " (target guest_image makes it)";
  return "";
}

cloud_guest::cloud_guest(const options& o) {
  // Not in /tmp: in the nested machine that is a layer over 9p.
  char name[] = "/dev/shm/caisson-cloud-guest-XXXXXX";
  directory_ = ::mkdtemp(name);
  const auto binary = program();
  std::vector<std::string> arguments{binary, "--api-socket", "path=" + directory_ + "/api", "--event-monitor",
                                     "path=" + directory_ + "/events"};
  std::vector<char*> argv;
  for (auto& argument : arguments)
    argv.push_back(argument.data());
  argv.push_back(nullptr);
  std::string tunable = "GLIBC_TUNABLES=glibc.malloc.arena_max=1";
  char* environment[] = {tunable.data(), nullptr};
  if (::posix_spawn(&pid_, binary.c_str(), nullptr, nullptr, argv.data(), environment) != 0) {
    pid_ = -1;
    failure_ = "cannot start " + binary;
    return;
  }
  pidfd_ = static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0));
  const auto until = clock::now() + seconds{60};
  while (ask("GET", "vmm.ping").status != 200) {
    if (ended(50) || clock::now() > until) {
      failure_ = binary + " does not serve its API";
      return;
    }
  }
  const auto manifest = nlohmann::json::parse(read_all(o.image + "/manifest.json"));
  const nlohmann::json config{
      {"cpus", {{"boot_vcpus", 1}, {"max_vcpus", o.max_vcpus}}},
      {"memory", {{"size", o.boot_bytes}, {"hotplug_method", o.method}, {"hotplug_size", o.hotplug_bytes}, {"shared", true}}},
      {"payload",
       {{"kernel", o.image + "/vmlinux"},
        {"initramfs", o.image + "/initramfs.cpio"},
        {"cmdline", manifest.at("kernel_parameters")}}},
      {"rng", {{"src", "/dev/urandom"}}},
      {"balloon", {{"size", 0}, {"deflate_on_oom", true}, {"free_page_reporting", true}}},
      {"serial", {{"mode", "File"}, {"file", directory_ + "/console"}}},
      {"console", {{"mode", "Off"}}},
      {"vsock", {{"cid", 3}, {"socket", directory_ + "/vsock"}}},
      {"pvpanic", true}};
  for (const auto& [endpoint, body] : {std::pair{"vm.create", config.dump()}, std::pair{"vm.boot", std::string{}}})
    if (const auto answered = ask("PUT", endpoint, body); answered.status != 204) {
      failure_ = std::string{endpoint} + ": " + std::to_string(answered.status) + " " + answered.body;
      return;
    }
}

cloud_guest::~cloud_guest() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  if (pidfd_ >= 0)
    ::close(pidfd_);
  std::filesystem::remove_all(directory_);
}

int cloud_guest::connect_to(const std::string& name) const {
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, (directory_ + "/" + name).c_str(), sizeof address.sun_path - 1);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
    return fd;
  ::close(fd);
  return -1;
}

cloud_guest::answer cloud_guest::ask(const std::string& verb, const std::string& endpoint, const std::string& body) {
  answer result;
  const int fd = connect_to("api");
  if (fd < 0)
    return result;
  const auto request = verb + " /api/v1/" + endpoint + " HTTP/1.1\r\nHost: localhost\r\nContent-Length: " +
                       std::to_string(body.size()) + "\r\n\r\n" + body;
  std::size_t length = 0;
  if (::send(fd, request.data(), request.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(request.size())) {
    auto line = read_some(fd, 0, seconds{90});
    const int status = line.size() > 12 ? std::atoi(line.c_str() + 9) : 0;
    while (!(line = read_some(fd, 0, seconds{90})).empty() && line != "\r\n")
      if (line.starts_with("Content-Length: "))
        length = static_cast<std::size_t>(std::atoll(line.c_str() + 16));
    if (line == "\r\n")
      result.status = status;
    if (length > 0)
      result.body = read_some(fd, length, seconds{90});
  }
  ::close(fd);
  return result;
}

int cloud_guest::connect_agent() {
  const auto until = clock::now() + seconds{120};
  const auto greeting = "CONNECT " + std::to_string(vsock_port) + "\n";
  while (clock::now() < until && !ended(0)) {
    const int fd = connect_to("vsock");
    // Before the guest's driver is up nothing is answered; before its agent listens the connection ends.
    if (fd >= 0 && ::send(fd, greeting.data(), greeting.size(), MSG_NOSIGNAL) > 0 &&
        read_some(fd, 0, seconds{2}).starts_with("OK "))
      return fd;
    if (fd >= 0)
      ::close(fd);
    ended(100);
  }
  return -1;
}

bool cloud_guest::ended(int within_ms) {
  if (pid_ < 0)
    return true;
  pollfd p{pidfd_, POLLIN, 0};
  if (::poll(&p, 1, within_ms) != 1)
    return false;
  ::waitpid(pid_, &exit_status, 0);
  pid_ = -1;
  return true;
}

std::string cloud_guest::console() const { return read_all(directory_ + "/console"); }

std::string cloud_guest::events() const { return read_all(directory_ + "/events"); }

} // namespace caisson::guest_protocol
