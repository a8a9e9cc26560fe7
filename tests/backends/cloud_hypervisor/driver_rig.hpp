#pragma once

/// A driver on a reactor of its own, over VMMs that are caisson-ch-double, as the engine would use it: calls with
/// answers, events that are waited for, and what is left on the host. By hand, for what needs no fault and no guest:
/// CAISSON_TEST_CH names a real VMM, CAISSON_TEST_KERNEL a kernel for it.

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <mutex>
#include <string>
#include <vector>

#include "backends/cloud-hypervisor/driver.hpp"
#include "backends/cloud-hypervisor/vmm_process.hpp"

namespace caisson::cloud_hypervisor {

namespace fs = std::filesystem;

inline constexpr std::chrono::seconds patience{60};

inline std::string double_program() {
  const char* named = std::getenv("CAISSON_TEST_CH");
  return named && *named ? named : CAISSON_CH_DOUBLE;
}

/// Events, waited for with a limit.
class heard_events {
public:
  void add(const v1::VmEvent& event) {
    std::lock_guard lock{mutex_};
    events_.push_back(event);
    more_.notify_all();
  }
  /// The first of this kind; an empty event where none comes.
  v1::VmEvent await(v1::VmEvent::Kind kind) {
    std::unique_lock lock{mutex_};
    v1::VmEvent found;
    more_.wait_for(lock, patience, [&] {
      for (const auto& e : events_)
        if (e.kind() == kind) {
          found = e;
          return true;
        }
      return false;
    });
    return found;
  }
  std::size_t count(v1::VmEvent::Kind kind) {
    std::lock_guard lock{mutex_};
    return static_cast<std::size_t>(
        std::count_if(events_.begin(), events_.end(), [&](const auto& e) { return e.kind() == kind; }));
  }

private:
  std::mutex mutex_;
  std::condition_variable more_;
  std::vector<v1::VmEvent> events_;
};

class driver_rig : public ::testing::Test {
protected:
  static constexpr std::uint64_t gib = 1024 * mib;

  void SetUp() override {
    char name[] = "/tmp/ch-XXXXXX";
    top = ::mkdtemp(name);
    fs::create_directories(top + "/s");
    std::ofstream{top + "/kernel"} << "\x7f"
                                      "ELF"
                                   << std::string(4096, '\0');
    std::ofstream{top + "/initrd"} << "i";
    std::ofstream{top + "/disk"} << std::string(1 << 20, '\0');
  }

  void TearDown() override {
    if (!at)
      new_driver();
    for (const auto& id : list())
      destroy(id);
    EXPECT_TRUE(list().empty());
    EXPECT_EQ(names_in(top + "/ch"), std::vector<std::string>{}) << "left behind";
    drop_driver();
    io.reset();
    ::unsetenv("CAISSON_CH_FAULTS");
    fs::remove_all(top);
  }

  /// For VMMs that are started from now on.
  void faults(const std::string& text) { ::setenv("CAISSON_CH_FAULTS", text.c_str(), 1); }

  void new_driver(driver_settings settings = {}) {
    drop_driver();
    settings.directory = top + "/ch";
    if (settings.host_architecture.empty())
      settings.host_architecture = "x86_64";
    at = std::make_shared<driver>(*io, std::move(settings));
    at->start();
    at->listen(1, "a", [news = news](const v1::VmEvent& e) { news->add(e); });
  }

  void drop_driver() {
    if (at)
      at->end();
    at.reset();
  }

  v1::BackendAnswer ask(v1::BackendCall call) {
    if (!at)
      new_driver();
    auto promise = std::make_shared<std::promise<v1::BackendAnswer>>();
    auto answer = promise->get_future();
    at->submit(std::move(call), [promise](v1::BackendAnswer a) { promise->set_value(std::move(a)); });
    if (answer.wait_for(patience) == std::future_status::ready)
      return answer.get();
    ADD_FAILURE() << "no answer";
    return {};
  }

  /// What is not waited for yet.
  std::future<v1::BackendAnswer> begin(v1::BackendCall call) {
    auto promise = std::make_shared<std::promise<v1::BackendAnswer>>();
    auto answer = promise->get_future();
    at->submit(std::move(call), [promise](v1::BackendAnswer a) { promise->set_value(std::move(a)); });
    return answer;
  }

  v1::VmSpec spec(const std::string& id = "a") {
    v1::VmSpec s;
    s.set_sandbox_id(id);
    s.set_architecture("x86_64");
    s.set_vmm_path(double_program());
    s.set_accelerator("simulated");
    s.set_boot_vcpus(1);
    s.set_max_vcpus(4);
    s.set_boot_bytes(512 * mib);
    s.set_max_bytes(4 * gib);
    s.set_memory_slots(dimm_slots);
    s.set_memory_method(v1::MEMORY_METHOD_VIRTIO_MEM);
    const char* kernel = std::getenv("CAISSON_TEST_KERNEL");
    s.set_kernel_path(kernel ? kernel : top + "/kernel");
    s.set_initrd_path(top + "/initrd");
    s.set_kernel_command_line("console=ttyS0");
    s.set_run_directory(top + "/s/" + id);
    fs::create_directories(s.run_directory());
    return s;
  }

  static v1::BackendCall create_call(const v1::VmSpec& s, std::uint32_t deadline_ms = 0) {
    v1::BackendCall c;
    *c.mutable_create()->mutable_spec() = s;
    c.mutable_create()->set_deadline_ms(deadline_ms);
    return c;
  }

  v1::VmObserved create(const v1::VmSpec& s) { return good(ask(create_call(s))); }
  v1::VmObserved inspect(const std::string& id = "a", std::uint32_t deadline_ms = 0) {
    v1::BackendCall c;
    c.mutable_inspect()->set_sandbox_id(id);
    c.mutable_inspect()->set_deadline_ms(deadline_ms);
    return good(ask(c));
  }
  static v1::BackendCall destroy_call(const std::string& id = "a", std::uint32_t deadline_ms = 0) {
    v1::BackendCall c;
    c.mutable_destroy()->set_sandbox_id(id);
    c.mutable_destroy()->set_deadline_ms(deadline_ms);
    return c;
  }
  v1::VmObserved destroy(const std::string& id = "a") { return good(ask(destroy_call(id))); }
  static v1::BackendCall dimm_call(const std::string& dimm, std::uint64_t bytes, std::uint32_t deadline_ms = 0) {
    v1::BackendCall c;
    auto* step = c.mutable_apply_memory_step();
    step->set_sandbox_id("a");
    step->mutable_plug_dimm()->set_id(dimm);
    step->mutable_plug_dimm()->set_size_bytes(bytes);
    step->set_deadline_ms(deadline_ms);
    return c;
  }
  static v1::BackendCall virtio_call(std::uint64_t bytes) {
    v1::BackendCall c;
    c.mutable_apply_memory_step()->set_sandbox_id("a");
    c.mutable_apply_memory_step()->set_virtio_mem_requested_bytes(bytes);
    return c;
  }
  static v1::BackendCall vcpus_call(std::uint32_t count) {
    v1::BackendCall c;
    c.mutable_set_vcpus()->set_sandbox_id("a");
    c.mutable_set_vcpus()->set_count(count);
    return c;
  }
  static v1::BackendCall pause_call(bool paused, std::uint32_t deadline_ms = 0) {
    v1::BackendCall c;
    if (paused) {
      c.mutable_pause()->set_sandbox_id("a");
      c.mutable_pause()->set_deadline_ms(deadline_ms);
    } else {
      c.mutable_resume()->set_sandbox_id("a");
      c.mutable_resume()->set_deadline_ms(deadline_ms);
    }
    return c;
  }
  v1::BackendCall attach_call(const std::string& id) {
    v1::BackendCall c;
    c.mutable_attach()->set_sandbox_id("a");
    c.mutable_attach()->mutable_disk()->set_id(id);
    c.mutable_attach()->mutable_disk()->set_path(top + "/disk");
    c.mutable_attach()->mutable_disk()->set_read_only(true);
    return c;
  }
  static v1::BackendCall detach_call(const std::string& id) {
    v1::BackendCall c;
    c.mutable_detach()->set_sandbox_id("a");
    c.mutable_detach()->set_device_id(id);
    return c;
  }
  std::vector<std::string> list() {
    v1::BackendCall c;
    c.mutable_list();
    const auto answer = ask(c);
    return {answer.list().sandbox_ids().begin(), answer.list().sandbox_ids().end()};
  }
  v1::BackendAnswer describe(const std::string& path, const std::string& architecture = "x86_64",
                             const std::string& firmware = {}) {
    v1::BackendCall c;
    c.mutable_describe()->set_vmm_path(path);
    c.mutable_describe()->set_architecture(architecture);
    c.mutable_describe()->set_firmware_path(firmware);
    return ask(c);
  }

  static v1::VmObserved good(const v1::BackendAnswer& answer) {
    EXPECT_FALSE(answer.has_error()) << answer.error().code() << ": " << answer.error().text();
    return answer.observed();
  }

  /// Looks until the VM is as wanted; every look is an answer of the VMM.
  template <class Wanted> v1::VmObserved until(Wanted wanted) {
    const auto end = std::chrono::steady_clock::now() + patience;
    for (;;) {
      auto seen = inspect();
      if (wanted(seen) || ::testing::Test::HasFailure())
        return seen;
      if (std::chrono::steady_clock::now() > end) {
        ADD_FAILURE() << "did not come: " << seen.ShortDebugString();
        return seen;
      }
    }
  }

  static std::vector<std::string> names_in(const std::string& directory) {
    std::vector<std::string> out;
    std::error_code none;
    for (const auto& entry : fs::directory_iterator{directory, none})
      out.push_back(entry.path().filename());
    std::sort(out.begin(), out.end());
    return out;
  }

  /// Until it has ended, or is stopped by a signal.
  static void await_end(const v1::VmObserved& of) {
    const int fd = static_cast<int>(::syscall(SYS_pidfd_open, static_cast<pid_t>(of.vmm_pid()), 0));
    if (fd < 0)
      return; // it has
    pollfd ends{fd, POLLIN, 0};
    EXPECT_EQ(::poll(&ends, 1, static_cast<int>(std::chrono::milliseconds{patience}.count())), 1);
    ::close(fd);
  }
  static void await_stop(const v1::VmObserved& of) {
    siginfo_t how{};
    EXPECT_EQ(::waitid(P_PID, static_cast<id_t>(of.vmm_pid()), &how, WSTOPPED | WNOWAIT), 0);
  }

  bool process_is_gone(const v1::VmObserved& was) {
    return reactor::start_ticks_of(static_cast<pid_t>(was.vmm_pid())) != was.vmm_start_ticks() ||
           process_state(static_cast<pid_t>(was.vmm_pid())) == 'Z';
  }

  std::string top;
  std::shared_ptr<heard_events> news = std::make_shared<heard_events>();
  std::unique_ptr<reactor::reactor> io = std::make_unique<reactor::reactor>();
  std::shared_ptr<driver> at;
};

} // namespace caisson::cloud_hypervisor
