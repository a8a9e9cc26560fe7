#include "guest/agent/boot.hpp"
#include "guest/agent/event_loop.hpp"
#include "guest/agent/facts.hpp"
#include "guest/agent/files.hpp"
#include "guest/agent/listener.hpp"
#include "guest/agent/report.hpp"
#include "guest/agent/transport.hpp"
#include "guest/agent/uevents.hpp"
#include "guest/protocol/guest_session.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>

// caisson-hostile-agent: a guest whose agent does what no agent should. Which of it stands on the kernel command line:
//
//   caisson.hostile=lie      claims 1 EiB of memory and 4096 processors, and every change done; commands "succeed"
//   caisson.hostile=stall    greets, then answers nothing and reads nothing
//   caisson.hostile=silent   never greets
//   caisson.hostile=flood    greets and answers, between notices without end
//   caisson.hostile=garbage  greets, then sends bytes that are no frames
//   caisson.hostile=overrun  greets; a command's output comes without regard to credit
//   caisson.hostile=press    greets and answers, is always short of memory, and says so without end
//   caisson.hostile=grab     greets and answers; from its first command on it writes to every page where memory could
//                            be plugged (needs module_blacklist=virtio_mem, else the driver holds that place)
//
// As an ordinary process (tests): caisson-hostile-agent --test-socket FD MODE.
namespace {

using namespace caisson;
using namespace caisson::agent;
using guest_protocol::guest_session;

constexpr std::uint64_t exbibyte = std::uint64_t{1} << 60;
constexpr std::uint64_t pressing_available_bytes = 48 << 20; // with less a guest could not take memory in

struct region {
  std::uint64_t at = 0, bytes = 0;
};

// Where memory may be plugged, as the firmware tells every kernel: the SRAT's entries of memory that is hotpluggable.
region hotplug_region() {
  const auto table = read_file("/sys/firmware/acpi/tables/SRAT");
  constexpr std::size_t header = 48, entry_bytes = 40;
  constexpr char memory_affinity = 1;
  constexpr std::uint32_t enabled_and_hotpluggable = 3;
  region largest;
  for (std::size_t at = header; at + 2 <= table.size();) {
    const std::size_t length = static_cast<unsigned char>(table[at + 1]);
    if (length < 2)
      break;
    if (table[at] == memory_affinity && length >= entry_bytes && at + length <= table.size()) {
      region found;
      std::uint32_t flags = 0;
      std::memcpy(&found.at, &table[at + 8], sizeof found.at);
      std::memcpy(&found.bytes, &table[at + 16], sizeof found.bytes);
      std::memcpy(&flags, &table[at + 28], sizeof flags);
      if ((flags & enabled_and_hotpluggable) == enabled_and_hotpluggable && found.bytes > largest.bytes)
        largest = found;
    }
    at += length;
  }
  return largest;
}

// Writes to memory that the guest was not given, past every driver: the machine's own addresses, by /dev/mem.
class grabber {
public:
  explicit grabber(event_loop& loop) : loop_{loop} {}

  void begin() {
    if (memory_)
      return;
    left_ = hotplug_region();
    memory_ = unique_fd{::open("/dev/mem", O_RDWR | O_CLOEXEC)};
    if (!memory_)
      return report("cannot open /dev/mem", errno);
    if (left_.bytes == 0)
      return report("the firmware tells of no memory that could be plugged");
    report("grabbing " + std::to_string(left_.bytes) + " bytes at " + std::to_string(left_.at));
    go_on();
  }

private:
  void go_on() {
    constexpr std::uint64_t piece = 16 << 20, page = 4096;
    const auto bytes = std::min(piece, left_.bytes);
    if (bytes == 0)
      return report("grabbed all of it");
    const auto offset = static_cast<off_t>(left_.at);
    void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory_.get(), offset);
    if (at == MAP_FAILED)
      return report("cannot map memory that was not plugged", errno);
    for (std::uint64_t i = 0; i < bytes; i += page)
      static_cast<volatile char*>(at)[i] = 1;
    ::munmap(at, bytes);
    left_.at += bytes;
    left_.bytes -= bytes;
    loop_.after(std::chrono::milliseconds{0}, [this] { go_on(); });
  }

  event_loop& loop_;
  unique_fd memory_;
  region left_;
};

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
    if (mode_ == "press" && !std::exchange(pressing_, true))
      press();
  }

  // Far oftener than a kernel would, and not so often that its own answers come late.
  void press() {
    if (greeted_) {
      v1::AgentNotice notice;
      notice.mutable_pressure()->set_stalled_us(++count_ * 1'000'000);
      notice.mutable_pressure()->set_some_avg10_centi(10'000);
      *notice.mutable_pressure()->mutable_memory() = memory(mem_total_bytes());
      session_.send_notice(std::move(notice));
    }
    loop_.after(std::chrono::milliseconds{20}, [this] { press(); });
  }

  v1::MemoryFacts memory(std::uint64_t claimed) const {
    auto facts = read_memory_facts(mem_total_bytes());
    if (mode_ == "lie") {
      facts.set_mem_total_bytes(claimed);
      facts.set_mem_available_bytes(exbibyte);
      facts.set_online_blocks(~0u);
    }
    if (mode_ == "press")
      facts.set_mem_available_bytes(pressing_available_bytes);
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
    if (mode_ == "grab")
      grabber_.begin();
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
  grabber grabber_{loop_};
  guest_session session_;
  std::optional<transport> transport_;
  bool greeted_ = false;
  bool pressing_ = false;
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
  const auto mode = mode_of(read_file("/proc/cmdline"));
  if (mode == "press")
    online_new_memory(); // so that it has what it is given, and wants more
  hostile_agent agent{mode};
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
