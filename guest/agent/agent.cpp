#include "guest/agent/agent.hpp"

#include "guest/agent/facts.hpp"
#include "guest/agent/report.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>
#include <utility>
#include <variant>

namespace caisson::agent {

using namespace std::chrono_literals;

namespace {

constexpr auto port_deadline = 60s;
constexpr auto changes_every = 100ms;
constexpr std::uint32_t oom_notices_a_second = 10;

v1::AgentFailure failure(int error_number, std::string text) {
  v1::AgentFailure f;
  f.set_guest_errno(error_number);
  f.set_text(std::move(text));
  return f;
}

} // namespace

agent::agent(agent_settings settings)
    : settings_{settings}, session_{{
                               .on_open = [this] { on_open(); },
                               .on_request = [this](const v1::AgentRequest& r) { on_request(r); },
                               .on_data = [this](auto stream, auto bytes) { processes_.on_data(stream, bytes); },
                               .on_eof = [this](auto stream) { processes_.on_eof(stream); },
                               .on_writable = [this](auto stream) { processes_.on_writable(stream); },
                               .on_stopped = [this](auto stream) { processes_.on_stopped(stream); },
                           }},
      processes_{loop_, session_},
      hotplug_{loop_,
               {settings.is_init, settings.boot_mem_total_bytes},
               [this](std::uint64_t id, const v1::AgentFacts& facts) {
                 v1::AgentReply answer;
                 answer.set_id(id);
                 *answer.mutable_facts() = facts;
                 reply(std::move(answer));
               }} {
  watch_signals();
  uevents_.emplace(loop_, [this](const uevents::event& event) { on_uevent(event); });
  loop_.before_sleep([this] {
    if (transport_)
      transport_->pump();
  });
}

void agent::run(unique_fd channel) {
  if (channel) {
    use_channel(std::move(channel));
  } else {
    watch_kernel_log();
    loop_.after(port_deadline, [this] {
      if (!transport_)
        fatal("there is no virtio-serial port named " + std::string{guest_protocol::port_name} +
              "; the virtual machine needs a virtio-serial device with such a port");
    });
    look_for_port();
    hotplug_.on_memory_event();
  }
  loop_.run();
}

void agent::use_channel(unique_fd channel) {
  transport_.emplace(loop_, std::move(channel),
                     transport::events{
                         .on_bytes = [this](std::span<const std::byte> bytes) { session_.feed(bytes); },
                         .wants_bytes = [this] { return session_.wants_input(); },
                         .next_output = [this] { return session_.take_output(); },
                         .on_gone =
                             [this] {
                               session_.disconnected();
                               processes_.detach_all();
                               hotplug_.forget_waits();
                               if (!settings_.is_init)
                                 loop_.stop();
                             },
                     },
                     settings_.is_init ? port_gone_after : 0ms);
}

void agent::look_for_port() {
  if (transport_)
    return;
  const auto device = find_port(guest_protocol::port_name);
  if (device.empty())
    return;
  auto port = open_port(device);
  if (port)
    use_channel(std::move(port));
  else if (errno != ENOENT)  // the node follows its event
    report("cannot open " + device, errno);
}

void agent::on_open() {
  transport_->drop_output();
  processes_.detach_all();
  hotplug_.forget_waits();
  v1::AgentHello hello;
  hello.set_protocol_version(guest_protocol::protocol_version);
  hello.set_agent_version(CAISSON_VERSION);
  utsname name{};
  ::uname(&name);
  hello.set_kernel_release(name.release);
  hello.set_architecture(name.machine);
  auto facts = hotplug_.facts();
  hello.mutable_memory()->Swap(facts.mutable_memory());
  hello.mutable_cpus()->Swap(facts.mutable_cpus());
  *hello.mutable_features() = read_features();
  session_.send_hello(std::move(hello));
}

void agent::reply(v1::AgentReply answer) { session_.send_reply(std::move(answer)); }

void agent::answer_failure(std::uint64_t id, const v1::AgentFailure& failure) {
  v1::AgentReply answer;
  answer.set_id(id);
  *answer.mutable_failure() = failure;
  reply(std::move(answer));
}

void agent::on_request(const v1::AgentRequest& request) {
  v1::AgentReply answer;
  answer.set_id(request.id());
  const auto done_or = [&](const std::optional<v1::AgentFailure>& failed) {
    if (failed)
      *answer.mutable_failure() = *failed;
    else
      answer.mutable_done();
    reply(std::move(answer));
  };
  switch (request.ask_case()) {
  case v1::AgentRequest::kReadFacts:
    *answer.mutable_facts() = hotplug_.facts();
    reply(std::move(answer));
    return;
  case v1::AgentRequest::kAwaitMemory:
    if (!hotplug_.await_memory(request.id(), request.await_memory()))
      answer_failure(request.id(), failure(EBUSY, "too many waits for memory are pending"));
    return;
  case v1::AgentRequest::kSetOnlineCpus:
    hotplug_.set_online_cpus(request.id(), request.set_online_cpus());
    return;
  case v1::AgentRequest::kExecStart: {
    auto result = processes_.start(request.exec_start());
    if (auto* started = std::get_if<v1::ExecStarted>(&result))
      *answer.mutable_exec_started() = std::move(*started);
    else
      *answer.mutable_failure() = std::get<v1::AgentFailure>(result);
    reply(std::move(answer));
    return;
  }
  case v1::AgentRequest::kExecSignal:
    done_or(processes_.signal(request.exec_signal()));
    return;
  case v1::AgentRequest::kExecResize:
    done_or(processes_.resize(request.exec_resize()));
    return;
  case v1::AgentRequest::kPowerOff:
    answer.mutable_done();
    reply(std::move(answer));
    transport_->pump();
    power_off();
  case v1::AgentRequest::ASK_NOT_SET:
    answer_failure(request.id(), failure(ENOSYS, "this agent doesn't know the request; build the guest image again"));
    return;
  }
}

void agent::on_uevent(const uevents::event& event) {
  const bool lost = event.action == "lost";
  if (!transport_ && settings_.is_init && (lost || event.subsystem == "virtio-ports"))
    look_for_port();
  const bool memory = lost || event.subsystem == "memory";
  const bool cpu = lost || event.subsystem == "cpu";
  if (memory)
    hotplug_.on_memory_event();
  if (cpu)
    hotplug_.on_cpu_event();
  if ((memory || cpu) && !std::exchange(change_timer_, true))
    loop_.after(changes_every, [this] { tell_changes(); });
}

void agent::tell_changes() {
  change_timer_ = false;
  v1::AgentNotice notice;
  *notice.mutable_facts_changed() = hotplug_.facts();
  auto compared = notice.facts_changed();
  compared.mutable_memory()->clear_mem_available_bytes();
  auto facts = compared.SerializeAsString();
  if (facts != told_facts_ && session_.is_open() && session_.send_notice(std::move(notice)))
    told_facts_ = std::move(facts);
}

void agent::watch_signals() {
  ::signal(SIGPIPE, SIG_IGN);
  sigset_t set;
  ::sigemptyset(&set);
  for (const int number : {SIGCHLD, SIGIO, SIGTERM, SIGINT, SIGPWR})
    ::sigaddset(&set, number);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  signals_.reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals_)
    fatal("cannot receive signals", errno);
  loop_.watch(signals_.get(), EPOLLIN, [this](std::uint32_t) {
    signalfd_siginfo info;
    while (::read(signals_.get(), &info, sizeof info) == sizeof info)
      on_signal(static_cast<int>(info.ssi_signo));
  });
}

void agent::on_signal(int number) {
  if (number == SIGCHLD)
    reap();
  else if (number == SIGIO && transport_)
    transport_->wake();
  else if (number != SIGIO)
    power_off();
}

void agent::reap() {
  int status = 0;
  while (const pid_t pid = ::waitpid(-1, &status, WNOHANG)) {
    if (pid < 0)
      return;
    if (!processes_.on_exit(pid, status))
      hotplug_.on_exit(pid, status);
  }
}

void agent::watch_kernel_log() {
  kernel_log_.reset(::open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  if (!kernel_log_)
    return;
  ::lseek(kernel_log_.get(), 0, SEEK_END);
  loop_.watch(kernel_log_.get(), EPOLLIN, [this](std::uint32_t) { read_kernel_log(); });
}

// "6,1234,5678,-;Out of memory: Killed process 77 (memhog) total-vm:..." or "Memory cgroup out of memory: Killed ...".
void agent::read_kernel_log() {
  std::array<char, 8192> record;
  for (;;) {
    const auto n = ::read(kernel_log_.get(), record.data(), record.size());
    if (n < 0 && errno == EPIPE)
      continue;  // older records were overwritten
    if (n <= 0)
      return;
    const std::string_view text{record.data(), static_cast<std::size_t>(n)};
    const auto killed = text.find("ut of memory: Killed process ");
    if (killed == std::string_view::npos)
      continue;
    const auto first = text.find('(', killed), last = text.find(')', first);
    if (last == std::string_view::npos)
      continue;
    if (!std::exchange(oom_timer_, true)) {
      oom_notices_left_ = oom_notices_a_second;
      loop_.after(1s, [this] { oom_timer_ = false; });
    }
    if (oom_notices_left_ == 0)
      continue;
    --oom_notices_left_;
    v1::AgentNotice notice;
    notice.mutable_oom()->set_process(std::string{text.substr(first + 1, std::min<std::size_t>(last - first - 1, 64))});
    session_.send_notice(std::move(notice));
  }
}

} // namespace caisson::agent
