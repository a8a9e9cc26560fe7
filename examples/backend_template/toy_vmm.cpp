// caisson-toy-vmm: the "hypervisor" that the template drives. A process of its own which answers one line with another
// on a Unix socket, and whose guest does at once what it is asked to. A real backend has QEMU or the like in its place.
//
//     status            -> ok STATE BOOT PLUGGED VCPUS MAX_VCPUS DEVICE...   (sizes in bytes; DEVICE is kind:id:source)
//     pause | resume | memory BYTES | vcpus N | attach KIND ID SOURCE | detach ID        -> ok | no WHY
//     watch             -> ok; from now on news arrive here: "memory BYTES", "removed ID"
//
// It ends with SIGTERM, and only so: it outlives whoever has started it.

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct device {
  std::string kind, id, source;
};

struct machine {
  std::uint64_t boot = 0, most = 0, plugged = 0;
  std::uint32_t vcpus = 1, max_vcpus = 1;
  bool paused = false;
  std::vector<device> devices;
  std::vector<int> watchers;

  void tell(const std::string& news) const {
    for (int fd : watchers)
      (void)!::send(fd, (news + "\n").data(), news.size() + 1, MSG_NOSIGNAL | MSG_DONTWAIT);
  }

  std::string status() const {
    std::ostringstream out;
    out << "ok " << (paused ? "paused" : "running") << ' ' << boot << ' ' << plugged << ' ' << vcpus << ' ' << max_vcpus;
    for (const auto& d : devices)
      out << ' ' << d.kind << ':' << d.id << ':' << d.source;
    return out.str();
  }

  std::string set_memory(std::uint64_t bytes) {
    if (bytes % (2u << 20) != 0 || bytes > most - boot)
      return "no memory comes in whole 2 MiB, at most " + std::to_string(most - boot) + " bytes";
    plugged = bytes;
    tell("memory " + std::to_string(bytes));
    return "ok";
  }

  std::string set_vcpus(std::uint32_t count) {
    if (count == 0 || count > max_vcpus)
      return "no there can be 1 to " + std::to_string(max_vcpus) + " vCPUs";
    vcpus = count;
    return "ok";
  }

  std::string detach(const std::string& id) {
    if (std::erase_if(devices, [&](const auto& d) { return d.id == id; }) > 0)
      tell("removed " + id);
    return "ok";
  }

  std::string answer(const std::string& line) {
    std::istringstream in{line};
    std::string verb;
    in >> verb;
    std::uint64_t number = 0;
    device d;
    if (verb == "status")
      return status();
    if (verb == "pause" || verb == "resume") {
      paused = verb == "pause";
      return "ok";
    }
    if (verb == "memory" && in >> number)
      return set_memory(number);
    if (verb == "vcpus" && in >> number)
      return set_vcpus(static_cast<std::uint32_t>(std::min<std::uint64_t>(number, max_vcpus + 1)));
    if (verb == "attach" && in >> d.kind >> d.id >> d.source) {
      devices.push_back(d);
      return "ok";
    }
    if (verb == "detach" && in >> d.id)
      return detach(d.id);
    return "no such request: " + line;
  }
};

} // namespace

int main(int argc, char** argv) {
  if (argc != 6) {
    std::cerr << argv[0] << ": expected SOCKET BOOT_BYTES MAX_BYTES BOOT_VCPUS MAX_VCPUS\n";
    return 2;
  }
  ::signal(SIGPIPE, SIG_IGN);
  machine vm;
  vm.boot = std::stoull(argv[2]), vm.most = std::stoull(argv[3]);
  vm.vcpus = static_cast<std::uint32_t>(std::stoul(argv[4]));
  vm.max_vcpus = static_cast<std::uint32_t>(std::stoul(argv[5]));
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  std::string{argv[1]}.copy(name.sun_path, sizeof name.sun_path - 1);
  int listener = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (::bind(listener, reinterpret_cast<sockaddr*>(&name), sizeof name) != 0 || ::listen(listener, 16) != 0) {
    std::cerr << argv[0] << ": cannot listen on " << argv[1] << '\n';
    return 1;
  }
  std::map<int, std::string> clients; // what has arrived of a line
  for (;;) {
    std::vector<pollfd> ready{{listener, POLLIN, 0}};
    for (const auto& [fd, text] : clients)
      ready.push_back({fd, POLLIN, 0});
    if (::poll(ready.data(), ready.size(), -1) < 0)
      continue;
    for (const auto& r : ready) {
      if (!r.revents)
        continue;
      if (r.fd == listener) {
        if (int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC); fd >= 0)
          clients[fd];
        continue;
      }
      char bytes[512];
      auto n = ::recv(r.fd, bytes, sizeof bytes, MSG_DONTWAIT);
      auto& text = clients[r.fd];
      if (n > 0)
        text.append(bytes, static_cast<std::size_t>(n));
      for (auto end = text.find('\n'); n > 0 && end != text.npos; end = text.find('\n')) {
        auto line = text.substr(0, end);
        text.erase(0, end + 1);
        if (line == "watch")
          vm.watchers.push_back(r.fd);
        auto reply = (line == "watch" ? "ok" : vm.answer(line)) + "\n";
        (void)!::send(r.fd, reply.data(), reply.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      }
      if (n == 0 || text.size() > 4096) {
        std::erase(vm.watchers, r.fd);
        clients.erase(r.fd);
        ::close(r.fd);
      }
    }
  }
}
