/// The whole backend process on real QEMU and libvirt, with the guest image where it has been built.

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
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using clock = std::chrono::steady_clock;
using guest_protocol::agent_client;

constexpr std::uint64_t mib = 1 << 20;
constexpr const char* qemu = "/usr/bin/qemu-system-x86_64";
const std::string guest = CAISSON_GUEST_DIRECTORY;

std::string kernel_parameters() {
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

TEST_F(live_driver, describes_what_this_host_can_do) {
  v1::BackendCall call;
  auto& q = *call.mutable_describe();
  q.set_architecture("x86_64");
  q.set_accelerator("auto");
  q.set_vmm_path(qemu);
  q.set_kernel_path(guest + "/vmlinux");
  q.set_initrd_path(guest + "/initramfs.cpio");
  q.set_deadline_ms(120'000);
  std::optional<v1::BackendAnswer> a;
  {
    stopwatch time{"describe"};
    a = client->ask(call, 120s);
  }
  ASSERT_TRUE(a && a->has_capabilities()) << (a ? a->ShortDebugString() : "no answer");
  const auto c = a->capabilities();
  std::cout << c.ShortDebugString() << '\n';
  EXPECT_TRUE(c.accelerator() == "kvm" || c.accelerator() == "tcg");
  EXPECT_FALSE(c.accelerator_reason().empty());
  EXPECT_TRUE(c.dimm() && c.virtio_mem());
  {
    stopwatch time{"describe again"};
    a = client->ask(call, 120s);
  }
  EXPECT_EQ(a->capabilities().accelerator(), c.accelerator());

  q.set_vmm_path("/usr/bin/there-is-no-such-qemu");
  a = client->ask(call);
  EXPECT_EQ(error_code(a), "host_missing");
  EXPECT_NE(a->error().text().find("qemu-system-x86"), std::string::npos) << a->error().text();
  if (c.accelerator() == "tcg") {
    q.set_vmm_path(qemu);
    q.set_accelerator("kvm");
    a = client->ask(call);
    EXPECT_TRUE(error_code(a) == "host_missing" || error_code(a) == "host_denied") << a->ShortDebugString();
  }
}

TEST_F(live_driver, grows_and_shrinks_by_dimms_and_leaves_nothing) {
  auto s = spec("dimm-1", v1::MEMORY_METHOD_DIMM);
  s.set_free_root_ports(2);
  s.set_bridges(2);
  auto o = create(s);
  ASSERT_EQ(o.state(), v1::VM_STATE_RUNNING) << o.ShortDebugString();
  std::cout << o.ShortDebugString() << '\n';
  EXPECT_EQ(o.boot_bytes(), 256 * mib);
  EXPECT_EQ(o.plugged_bytes(), 0u);
  EXPECT_EQ(o.plugged_vcpus(), 1u);
  EXPECT_EQ(o.max_vcpus(), 3u);
  EXPECT_GT(o.vmm_pid(), 1);
  EXPECT_EQ(o.accelerator(), "tcg");

  auto again = create(s);
  EXPECT_EQ(again.vmm_pid(), o.vmm_pid());

  agent_client agent{connect(o.channels().agent())};
  ASSERT_TRUE(agent.wait(60s, [&] { return agent.hello.has_value(); }));
  // By QEMU's ids: 000e is its bridge to conventional PCI, 000c its root port (two free ones, one before each bridge).
  auto& tree = agent.start({"sh", "-c", "cat /sys/bus/pci/devices/*/device | sort | uniq -c"});
  ASSERT_TRUE(agent.finish(tree, 30s));
  EXPECT_NE(tree.output.find("2 0x000e"), std::string::npos) << tree.output;
  EXPECT_NE(tree.output.find("4 0x000c"), std::string::npos) << tree.output;

  {
    stopwatch time{"DIMM attach"};
    o = observed(client->ask(plug("dimm-1", "m0", 256 * mib)));
  }
  ASSERT_EQ(o.dimms_size(), 1);
  EXPECT_EQ(o.dimms(0).id(), "m0");
  EXPECT_EQ(o.plugged_bytes(), 256 * mib);
  EXPECT_EQ(observed(client->ask(plug("dimm-1", "m0", 256 * mib))).dimms_size(), 1);
  EXPECT_EQ(error_code(client->ask(plug("dimm-1", "m1", 100 * mib))), "out_of_range");
  EXPECT_EQ(error_code(client->ask(plug("dimm-1", "m,1", 128 * mib))), "invalid_argument");
  EXPECT_EQ(error_code(client->ask(plug("dimm-1", "m9", 4096 * mib))), "backend_refused");

  v1::AgentRequest online;
  online.mutable_await_memory()->set_wait_ms(20'000);
  online.mutable_await_memory()->set_mem_total_at_least_bytes(400 * mib);
  auto reply = agent.ask(online, 30s);
  ASSERT_TRUE(reply);
  std::cout << reply->ShortDebugString() << '\n';

  auto unplug = step("dimm-1");
  unplug.mutable_apply_memory_step()->set_unplug_dimm_id("m0");
  {
    stopwatch time{"DIMM detach asked"};
    ASSERT_TRUE(client->ask(unplug));
  }
  {
    stopwatch time{"DIMM gone"};
    ASSERT_TRUE(client->wait_event(v1::VmEvent::KIND_DEVICE_REMOVED, 30s));
  }
  EXPECT_EQ(client->events.back().device_id(), "m0");
  EXPECT_EQ(inspect("dimm-1").plugged_bytes(), 0u);
  EXPECT_EQ(observed(client->ask(unplug)).plugged_bytes(), 0u);

  v1::BackendCall vcpus;
  vcpus.mutable_set_vcpus()->set_sandbox_id("dimm-1");
  vcpus.mutable_set_vcpus()->set_count(3);
  {
    stopwatch time{"vCPUs 1 -> 3"};
    EXPECT_EQ(observed(client->ask(vcpus)).plugged_vcpus(), 3u);
  }
  vcpus.mutable_set_vcpus()->set_count(2);
  EXPECT_EQ(error_code(client->ask(vcpus)), "unsupported");
  vcpus.mutable_set_vcpus()->set_count(4);
  EXPECT_EQ(error_code(client->ask(vcpus)), "out_of_range");

  v1::BackendCall pause, resume;
  pause.mutable_pause()->set_sandbox_id("dimm-1");
  resume.mutable_resume()->set_sandbox_id("dimm-1");
  EXPECT_EQ(observed(client->ask(pause)).state(), v1::VM_STATE_PAUSED);
  EXPECT_EQ(observed(client->ask(pause)).state(), v1::VM_STATE_PAUSED);
  EXPECT_EQ(observed(client->ask(resume)).state(), v1::VM_STATE_RUNNING);

  auto pid = o.vmm_pid();
  {
    stopwatch time{"destroy"};
    EXPECT_EQ(observed(client->ask(destroy_call("dimm-1"))).state(), v1::VM_STATE_ABSENT);
  }
  EXPECT_FALSE(alive(pid));
  EXPECT_EQ(traces("dimm-1"), std::vector<std::string>{});
  EXPECT_EQ(inspect("dimm-1").state(), v1::VM_STATE_ABSENT);
  EXPECT_EQ(observed(client->ask(destroy_call("dimm-1"))).state(), v1::VM_STATE_ABSENT);
  EXPECT_EQ(error_code(client->ask(plug("dimm-1", "m0", 128 * mib))), "vmm_died");
}

TEST_F(live_driver, virtio_mem_follows_both_ways) {
  auto o = create(spec("vm-1", v1::MEMORY_METHOD_VIRTIO_MEM));
  ASSERT_EQ(o.state(), v1::VM_STATE_RUNNING);
  agent_client agent{connect(o.channels().agent())};
  {
    stopwatch time{"guest agent answers"};
    ASSERT_TRUE(agent.wait(60s, [&] { return agent.hello.has_value(); }));
  }
  auto request = [&](std::uint64_t bytes) {
    auto call = step("vm-1");
    call.mutable_apply_memory_step()->set_virtio_mem_requested_bytes(bytes);
    client->events.clear();
    return client->ask(call);
  };
  auto reached = [&](std::uint64_t bytes) {
    return client->wait(60s, [&] {
      return !client->events.empty() && client->events.back().kind() == v1::VmEvent::KIND_MEMORY_SIZE &&
             client->events.back().size_bytes() == bytes;
    });
  };
  {
    stopwatch time{"virtio-mem to 512 MiB"};
    EXPECT_EQ(observed(request(512 * mib)).virtio_mem_requested_bytes(), 512 * mib);
    EXPECT_TRUE(reached(512 * mib));
  }
  EXPECT_EQ(inspect("vm-1").plugged_bytes(), 512 * mib);
  {
    stopwatch time{"virtio-mem to 100 MiB"};
    observed(request(100 * mib));
    EXPECT_TRUE(reached(100 * mib));
  }
  EXPECT_EQ(inspect("vm-1").plugged_bytes(), 100 * mib);
  EXPECT_EQ(error_code(request(100 * mib + 1)), "out_of_range");
  EXPECT_EQ(error_code(request(1ull << 60)), "out_of_range");
}

TEST_F(live_driver, survives_being_killed) {
  auto o = create(spec("kill-1", v1::MEMORY_METHOD_DIMM));
  client->kill9();
  {
    stopwatch time{"reopen to first inspect"};
    open();
    auto found = inspect("kill-1");
    EXPECT_EQ(found.state(), v1::VM_STATE_RUNNING);
    EXPECT_EQ(found.vmm_pid(), o.vmm_pid());
    EXPECT_EQ(found.vmm_start_ticks(), o.vmm_start_ticks());
  }
  v1::BackendCall list;
  list.mutable_list();
  auto a = client->ask(list);
  ASSERT_TRUE(a && a->has_list());
  EXPECT_EQ(a->list().sandbox_ids_size(), 1);
  EXPECT_EQ(observed(client->ask(plug("kill-1", "m0", 128 * mib))).plugged_bytes(), 128 * mib);
  {
    stopwatch time{"destroy after reopening"};
    observed(client->ask(destroy_call("kill-1")));
  }
  EXPECT_FALSE(alive(o.vmm_pid()));
  EXPECT_EQ(traces("kill-1"), std::vector<std::string>{});
}

TEST_F(live_driver, a_silent_vmm_is_seen_and_destroyed) {
  auto o = create(spec("stop-1", v1::MEMORY_METHOD_DIMM));
  auto pid = static_cast<pid_t>(o.vmm_pid());
  ASSERT_GT(pid, 1);
  ::kill(pid, SIGSTOP);
  auto seen = inspect("stop-1");
  EXPECT_EQ(seen.vmm_pid(), pid);
  EXPECT_EQ(seen.boot_bytes(), 256 * mib);
  EXPECT_NE(seen.stale_reason(), "");
  EXPECT_EQ(error_code(client->ask(plug("stop-1", "m0", 128 * mib))), "backend_refused");
  {
    stopwatch time{"destroy of a stopped VMM"};
    EXPECT_EQ(observed(client->ask(destroy_call("stop-1"), 20s)).state(), v1::VM_STATE_ABSENT);
  }
  EXPECT_FALSE(alive(pid));
  EXPECT_EQ(traces("stop-1"), std::vector<std::string>{});
}

TEST_F(live_driver, tells_when_the_vmm_is_killed) {
  auto o = create(spec("died-1", v1::MEMORY_METHOD_VIRTIO_MEM));
  ASSERT_GT(o.vmm_pid(), 1);
  ::kill(static_cast<pid_t>(o.vmm_pid()), SIGKILL);
  ASSERT_TRUE(client->wait_event(v1::VmEvent::KIND_VMM_DIED, 20s));
  EXPECT_NE(client->events.back().text().find("signal 9"), std::string::npos) << client->events.back().text();
  auto seen = inspect("died-1");
  EXPECT_EQ(seen.state(), v1::VM_STATE_STOPPED);
  EXPECT_NE(seen.stop_reason().find("vmm died"), std::string::npos);
  EXPECT_EQ(error_code(client->ask(plug("died-1", "m0", 128 * mib))), "vmm_died");
  observed(client->ask(destroy_call("died-1")));
  EXPECT_EQ(traces("died-1"), std::vector<std::string>{});
}

TEST_F(live_driver, carries_commas_and_quotes_in_paths) {
  auto s = spec("odd-1", v1::MEMORY_METHOD_DIMM);
  auto odd = directory + "/run/a,b 'c\" <&>";
  fs::create_directories(odd);
  fs::copy_file(guest + "/vmlinux", odd + "/vm,linux=\"1\"");
  s.set_kernel_path(odd + "/vm,linux=\"1\"");
  s.set_run_directory(odd + "/odd-1");
  s.set_kernel_command_line(kernel_parameters() + " caisson.odd=\"a,b'<&>\"");
  auto o = create(s);
  ASSERT_EQ(o.state(), v1::VM_STATE_RUNNING);
  agent_client agent{connect(o.channels().agent())};
  ASSERT_TRUE(agent.wait(60s, [&] { return agent.hello.has_value(); }));
  auto& line = agent.start({"cat", "/proc/cmdline"});
  ASSERT_TRUE(agent.finish(line, 30s));
  EXPECT_NE(line.output.find("caisson.odd=\"a,b'<&>\""), std::string::npos) << line.output;
}

TEST_F(live_driver, works_on_a_running_libvirt) {
  auto* uri = std::getenv("CAISSON_TEST_LIBVIRT_URI");
  if (!uri)
    GTEST_SKIP() << "CAISSON_TEST_LIBVIRT_URI names no running libvirt (qemu+unix:///system?socket=PATH)";
  auto s = spec("daemon-1", v1::MEMORY_METHOD_DIMM);
  s.set_libvirt_uri(uri);
  auto o = create(s);
  ASSERT_EQ(o.state(), v1::VM_STATE_RUNNING);
  agent_client agent{connect(o.channels().agent())};
  ASSERT_TRUE(agent.wait(60s, [&] { return agent.hello.has_value(); }));
  EXPECT_EQ(observed(client->ask(plug("daemon-1", "m0", 128 * mib))).plugged_bytes(), 128 * mib);
  client->kill9();
  open();
  EXPECT_EQ(inspect("daemon-1").vmm_pid(), o.vmm_pid());
  EXPECT_EQ(inspect("daemon-1").plugged_bytes(), 128 * mib);
  {
    stopwatch time{"destroy"};
    EXPECT_EQ(observed(client->ask(destroy_call("daemon-1"))).state(), v1::VM_STATE_ABSENT);
  }
  EXPECT_EQ(traces("daemon-1"), std::vector<std::string>{});
}

TEST_F(live_driver, a_create_that_fails_leaves_nothing) {
  auto s = spec("bad-1", v1::MEMORY_METHOD_DIMM);
  auto run = s.run_directory();
  fs::create_directories(run);
  s.set_machine_type("no-such-machine");
  v1::BackendCall call;
  *call.mutable_create()->mutable_spec() = s;
  auto a = client->ask(call);
  ASSERT_TRUE(a && a->has_error());
  EXPECT_NE(a->error().text().find("no-such-machine"), std::string::npos) << a->error().text();
  EXPECT_EQ(traces("bad-1"), std::vector<std::string>{run});
  EXPECT_TRUE(fs::is_empty(run));
  s.set_kernel_path("/no/such/kernel");
  s.set_machine_type("");
  *call.mutable_create()->mutable_spec() = s;
  EXPECT_EQ(error_code(client->ask(call)), "host_missing");
  EXPECT_EQ(inspect("bad-1").state(), v1::VM_STATE_ABSENT);
}

TEST_F(live_driver, a_vmm_stopped_in_the_middle_of_its_creation_ends_in_bounded_time) {
  auto s = spec("stall-1", v1::MEMORY_METHOD_DIMM);
  fs::create_directories(s.run_directory());
  made.push_back("stall-1");
  v1::BackendCall call;
  *call.mutable_create()->mutable_spec() = s;
  call.mutable_create()->set_deadline_ms(3'000);
  auto creating = client->send(call);
  auto stopped = [&] {
    for (const auto& entry : fs::directory_iterator{"/proc"}) {
      std::ifstream in{entry.path() / "cmdline"};
      std::string line{std::istreambuf_iterator<char>{in}, {}};
      if (line.find("guest=caisson-stall-1,") != line.npos)
        return ::kill(std::stoi(entry.path().filename()), SIGSTOP) == 0;
    }
    return false;
  };
  auto until = clock::now() + 10s;
  while (!stopped() && clock::now() < until)
    ::poll(nullptr, 0, 2);
  // It may have been quicker than we are; then there is nothing to see here but the destroy.
  auto created = client->wait_answer(creating, 10s);
  ASSERT_TRUE(created);
  std::cout << (created->has_error() ? created->error().text() : "created before it was stopped") << '\n';
  {
    stopwatch time{"destroy of a VMM stopped while it was made"};
    EXPECT_EQ(observed(client->ask(destroy_call("stall-1"), 20s)).state(), v1::VM_STATE_ABSENT);
  }
  EXPECT_FALSE(stopped());
  for (const auto& left : traces("stall-1"))
    EXPECT_TRUE(left == s.run_directory() && fs::is_empty(left)) << left;
}

TEST_F(live_driver, destroy_answers_what_is_pending) {
  auto s = spec("race-1", v1::MEMORY_METHOD_DIMM);
  fs::create_directories(s.run_directory());
  made.push_back("race-1");
  v1::BackendCall call;
  *call.mutable_create()->mutable_spec() = s;
  auto creating = client->send(call);
  auto destroying = client->send(destroy_call("race-1"));
  auto created = client->wait_answer(creating, 30s);
  auto destroyed = client->wait_answer(destroying, 60s);
  EXPECT_EQ(error_code(created), "vmm_died");
  EXPECT_EQ(observed(destroyed).state(), v1::VM_STATE_ABSENT);
  EXPECT_EQ(inspect("race-1").state(), v1::VM_STATE_ABSENT);
  // Where the create had not even begun, nobody but the owner knows its run directory.
  for (const auto& left : traces("race-1"))
    EXPECT_TRUE(left == s.run_directory() && fs::is_empty(left)) << left;
}

} // namespace
} // namespace caisson::tests
