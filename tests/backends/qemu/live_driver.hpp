#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "tests/backends/qemu/backend_client.hpp"
#include "tests/guest/agent_client.hpp"

namespace caisson::tests {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using clock = std::chrono::steady_clock;
using guest_protocol::agent_client;

inline constexpr std::uint64_t mib = 1 << 20;
inline constexpr const char* qemu = "/usr/bin/qemu-system-x86_64";
inline const std::string guest = CAISSON_GUEST_DIRECTORY;

inline std::string kernel_parameters() {
  std::ifstream in{guest + "/manifest.json"};
  return nlohmann::json::parse(in).at("kernel_parameters").get<std::string>();
}

/// Prints how long a step took: the figures are for people, nothing is asserted on them.
class stopwatch {
public:
  explicit stopwatch(std::string what) : what_(std::move(what)) {}
  ~stopwatch() {
    auto ms = std::chrono::duration<double, std::milli>(clock::now() - start_).count();
    std::cout << "[   TIME   ] " << what_ << ": " << ms << " ms\n";
  }

private:
  std::string what_;
  clock::time_point start_ = clock::now();
};

class live_driver : public testing::Test {
protected:
  void SetUp() override {
    if (::access(qemu, X_OK) != 0)
      GTEST_SKIP() << qemu << " is not there: install qemu-system-x86";
    if (::access((guest + "/vmlinux").c_str(), R_OK) != 0)
      GTEST_SKIP() << "no guest image in " << guest << ": build the target guest_image";
    char pattern[] = "/dev/shm/cq.XXXXXX";
    directory = ::mkdtemp(pattern);
    open();
  }

  void TearDown() override {
    if (directory.empty())
      return;
    for (const auto& id : made)
      if (client)
        client->ask(destroy_call(id));
    client.reset();
    fs::remove_all(directory);
  }

  void open() {
    client.emplace(CAISSON_BACKEND_QEMU, directory, CAISSON_TEST_CACHE);
    ASSERT_TRUE(client->wait(20s, [&] { return client->ready.has_value(); }));
  }

  v1::VmSpec spec(const std::string& id, v1::MemoryMethod method) {
    v1::VmSpec s;
    s.set_sandbox_id(id);
    s.set_architecture("x86_64");
    s.set_vmm_path(qemu);
    s.set_accelerator("tcg");
    s.set_boot_vcpus(1);
    s.set_max_vcpus(3);
    s.set_boot_bytes(256 * mib);
    s.set_max_bytes(2048 * mib);
    s.set_memory_slots(10);
    s.set_memory_method(method);
    s.set_kernel_path(guest + "/vmlinux");
    s.set_initrd_path(guest + "/initramfs.cpio");
    s.set_kernel_command_line(kernel_parameters());
    s.set_run_directory(directory + "/run/" + id);
    s.set_entropy_source("/dev/urandom");
    return s;
  }

  v1::VmObserved create(const v1::VmSpec& s) {
    fs::create_directories(s.run_directory());
    made.push_back(s.sandbox_id());
    v1::BackendCall call;
    *call.mutable_create()->mutable_spec() = s;
    stopwatch time{"create"};
    return observed(client->ask(call));
  }

  v1::VmObserved inspect(const std::string& id) {
    v1::BackendCall call;
    call.mutable_inspect()->set_sandbox_id(id);
    return observed(client->ask(call));
  }

  static v1::BackendCall destroy_call(const std::string& id) {
    v1::BackendCall call;
    call.mutable_destroy()->set_sandbox_id(id);
    return call;
  }

  static v1::BackendCall step(const std::string& id) {
    v1::BackendCall call;
    call.mutable_apply_memory_step()->set_sandbox_id(id);
    return call;
  }

  static v1::BackendCall plug(const std::string& id, const std::string& dimm, std::uint64_t bytes) {
    auto call = step(id);
    call.mutable_apply_memory_step()->mutable_plug_dimm()->set_id(dimm);
    call.mutable_apply_memory_step()->mutable_plug_dimm()->set_size_bytes(bytes);
    return call;
  }

  static v1::VmObserved observed(const std::optional<v1::BackendAnswer>& a) {
    EXPECT_TRUE(a) << "no answer";
    if (!a)
      return {};
    EXPECT_TRUE(a->has_observed()) << a->ShortDebugString();
    return a->observed();
  }

  static std::string error_code(const std::optional<v1::BackendAnswer>& a) {
    return a && a->has_error() ? a->error().code() : a ? "answered: " + a->ShortDebugString() : "no answer";
  }

  /// Files of that VM anywhere under the test's directory.
  std::vector<std::string> traces(const std::string& id) {
    std::vector<std::string> found;
    for (const auto& entry : fs::recursive_directory_iterator{directory})
      if (entry.path().string().find(id) != std::string::npos)
        found.push_back(entry.path().string());
    return found;
  }

  static int connect(const std::string& channel) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    channel.substr(5).copy(address.sun_path, sizeof address.sun_path - 1);
    int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      ::close(fd);
      return -1;
    }
    return fd;
  }

  static bool alive(std::int64_t pid) { return ::kill(static_cast<pid_t>(pid), 0) == 0; }

  std::string directory;
  std::optional<backend_client> client;
  std::vector<std::string> made;
};

} // namespace caisson::tests
