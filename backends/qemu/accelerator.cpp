#include "backends/qemu/accelerator.hpp"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <regex>

#include "backends/qemu/child.hpp"
#include "backends/qemu/failure.hpp"
#include "backends/qemu/text_checks.hpp"

namespace caisson::qemu {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::chrono::milliseconds probe_time{5'000};
constexpr const char* kvm_device = "/dev/kvm";

std::string fingerprint(const std::string& path) {
  struct stat s{};
  if (path.empty() || ::stat(path.c_str(), &s) != 0)
    return "-";
  return path + "|" + std::to_string(s.st_size) + "|" + std::to_string(s.st_mtim.tv_sec) + "." +
         std::to_string(s.st_mtim.tv_nsec);
}

std::string host_machine() {
  utsname u{};
  ::uname(&u);
  return u.machine;
}

std::string probe_key(const accelerator_question& q) {
  utsname u{};
  ::uname(&u);
  struct stat device{};
  ::stat(kvm_device, &device);
  return std::string{u.release} + "|" + u.version + "|" + std::to_string(major(device.st_rdev)) + ":" +
         std::to_string(minor(device.st_rdev)) + "|" + fingerprint(q.vmm_path) + "|" + fingerprint(q.kernel_path) + "|" +
         fingerprint(q.initrd_path);
}

struct verdict {
  bool works = false;
  std::string text;
};

std::string first_line(const std::string& text) {
  return printable(text.substr(0, text.find('\n')));
}

verdict boot_under_kvm(const accelerator_question& q) {
  bool x86 = q.architecture == "x86_64";
  std::vector<std::string> argv{q.vmm_path, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
                                "-machine", x86 ? "q35,accel=kvm" : "virt,accel=kvm", "-cpu", "host", "-m", "192",
                                "-smp", "1", "-serial", "stdio", "-monitor", "none", "-kernel", q.kernel_path,
                                "-append", x86 ? "console=ttyS0 earlyprintk=serial,ttyS0,115200" : "console=ttyAMA0 earlycon"};
  if (!q.initrd_path.empty())
    argv.insert(argv.end(), {"-initrd", q.initrd_path});
  auto kernel_speaks = [](const std::string& out) {
    return out.find("Linux version") != out.npos || out.find("[    0.") != out.npos;
  };
  auto r = run_child(argv, probe_time, kernel_speaks);
  if (!r.started)
    return {false, "QEMU does not start: " + r.why_not_started};
  if (kernel_speaks(r.output))
    return {true, "the guest kernel reached its console under it"};
  if (r.in_time)
    return {false, "QEMU ended: " + first_line(r.output)};
  return {false, "/dev/kvm opens but the guest kernel printed nothing within 5 s"};
}

std::string hash_name(const std::string& key) {
  std::uint64_t h = 0xcbf29ce484222325ull;
  for (unsigned char c : key)
    h = (h ^ c) * 0x100000001b3ull;
  return "kvm-probe-" + std::to_string(h) + ".json";
}

/// One probe at a time in this process; two processes that probe at once only do it twice.
verdict probe_kvm(const accelerator_question& q, const std::string& cache_directory) {
  static std::mutex one_at_a_time;
  std::lock_guard lock{one_at_a_time};
  auto key = probe_key(q);
  auto path = fs::path{cache_directory} / hash_name(key);
  {
    std::ifstream in{path};
    auto kept = json::parse(in, nullptr, false);
    if (kept.is_object() && kept.value("key", "") == key)
      return {kept.value("works", false), kept.value("text", "") + " (cached)"};
  }
  auto v = boot_under_kvm(q);
  json keep{{"key", key}, {"works", v.works}, {"text", v.text}};
  auto part = path;
  part += ".part" + std::to_string(::getpid());
  if (std::ofstream out{part}; out << keep.dump(2) << '\n') {
    out.close();
    std::error_code ignored;
    fs::rename(part, path, ignored);
  }
  return v;
}

} // namespace

std::string qemu_package(const std::string& architecture) {
  return architecture == "aarch64" ? "qemu-system-arm" : "qemu-system-x86";
}

std::string vmm_version(const std::string& path, const std::string& architecture) {
  static std::mutex mutex;
  static std::map<std::string, std::string> known;
  std::lock_guard lock{mutex};
  auto key = fingerprint(path);
  if (auto found = known.find(key); found != known.end())
    return found->second;
  if (::access(path.c_str(), F_OK) != 0)
    throw failure("host_missing", "QEMU for " + printable(architecture) + " is not at " + printable(path) + " (" +
                                      ::strerror(errno) + "): install the package " + qemu_package(architecture) +
                                      ", or name the binary in `path`");
  if (::access(path.c_str(), X_OK) != 0)
    throw failure("host_denied", printable(path) + " may not be executed: " + ::strerror(errno));
  auto r = run_child({path, "--version"}, std::chrono::seconds{10});
  std::smatch m;
  if (!r.started || !std::regex_search(r.output, m, std::regex{"QEMU emulator version ([0-9][0-9.]*)"}))
    throw failure("host_missing", printable(path) + " is no QEMU (`--version` gave '" +
                                      (r.started ? first_line(r.output) : r.why_not_started) +
                                      "'): install the package " + qemu_package(architecture));
  return known[key] = "QEMU " + m[1].str();
}

accelerator_choice choose_accelerator(const accelerator_question& q, const std::string& cache_directory) {
  if (q.asked == "tcg")
    return {"tcg", "tcg: asked for"};
  if (q.asked != "auto" && q.asked != "kvm" && !q.asked.empty())
    throw failure("invalid_argument", "accelerator '" + printable(q.asked) + "': expected auto, kvm or tcg");
  std::string why, code = "host_missing";
  if (host_machine() != q.architecture) {
    why = "the host is " + host_machine() + ", the guest " + q.architecture;
    code = "unsupported";
  } else if (::access(kvm_device, F_OK) != 0) {
    why = "/dev/kvm is not there: load kvm_intel or kvm_amd, or switch on virtualization in the firmware";
  } else if (int fd = ::open(kvm_device, O_RDWR | O_CLOEXEC); fd < 0) {
    why = std::string{"/dev/kvm cannot be opened: "} + ::strerror(errno) + " (a member of the group kvm may)";
    code = "host_denied";
  } else {
    ::close(fd);
    if (q.kernel_path.empty() || ::access(q.kernel_path.c_str(), R_OK) != 0) {
      why = "no guest kernel to try KVM with" + (q.kernel_path.empty() ? "" : ": " + printable(q.kernel_path));
    } else {
      auto v = probe_kvm(q, cache_directory);
      if (v.works)
        return {"kvm", "kvm: " + v.text};
      why = v.text;
    }
  }
  if (q.asked == "kvm")
    throw failure(code, "accelerator kvm does not serve here: " + why + "; use accelerator \"auto\" or \"tcg\"");
  return {"tcg", "tcg, since kvm does not serve: " + why};
}

} // namespace caisson::qemu
