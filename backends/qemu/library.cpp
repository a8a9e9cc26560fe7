#include "backends/qemu/library.hpp"

#include <libvirt/libvirt-qemu.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "backends/qemu/text_checks.hpp"

namespace caisson::qemu {
namespace {

namespace fs = std::filesystem;

constexpr std::uintmax_t max_capabilities_bytes = 4u << 20;
/// ROOT/lib/qemu/domain-NNNNN-<20 bytes of the name>/monitor.sock must be a socket path.
constexpr std::size_t max_root_bytes = 107 - 60;

/// libvirt's loop is one a process and never ends: there is no call that unregisters it.
void start_event_loop() {
  static std::once_flag once;
  std::call_once(once, [] {
    virEventRegisterDefaultImpl();
    virSetErrorFunc(nullptr, [](void*, virErrorPtr) {});
    // A timer that never fires keeps the loop from asking for work that is not there.
    virEventAddTimeout(-1, [](int, void*) {}, nullptr, nullptr);
    std::thread{[] {
      for (;;)
        virEventRunDefaultImpl();
    }}.detach();
  });
}

void write_atomically(const fs::path& path, const std::string& text) {
  auto part = path;
  part += ".part" + std::to_string(::getpid());
  {
    std::ofstream out{part, std::ios::binary | std::ios::trunc};
    out << text;
    if (!out.flush())
      throw failure("host_io", "cannot write " + part.string() + ": is the file system full?");
  }
  fs::rename(part, path);
}

/// Only what is newer; both directories belong to this user alone.
void copy_capabilities(const fs::path& from, const fs::path& to) {
  std::error_code ignored;
  fs::create_directories(to, ignored);
  for (const auto& entry : fs::directory_iterator{from, ignored}) {
    auto name = entry.path().filename();
    if (name.extension() != ".xml" || !entry.is_regular_file(ignored) ||
        entry.file_size(ignored) > max_capabilities_bytes)
      continue;
    auto target = to / name;
    auto here = entry.last_write_time(ignored);
    if (fs::exists(target, ignored) && fs::last_write_time(target, ignored) >= here)
      continue;
    auto part = to / (name.string() + ".part" + std::to_string(::getpid()));
    if (fs::copy_file(entry.path(), part, fs::copy_options::overwrite_existing, ignored)) {
      fs::last_write_time(part, here, ignored);
      fs::rename(part, target, ignored);
    }
  }
}

std::string percent_encoded(const std::string& path) {
  static constexpr char digits[] = "0123456789ABCDEF";
  std::string out;
  for (unsigned char c : path) {
    if (std::isalnum(c) || c == '/' || c == '-' || c == '_' || c == '.' || c == '~') {
      out += static_cast<char>(c);
    } else {
      out += '%';
      out += digits[c >> 4];
      out += digits[c & 15];
    }
  }
  return out;
}

const library_events& of(void* opaque) {
  return *static_cast<const library_events*>(opaque);
}

} // namespace

std::string embedded_root(const std::string& run_directory) {
  return run_directory + "/qemu";
}

std::string pid_file(const std::string& root, const std::string& domain_name) {
  return root + "/run/qemu/" + domain_name + ".pid";
}

std::string log_file(const std::string& root, const std::string& domain_name) {
  return root + "/log/qemu/" + domain_name + ".log";
}

std::string ask_qemu(virDomainPtr domain, const std::string& command) {
  char* raw = nullptr;
  int rc = in_library([&] { return virDomainQemuMonitorCommand(domain, command.c_str(), &raw, 0); });
  library_text answer{raw};
  if (rc != 0)
    throw library_failure("QEMU's monitor was not asked " + command);
  return answer.get();
}

library::library(std::string run_directory, std::string cache_directory, library_events events)
    : run_directory_(std::move(run_directory)), root_(embedded_root(run_directory_)),
      cache_(cache_directory + "/libvirt-capabilities"), events_(std::move(events)) {}

library::~library() {
  std::lock_guard lock{mutex_};
  slots_.clear();
}

void library::prepare_root() {
  check_path("run directory", run_directory_);
  if (root_.size() > max_root_bytes)
    throw failure("invalid_argument", "run directory '" + printable(run_directory_) + "' has " +
                                          std::to_string(run_directory_.size()) + " bytes: sockets of libvirt below it "
                                          "would be longer than a Unix socket's path may be; choose a shorter --run-dir");
  std::error_code error;
  fs::create_directories(root_ + "/etc", error);
  if (error)
    throw failure("host_io", "cannot make " + root_ + "/etc: " + error.message());
  ::chmod(root_.c_str(), 0700);
  // Plain files for the VMM's output (no virtlogd), no labelling, no cgroups and no mount namespace of libvirt's own:
  // what confines the VMM is the engine's matter, and none of these needs a daemon or a privilege.
  std::string conf = "stdio_handler = \"file\"\n"
                     "security_driver = \"none\"\n"
                     "dynamic_ownership = 0\n"
                     "remember_owner = 0\n"
                     "cgroup_controllers = []\n"
                     "namespaces = []\n";
  if (::geteuid() == 0)
    conf += "user = \"root\"\ngroup = \"root\"\n";
  write_atomically(root_ + "/etc/qemu.conf", conf);
  copy_capabilities(cache_, root_ + "/cache/qemu/capabilities");
}

void library::keep_capabilities() {
  copy_capabilities(root_ + "/cache/qemu/capabilities", cache_);
}

std::shared_ptr<virConnect> library::connection(const std::string& uri) {
  std::shared_ptr<slot> place;
  {
    std::lock_guard lock{mutex_};
    auto& entry = slots_[uri];
    if (!entry)
      entry = std::make_shared<slot>();
    place = entry;
  }
  std::lock_guard lock{place->mutex};
  if (!place->connection || (!uri.empty() && virConnectIsAlive(place->connection.get()) != 1)) {
    place->connection.reset();
    place->connection = open(uri);
  }
  return place->connection;
}

std::shared_ptr<virConnect> library::open(const std::string& uri) {
  start_event_loop();
  std::string target = uri;
  if (uri.empty()) {
    prepare_root();
    target = "qemu:///embed?root=" + percent_encoded(root_);
  } else if (!uri.starts_with("qemu")) {
    throw failure("invalid_argument", "libvirt_uri '" + printable(uri) +
                                          "': expected qemu+unix:///system?socket=PATH, or nothing for the embedded driver");
  }
  auto* raw = in_library([&] { return virConnectOpen(target.c_str()); });
  if (!raw) {
    auto why = library_failure("cannot open libvirt at " + printable(target));
    throw failure("backend_lost", why.what());
  }
  auto ids = std::make_shared<std::vector<int>>();
  std::shared_ptr<virConnect> connection{raw, [ids](virConnectPtr c) {
    // Each callback holds a reference to the connection.
    for (int id : *ids)
      virConnectDomainEventDeregisterAny(c, id);
    virConnectClose(c);
  }};
  if (!uri.empty())
    virConnectSetKeepAlive(raw, 5, 3);

  auto* opaque = const_cast<library_events*>(&events_);
  auto listen = [&](int id, auto callback) {
    int handle = virConnectDomainEventRegisterAny(raw, nullptr, id, VIR_DOMAIN_EVENT_CALLBACK(callback), opaque, nullptr);
    if (handle < 0)
      throw library_failure("cannot listen to libvirt's events");
    ids->push_back(handle);
  };
  listen(VIR_DOMAIN_EVENT_ID_LIFECYCLE, +[](virConnectPtr, virDomainPtr d, int event, int detail, void* o) -> int {
    of(o).lifecycle(virDomainGetName(d), event, detail);
    return 0;
  });
  listen(VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, +[](virConnectPtr, virDomainPtr d, const char* alias, void* o) {
    of(o).device(virDomainGetName(d), alias, true);
  });
  listen(VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED, +[](virConnectPtr, virDomainPtr d, const char* alias, void* o) {
    of(o).device(virDomainGetName(d), alias, false);
  });
  listen(VIR_DOMAIN_EVENT_ID_MEMORY_DEVICE_SIZE_CHANGE,
         +[](virConnectPtr, virDomainPtr d, const char* alias, unsigned long long kib, void* o) {
           of(o).memory_size(virDomainGetName(d), alias, kib * 1024);
         });
  return connection;
}

} // namespace caisson::qemu
