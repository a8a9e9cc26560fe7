// The guest behind the API: the agent's protocol over the hybrid vsock, and what it sees of hotplug.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "guest/protocol/host_session.hpp"
#include "guest/protocol/version.hpp"
#include "tests/backends/cloud_hypervisor_double/double_process.hpp"

namespace caisson::cloud_hypervisor::tests {
namespace {

constexpr std::uint64_t mib = 1u << 20;

/// The host's end of the agent's channel.
class agent {
public:
  explicit agent(const std::string& socket) : stream_{socket}, session_{events()} {
    stream_.send("CONNECT " + std::to_string(guest_protocol::vsock_port) + "\n");
    std::string line;
    end_ = stream_.receive(line, [](const std::string& t) { return t.find('\n') != t.npos; });
    greeting = line.substr(0, line.find('\n') + 1);
    if (!end_.empty())
      return;
    session_.open(4711);
    session_.feed(std::as_bytes(std::span{line}.subspan(greeting.size())));
    pump([this] { return hello.has_value(); });
  }

  /// The reply to this question.
  v1::AgentReply ask(v1::AgentRequest question) {
    question.set_id(++last_id_);
    EXPECT_EQ(session_.send_request(question), std::nullopt);
    pump([&] { return replies_.contains(question.id()); });
    return replies_[question.id()];
  }

  v1::AgentFacts facts() {
    v1::AgentRequest q;
    q.mutable_read_facts();
    return ask(q).facts();
  }

  /// Facts once MemTotal is between these, or what they are after `limit`.
  v1::AgentFacts await_memory(std::uint64_t least, std::uint64_t most, std::uint32_t limit_ms = 30'000) {
    v1::AgentRequest q;
    q.mutable_await_memory()->set_mem_total_at_least_bytes(least);
    q.mutable_await_memory()->set_mem_total_at_most_bytes(most);
    q.mutable_await_memory()->set_wait_ms(limit_ms);
    return ask(q).facts();
  }

  v1::AgentFacts set_cpus(std::uint32_t count, std::uint32_t limit_ms = 30'000) {
    v1::AgentRequest q;
    q.mutable_set_online_cpus()->set_online(count);
    q.mutable_set_online_cpus()->set_wait_ms(limit_ms);
    return ask(q).facts();
  }

  std::string run(std::initializer_list<const char*> argv) {
    v1::AgentRequest q;
    for (const auto* a : argv)
      q.mutable_exec_start()->add_argv(a);
    q.mutable_exec_start()->set_stdin_stream(1);
    q.mutable_exec_start()->set_stdout_stream(2);
    q.mutable_exec_start()->set_stderr_stream(3);
    exited_.reset();
    output_.clear();
    ask(q);
    pump([this] { return exited_.has_value(); });
    return output_;
  }

  /// Until the other end closes.
  std::string wait_for_end() {
    pump([this] { return !end_.empty(); });
    return end_;
  }

  std::string greeting;
  std::optional<v1::AgentHello> hello;

private:
  guest_protocol::host_events events() {
    guest_protocol::host_events e;
    e.on_hello = [this](const v1::AgentHello& h) { hello = h; };
    e.on_reply = [this](const v1::AgentReply& r) { replies_[r.id()] = r; };
    e.on_notice = [this](const v1::AgentNotice& n) {
      if (n.has_exec_exited())
        exited_ = n.exec_exited().exit_code();
    };
    e.on_data = [this](std::uint32_t stream, std::span<const std::byte> bytes) {
      if (stream == 2)
        output_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      session_.consumed(stream, bytes.size());
    };
    return e;
  }

  void pump(const std::function<bool()>& done) {
    while (!done() && end_.empty()) {
      while (session_.has_output()) {
        const auto bytes = session_.take_output();
        stream_.send({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
      }
      std::string got;
      end_ = stream_.receive(got, [](const std::string& t) { return !t.empty(); });
      session_.feed(std::as_bytes(std::span{got}));
    }
  }

  stream stream_;
  guest_protocol::host_session session_;
  std::map<std::uint64_t, v1::AgentReply> replies_;
  std::optional<int> exited_;
  std::string output_, end_;
  std::uint64_t last_id_ = 0;
};

class guest_behind : public ::testing::Test {
protected:
  double_process& start(std::vector<std::string> arguments = {}) {
    vmm_.emplace(at_.path("v"), std::move(arguments));
    return *vmm_;
  }
  double_process& vmm() { return *vmm_; }
  std::string vsock() const { return at_.path("vsock"); }

  void boot(json more = json::object()) {
    if (!vmm_)
      start();
    more["vsock"] = json{{"cid", 3}, {"socket", vsock()}};
    ASSERT_EQ(vmm().put("vm.create", small_vm(at_, more)).code, "204");
    ASSERT_EQ(vmm().put("vm.boot").code, "204");
  }

  scratch at_;
  std::optional<double_process> vmm_;
};

json memory(std::uint64_t boot, std::uint64_t hotplug, const std::string& method) {
  return json{{"memory", json{{"size", boot}, {"hotplug_size", hotplug}, {"hotplug_method", method}}}};
}

TEST_F(guest_behind, its_agent_answers_and_runs_a_command) {
  boot();
  agent a{vsock()};
  EXPECT_EQ(a.greeting, "OK 1073741824\n");
  ASSERT_TRUE(a.hello);
  EXPECT_EQ(a.hello->protocol_version(), guest_protocol::protocol_version);
  EXPECT_EQ(a.run({"echo", "hello", "there"}), "hello there\n");
  agent second{vsock()};
  EXPECT_EQ(second.greeting, "OK 1073741825\n");
  EXPECT_EQ(a.wait_for_end(), "EOF"); // the newer connection has its place
}

TEST_F(guest_behind, nothing_is_answered_before_its_driver_is_up_nor_on_other_ports) {
  start({"--fault", "guest_boot_ms=200"});
  boot();
  stream early{vsock()};
  ASSERT_TRUE(early.connected());
  early.send("CONNECT 1024\n");
  std::string text;
  EXPECT_EQ(early.receive(text, [](const std::string& t) { return !t.empty(); }), ""); // once it is up
  EXPECT_TRUE(text.starts_with("OK "));
  for (const auto* line : {"CONNECT 5\n", "connect me\n", "GET / HTTP/1.1\n", "CONNECT 99999999999\n"}) {
    stream other{vsock()};
    other.send(line);
    std::string how;
    EXPECT_EQ(other.rest(&how), "") << line;
    EXPECT_NE(how, "silence") << line;
  }
  stream lower{vsock()};
  lower.send("connect 1024\n");
  text.clear();
  lower.receive(text, [](const std::string& t) { return t.ends_with("\n"); });
  EXPECT_TRUE(text.starts_with("OK "));
}

TEST_F(guest_behind, a_silent_agent_gives_no_ok) {
  start({"--fault", "agent=silent"});
  boot();
  ASSERT_TRUE(vmm().await_event("virtio-device/activated"));
  stream s{vsock()};
  s.send("CONNECT 1024\n");
  EXPECT_EQ(s.rest(), "");
}

TEST_F(guest_behind, acpi_memory_arrives_and_a_shrink_does_not) {
  boot(memory(512 * mib, 1024 * mib, "Acpi"));
  agent a{vsock()};
  const auto before = a.facts().memory().mem_total_bytes();
  EXPECT_EQ(vmm().put("vm.resize", json{{"desired_ram", 768 * mib}}).code, "204");
  EXPECT_EQ(a.await_memory(before + 256 * mib, 0).memory().mem_total_bytes(), before + 256 * mib);
  EXPECT_EQ(vmm().put("vm.resize", json{{"desired_ram", 512 * mib}}).code, "204");
  EXPECT_EQ(vmm().info()["memory_actual_size"], 512 * mib); // what the VMM says
  EXPECT_EQ(a.facts().memory().mem_total_bytes(), before + 256 * mib); // what is
}

TEST_F(guest_behind, virtio_memory_comes_and_goes) {
  boot(memory(512 * mib, 1024 * mib, "VirtioMem"));
  agent a{vsock()};
  const auto before = a.facts().memory().mem_total_bytes();
  EXPECT_EQ(vmm().put("vm.resize", json{{"desired_ram", 1024 * mib}}).code, "204");
  EXPECT_EQ(a.await_memory(before + 512 * mib, 0).memory().mem_total_bytes(), before + 512 * mib);
  EXPECT_EQ(vmm().info()["memory_actual_size"], 1024 * mib);
  EXPECT_EQ(vmm().put("vm.resize", json{{"desired_ram", 640 * mib}}).code, "204");
  EXPECT_EQ(a.await_memory(0, before + 128 * mib).memory().mem_total_bytes(), before + 128 * mib);
  EXPECT_EQ(vmm().info()["memory_actual_size"], 640 * mib);
}

TEST_F(guest_behind, virtio_memory_that_was_plugged_is_plugged_again_by_a_reboot) {
  boot(memory(512 * mib, 1024 * mib, "VirtioMem"));
  {
    agent a{vsock()};
    const auto before = a.facts().memory().mem_total_bytes();
    vmm().put("vm.resize", json{{"desired_ram", 768 * mib}});
    a.await_memory(before + 256 * mib, 0);
    EXPECT_EQ(vmm().put("vm.reboot").code, "204");
    EXPECT_NE(a.wait_for_end(), "silence"); // the old guest's connections end with it
  }
  agent b{vsock()};
  const auto boot_total = b.facts().memory().boot_mem_total_bytes();
  EXPECT_EQ(b.await_memory(boot_total + 256 * mib, 0).memory().mem_total_bytes(), boot_total + 256 * mib);
}

TEST_F(guest_behind, vcpus_come_and_are_given_back) {
  boot();
  agent a{vsock()};
  EXPECT_EQ(a.facts().cpus().online(), 1u);
  EXPECT_EQ(vmm().put("vm.resize", json{{"desired_vcpus", 3}}).code, "204");
  EXPECT_EQ(a.set_cpus(3).cpus().online(), 3u);
  EXPECT_EQ(vmm().put("vm.resize", json{{"desired_vcpus", 1}}).code, "204");
  // Until the guest has ejected them nothing else is taken.
  const auto end = std::chrono::steady_clock::now() + patience;
  std::string code;
  while ((code = vmm().put("vm.resize", json{{"desired_vcpus", 2}}).code) == "429" &&
         std::chrono::steady_clock::now() < end) {
  }
  EXPECT_EQ(code, "204");
  EXPECT_EQ(a.facts().cpus().online(), 1u);
}

TEST_F(guest_behind, a_paused_guest_stands_still) {
  boot();
  agent a{vsock()};
  EXPECT_EQ(vmm().put("vm.pause").code, "204");
  EXPECT_EQ(vmm().put("vm.resize", json{{"desired_vcpus", 2}}).code, "204");
  EXPECT_EQ(vmm().put("vm.resume").code, "204");
  EXPECT_EQ(a.set_cpus(2).cpus().online(), 2u);
}

TEST_F(guest_behind, its_console_is_heard_on_a_socket_and_in_a_file) {
  start();
  json more{{"serial", json{{"mode", "Socket"}, {"socket", at_.path("serial")}}},
            {"console", json{{"mode", "File"}, {"file", at_.path("console")}}}};
  more["payload"] = json{{"kernel", at_.kernel()}, {"cmdline", "console=ttyS0 console=hvc0"}};
  boot(more);
  stream serial{at_.path("serial")};
  std::string text;
  EXPECT_EQ(serial.receive(text, [](const std::string& t) { return t.find("agent: ready") != t.npos; }), "");
  EXPECT_TRUE(text.starts_with("[    0.000000] Linux version")) << text;
  std::ifstream file{at_.path("console")};
  std::ostringstream in_file;
  in_file << file.rdbuf();
  EXPECT_NE(in_file.str().find("agent: ready"), std::string::npos);
  EXPECT_EQ(vmm().put("vm.shutdown").code, "204");
  std::string how;
  serial.rest(&how);
  EXPECT_NE(how, "silence");
  EXPECT_FALSE(std::filesystem::exists(at_.path("serial")));
  EXPECT_FALSE(std::filesystem::exists(vsock()));
}

TEST_F(guest_behind, a_guest_that_powers_off_takes_the_process_along) {
  boot();
  agent a{vsock()};
  v1::AgentRequest q;
  q.mutable_power_off();
  a.ask(q);
  EXPECT_EQ(vmm().wait(), 0);
}

TEST_F(guest_behind, arm64_sees_dimms_only_with_firmware) {
  start({"--fault", "arch=aarch64"});
  boot(memory(512 * mib, 1024 * mib, "Acpi"));
  agent a{vsock()};
  EXPECT_EQ(a.hello->architecture(), "aarch64");
  EXPECT_FALSE(a.hello->features().acpi_memory_hotplug());
  const auto before = a.facts().memory().mem_total_bytes();
  EXPECT_EQ(vmm().put("vm.resize", json{{"desired_ram", 640 * mib}}).code, "204");
  EXPECT_EQ(a.await_memory(before + 1, 0, 50).memory().mem_total_bytes(), before);
}

} // namespace
} // namespace caisson::cloud_hypervisor::tests
