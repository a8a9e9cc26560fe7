#include "guest/agent/boot.hpp"
#include "guest/agent/event_loop.hpp"
#include "guest/agent/facts.hpp"
#include "guest/agent/files.hpp"
#include "guest/agent/listener.hpp"
#include "guest/agent/report.hpp"
#include "guest/agent/transport.hpp"
#include "guest/agent/uevents.hpp"
#include "guest/protocol/guest_session.hpp"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>

// caisson-hostile-agent: a guest whose agent does what no agent should. Which of it stands on the kernel command line:
//
//   caisson.hostile=lie      claims 1 EiB of memory and 4096 processors, and every change done; commands "succeed"
//   caisson.hostile=stall    greets, then answers nothing and reads nothing
//   caisson.hostile=silent   never greets
//   caisson.hostile=flood    greets and answers, between notices without end
//   caisson.hostile=garbage  greets, then sends bytes that are no frames
//   caisson.hostile=overrun  greets; a command's output comes without regard to credit
//
// As an ordinary process (tests): caisson-hostile-agent --test-socket FD MODE.
namespace {

using namespace caisson;
using namespace caisson::agent;
using guest_protocol::guest_session;

constexpr std::uint64_t exbibyte = std::uint64_t{1} << 60;

class hostile_agent {
public:
  explicit hostile_agent(std::string mode)
      : mode_{std::move(mode)}, session_{{
                                    .on_open = [this] { greet(); },
                                    .on_request = [this](const v1::AgentRequest& r) { answer(r); },
                                    .on_data = [this](auto stream,
                                                      auto bytes) { session_.consumed(stream, bytes.size()); },
                                    .on_eof = nullptr,
                                    .on_writable = nullptr,
                                    .on_stopped = nullptr,
                                }} {}

  void serve(unique_fd channel, transport::kind what, bool is_init) {
    session_.disconnected();
    greeted_ = false;
    transport_.emplace(loop_, std::move(channel), what,
                       transport::events{
                           .on_bytes = [this](auto bytes) { session_.feed(bytes); },
                           .wants_bytes = [this] { return !(mode_ == "stall" && greeted_) && session_.wants_input(); },
                           .next_output = [this] { return output(); },
                           .on_gone =
                               [this, is_init] {
                                 session_.disconnected();
                                 greeted_ = false;
                                 if (!is_init)
                                   loop_.stop();
                               },
                       });
    loop_.before_sleep([this] { transport_->pump(); });
  }

  event_loop& loop() { return loop_; }
  bool serving() const { return transport_.has_value(); }

private:
  void greet() {
    if (mode_ == "silent")
      return;
    v1::AgentHello hello;
    hello.set_protocol_version(guest_protocol::protocol_version);
    hello.set_agent_version(std::string(200, '\x1b') + "[2J");
    hello.set_kernel_release("hostile\n\x1b]0;title\x07");
    hello.set_architecture("x86_64");
    *hello.mutable_memory() = memory(mem_total_bytes());
    *hello.mutable_cpus() = cpus(1);
    *hello.mutable_features() = read_features();
    session_.send_hello(std::move(hello));
    greeted_ = true;
  }

  v1::MemoryFacts memory(std::uint64_t claimed) const {
    auto facts = read_memory_facts(mem_total_bytes());
    if (mode_ == "lie") {
      facts.set_mem_total_bytes(claimed);
      facts.set_mem_available_bytes(exbibyte);
      facts.set_online_blocks(~0u);
    }
    return facts;
  }

  v1::CpuFacts cpus(std::uint32_t claimed) const {
    auto facts = read_cpu_facts();
    if (mode_ == "lie") {
      facts.set_online(claimed);
      facts.set_present(4096);
      facts.set_possible(~0u);
    }
    return facts;
  }

  void answer(const v1::AgentRequest& request) {
    if (mode_ == "stall" || mode_ == "silent")
      return;
    v1::AgentReply reply;
    reply.set_id(request.id());
    switch (request.ask_case()) {
    case v1::AgentRequest::kPowerOff:
      if (mode_ != "lie")
        power_off();
      reply.mutable_done(); // and goes on
      break;
    case v1::AgentRequest::kExecStart:
      reply.mutable_exec_started()->set_exec_id(request.id());
      reply.mutable_exec_started()->set_pid(1);
      session_.send_reply(reply);
      run(request.id(), request.exec_start());
      return;
    case v1::AgentRequest::kExecSignal:
    case v1::AgentRequest::kExecResize:
      reply.mutable_done();
      break;
    default:
      *reply.mutable_facts()->mutable_memory() =
          memory(request.has_await_memory() ? std::max(request.await_memory().mem_total_at_least_bytes(), exbibyte)
                                            : exbibyte);
      *reply.mutable_facts()->mutable_cpus() =
          cpus(request.has_set_online_cpus() ? request.set_online_cpus().online() : 4096);
    }
    session_.send_reply(std::move(reply));
  }

  void run(std::uint64_t id, const v1::ExecStart& exec) {
    if (mode_ == "overrun") {
      overrun_stream_ = exec.stdout_stream();
      return;
    }
    for (const auto stream : {exec.stdout_stream(), exec.stderr_stream()}) {
      session_.add_output(stream);
      session_.close(stream);
    }
    v1::AgentNotice notice;
    notice.mutable_exec_exited()->set_exec_id(id);
    session_.send_notice_after({exec.stdout_stream(), exec.stderr_stream()}, std::move(notice));
  }

  std::vector<std::byte> output() {
    auto bytes = session_.take_output();
    if (!bytes.empty() || !greeted_)
      return bytes;
    if (mode_ == "flood") {
      // Now and then it looks at what the host says: a flood that also answers is the harder guest to be fair to.
      if (++pieces_ % 16 == 0) {
        loop_.after(std::chrono::milliseconds{0}, [this] { transport_->pump(); });
        return bytes;
      }
      for (int i = 0; i < 100; ++i) {
        v1::AgentNotice notice;
        notice.mutable_facts_changed()->mutable_memory()->set_mem_total_bytes(++count_);
        session_.send_notice(std::move(notice));
      }
      return session_.take_output();
    }
    if (mode_ == "garbage")
      for (int i = 0; i < 4096; ++i)
        bytes.push_back(static_cast<std::byte>(count_ = count_ * 6364136223846793005u + 1442695040888963407u));
    if (mode_ == "overrun" && overrun_stream_ != 0)
      guest_protocol::append_frame(bytes, session_.epoch(), guest_protocol::frame_type::data, overrun_stream_,
                                   std::vector<std::byte>(32 * 1024));
    return bytes;
  }

  std::string mode_;
  event_loop loop_;
  guest_session session_;
  std::optional<transport> transport_;
  bool greeted_ = false;
  std::uint64_t count_ = 0;
  std::uint64_t pieces_ = 0;
  std::uint32_t overrun_stream_ = 0;
};

std::string mode_of(const std::string& command_line) {
  constexpr std::string_view key = "caisson.hostile=";
  const auto at = command_line.find(key);
  if (at == std::string::npos)
    return "stall";
  return command_line.substr(at + key.size(), command_line.find_first_of(" \n", at) - at - key.size());
}

} // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--version") == 0) {
    constexpr char text[] = "caisson-agent hostile\n";
    return ::write(STDOUT_FILENO, text, sizeof text - 1) < 0;
  }
  if (argc == 4 && std::strcmp(argv[1], "--test-socket") == 0) {
    hostile_agent agent{argv[3]};
    agent.serve(unique_fd{std::atoi(argv[2])}, transport::kind::socket, false);
    agent.loop().run();
    return 0;
  }
  if (::getpid() != 1)
    return 2;
  set_is_init(true);
  mount_file_systems();
  hostile_agent agent{mode_of(read_file("/proc/cmdline"))};
  const auto look = [&] {
    if (const auto device = find_port(guest_protocol::port_name); !agent.serving() && !device.empty())
      if (auto port = open_port(device))
        agent.serve(std::move(port), transport::kind::port, true);
  };
  ::signal(SIGIO, SIG_IGN);
  uevents events{agent.loop(), [&](const uevents::event&) { look(); }};
  load_modules();
  look();
  std::optional<listener> vsock;
  if (auto listening = listen_on_vsock(guest_protocol::vsock_port); listening && !agent.serving())
    vsock.emplace(agent.loop(), std::move(listening), [&](unique_fd connection) {
      agent.serve(std::move(connection), transport::kind::socket, true);
    });
  report("hostile");
  agent.loop().run();
}
