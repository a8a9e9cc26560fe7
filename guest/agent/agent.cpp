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
#include <cstring>
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
               {settings.is_init, settings.is_init || settings.may_change_blocks},
               [this] { return facts(); },
               [this](std::uint64_t id, const v1::AgentFacts& facts) { answer_facts(id, facts); },
               [this](std::uint64_t id, const v1::AgentBlocks& blocks) { answer_blocks(id, blocks); }},
      workload_{loop_, settings_.workload_cgroup, settings_.overcommit_memory,
                [this](std::uint64_t id, int error_number) {
                  if (error_number == 0)
                    answer_facts(id, facts());
                  else
                    answer_failure(id, failure(error_number, std::string{"cannot set the workload's limits: "} +
                                                                 strerror(error_number)));
                },
                [this](v1::MemoryPressure pressure) {
                  auto now = facts();
                  pressure.mutable_memory()->Swap(now.mutable_memory());
                  v1::AgentNotice notice;
                  *notice.mutable_pressure() = std::move(pressure);
                  session_.send_notice(std::move(notice));
                }} {
  processes_.run_in(workload_.leaf());
  watch_signals();
  uevents_.emplace(loop_, [this](const uevents::event& event) { on_uevent(event); });
  loop_.before_sleep([this] {
    if (transport_)
      transport_->pump();
  });
}

void agent::run() {
  workload_.make();
  processes_.run_in(workload_.leaf());
  watch_kernel_log();
  loop_.after(port_deadline, [this] {
    if (!transport_ && !has_vsock_device())
      fatal("there is neither a virtio-serial port named " + std::string{guest_protocol::port_name} +
            " nor a vsock device; the virtual machine needs one of them");
  });
  look_for_port();
  if (!transport_)
    if (auto listening = listen_on_vsock(guest_protocol::vsock_port))
      listen_on(std::move(listening));
  hotplug_.on_memory_event();
  loop_.run();
}

void agent::run_on(unique_fd channel) {
  use_channel(std::move(channel), transport::kind::socket);
  loop_.run();
}

void agent::run_behind(unique_fd listening) {
  listen_on(std::move(listening));
  loop_.run();
}

void agent::listen_on(unique_fd listening) {
  listener_.emplace(loop_, std::move(listening), [this](unique_fd connection) {
    // The host has one connection; it makes another when it no longer trusts the first.
    forget_host();
    use_channel(std::move(connection), transport::kind::socket);
  });
}

void agent::use_channel(unique_fd channel, transport::kind what) {
  transport_.emplace(loop_, std::move(channel), what,
                     transport::events{
                         .on_bytes = [this](std::span<const std::byte> bytes) { session_.feed(bytes); },
                         .wants_bytes = [this] { return session_.wants_input(); },
                         .next_output = [this] { return session_.take_output(); },
                         .on_gone =
                             [this] {
                               forget_host();
                               if (!settings_.is_init && !listener_)
                                 loop_.stop();
                             },
                     });
}

void agent::forget_host() {
  session_.disconnected();
  processes_.detach_all();
  hotplug_.forget_waits();
  workload_.forget_host();
}

void agent::look_for_port() {
  if (transport_)
    return;
  const auto device = find_port(guest_protocol::port_name);
  if (device.empty())
    return;
  auto port = open_port(device);
  if (port) {
    listener_.reset();
    use_channel(std::move(port), transport::kind::port);
  } else if (errno != ENOENT) { // the node follows its event
    report("cannot open " + device, errno);
  }
}

v1::AgentFacts agent::facts() const {
  v1::AgentFacts facts;
  *facts.mutable_memory() = read_memory_facts(settings_.boot_mem_total_bytes);
  *facts.mutable_cpus() = read_cpu_facts();
  workload_.add_facts(facts);
  return facts;
}

void agent::on_open() {
  transport_->drop_output();
  processes_.detach_all();
  hotplug_.forget_waits();
  workload_.forget_host();
  v1::AgentHello hello;
  hello.set_protocol_version(guest_protocol::protocol_version);
  hello.set_agent_version(CAISSON_VERSION);
  utsname name{};
  ::uname(&name);
  hello.set_kernel_release(name.release);
  hello.set_architecture(name.machine);
  auto now = facts();
  hello.mutable_memory()->Swap(now.mutable_memory());
  hello.mutable_cpus()->Swap(now.mutable_cpus());
  *hello.mutable_features() = read_features();
  hello.mutable_features()->set_workload_cgroup(workload_.usable());
  session_.send_hello(std::move(hello));
}

void agent::reply(v1::AgentReply answer) { session_.send_reply(std::move(answer)); }

void agent::answer_facts(std::uint64_t id, const v1::AgentFacts& facts) {
  v1::AgentReply answer;
  answer.set_id(id);
  *answer.mutable_facts() = facts;
  reply(std::move(answer));
}

void agent::answer_blocks(std::uint64_t id, const v1::AgentBlocks& blocks) {
  v1::AgentReply answer;
  answer.set_id(id);
  *answer.mutable_blocks() = blocks;
  reply(std::move(answer));
}

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
    // The host reads before it plugs.
    if (settings_.is_init || settings_.may_change_blocks)
      set_online_policy();
    answer_facts(request.id(), facts());
    return;
  case v1::AgentRequest::kAwaitMemory:
    if (!hotplug_.await_memory(request.id(), request.await_memory()))
      answer_failure(request.id(), failure(EBUSY, "too many waits for memory are pending"));
    return;
  case v1::AgentRequest::kSetOnlineCpus:
    hotplug_.set_online_cpus(request.id(), request.set_online_cpus());
    return;
  case v1::AgentRequest::kReadMemoryBlocks: {
    const auto& part = request.read_memory_blocks();
    answer_blocks(request.id(), hotplug_.blocks(part.address(), part.size_bytes()));
    return;
  }
  case v1::AgentRequest::kOfflineMemory:
    if (!hotplug_.offline_memory(request.id(), request.offline_memory()))
      answer_failure(request.id(), failure(EBUSY, "another part of the memory is being taken offline"));
    return;
  case v1::AgentRequest::kSetWorkloadLimits:
    if (!workload_.usable())
      answer_failure(request.id(), failure(ENOTSUP, "there is no cgroup for the workload: this kernel lacks "
                                                    "CONFIG_MEMCG, or it is switched off (cgroup_disable=memory)"));
    else if (!workload_.set_limits(request.id(), request.set_workload_limits()))
      answer_failure(request.id(), failure(EBUSY, "too many changes of the workload's limits are pending"));
    return;
  case v1::AgentRequest::kWatchPressure:
    if (const int refused = workload_.watch_pressure(request.watch_pressure()); refused != 0)
      answer_failure(request.id(), failure(refused, std::string{"cannot watch the workload's memory pressure: "} +
                                                        strerror(refused)));
    else
      done_or(std::nullopt);
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
  *notice.mutable_facts_changed() = facts();
  auto compared = notice.facts_changed();
  compared.mutable_memory()->clear_mem_available_bytes();
  compared.mutable_memory()->clear_workload_bytes();
  auto told = compared.SerializeAsString();
  if (told != told_facts_ && session_.is_open() && session_.send_notice(std::move(notice)))
    told_facts_ = std::move(told);
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
    if (!processes_.on_exit(pid, status) && !hotplug_.on_exit(pid, status))
      workload_.on_exit(pid, status);
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
