#include "backends/simulated/model_guest.hpp"

#include <algorithm>
#include <charconv>
#include <sstream>
#include <utility>

#include "guest/protocol/version.hpp"

namespace caisson::backends::simulated {
namespace {

constexpr std::uint32_t wait_ms_max = 60'000;
constexpr auto notice_gap = std::chrono::milliseconds{100};
constexpr int e_inval = 22, e_srch = 3;

std::span<const std::byte> bytes_of(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

std::vector<std::string> words(const std::string& line) {
  std::istringstream in{line};
  std::vector<std::string> out;
  for (std::string word; in >> word;)
    out.push_back(word);
  return out;
}

bool number(const std::string& text, std::uint32_t& out) {
  const auto end = text.data() + text.size();
  const auto [at, problem] = std::from_chars(text.data(), end, out);
  return problem == std::errc{} && at == end;
}

} // namespace

model_guest::model_guest(model_machine& machine, std::string architecture)
    : machine_{machine}, architecture_{std::move(architecture)}, session_{[this] {
        guest_protocol::guest_events e;
        e.on_open = [this] {
          forget_host();
          v1::AgentHello hello;
          hello.set_protocol_version(guest_protocol::protocol_version);
          hello.set_agent_version("simulated");
          hello.set_kernel_release("6.1.0-simulated");
          hello.set_architecture(architecture_);
          auto now = facts();
          *hello.mutable_memory() = std::move(*now.mutable_memory());
          *hello.mutable_cpus() = std::move(*now.mutable_cpus());
          auto& features = *hello.mutable_features();
          features.set_acpi_memory_hotplug(machine_.shape().dimm_slots > 0);
          features.set_memory_hotremove(true);
          features.set_virtio_mem(machine_.shape().virtio_mem);
          features.set_cpu_hotplug(true);
          features.set_kernel_config_known(true);
          features.set_workload_cgroup(true);
          features.set_pressure(true);
          session_.send_hello(std::move(hello));
        };
        e.on_request = [this](const v1::AgentRequest& r) { on_request(r); };
        e.on_data = [this](std::uint32_t stream, std::span<const std::byte> bytes) {
          std::uint64_t id = 0;
          auto* p = by_stream(stream, id);
          if (!p || !p->echoes) {
            session_.consumed(stream, bytes.size());
            return;
          }
          p->pending.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
          p->owed += static_cast<std::uint32_t>(bytes.size());
          flush(id);
        };
        e.on_eof = [this](std::uint32_t stream) {
          std::uint64_t id = 0;
          if (auto* p = by_stream(stream, id)) {
            p->eof = true;
            p->ends = p->ends || p->echoes;
            flush(id);
          }
        };
        e.on_writable = [this](std::uint32_t stream) {
          std::uint64_t id = 0;
          if (by_stream(stream, id))
            flush(id);
        };
        e.on_stopped = [this](std::uint32_t stream) {
          std::uint64_t id = 0;
          auto* p = by_stream(stream, id);
          if (p && p->out == stream && p->echoes)
            finish(id, 141, 13); // SIGPIPE
        };
        return e;
      }()},
      workload_{machine} {}

timeline::ticket model_guest::later(timeline::time delay, timeline::work what) {
  return machine_.after(delay, [weak = std::weak_ptr{alive_}, what = std::move(what)] {
    if (!weak.expired())
      what();
  });
}

void model_guest::output() {
  if (on_output && session_.has_output())
    on_output();
}

bool model_guest::receive(std::span<const std::byte> bytes) {
  if (!session_.wants_input())
    return false;
  session_.feed(bytes);
  output();
  return true;
}

void model_guest::forget_host() {
  for (const auto& w : waiting_)
    machine_.cancel(w.end);
  waiting_.clear();
  processes_.clear();
  ++host_;
  pressure_window_ = {};
  machine_.bring_all_online();
}

void model_guest::host_left() {
  forget_host();
  session_.disconnected();
}

// ---- facts ----

v1::AgentFacts model_guest::facts() const {
  v1::AgentFacts f;
  auto& memory = *f.mutable_memory();
  memory.set_mem_total_bytes(machine_.mem_total_bytes());
  memory.set_mem_available_bytes(machine_.mem_available_bytes());
  memory.set_boot_mem_total_bytes(machine_.boot_mem_total_bytes());
  memory.set_block_size_bytes(machine_.shape().block_bytes);
  memory.set_online_blocks(machine_.online_blocks());
  memory.set_offline_blocks(machine_.offline_blocks());
  memory.set_virtio_mem_plugged_bytes(machine_.virtio_mem_bytes());
  auto& cpus = *f.mutable_cpus();
  cpus.set_online(machine_.online_cpus());
  cpus.set_present(machine_.present_cpus());
  cpus.set_possible(machine_.shape().max_vcpus);
  workload_.add_facts(f);
  return f;
}

std::string model_guest::meminfo() const {
  const auto line = [](const char* name, std::uint64_t bytes) {
    auto value = std::to_string(bytes / 1024);
    return std::string{name} + std::string(value.size() < 14 ? 14 - value.size() : 0, ' ') + value + " kB\n";
  };
  return line("MemTotal: ", machine_.mem_total_bytes()) + line("MemFree:  ", machine_.mem_available_bytes()) +
         line("MemAvailable:", machine_.mem_available_bytes());
}

void model_guest::machine_changed() {
  settle_workload();
  for (std::size_t i = 0; i < waiting_.size();) {
    if (satisfied(waiting_[i])) {
      const auto w = waiting_[i];
      waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(i));
      machine_.cancel(w.end);
      answer(w);
    } else {
      ++i;
    }
  }
  if (session_.is_open() && !notice_planned_) {
    notice_planned_ = true;
    later(notice_gap, [this] { notify_facts(); });
  }
  output();
}

void model_guest::notify_facts() {
  notice_planned_ = false;
  v1::AgentNotice notice;
  *notice.mutable_facts_changed() = facts();
  session_.send_notice(std::move(notice));
  output();
}

// ---- requests ----

void model_guest::on_request(const v1::AgentRequest& request) {
  switch (request.ask_case()) {
  case v1::AgentRequest::kReadFacts: {
    v1::AgentReply reply;
    reply.set_id(request.id());
    *reply.mutable_facts() = facts();
    session_.send_reply(std::move(reply));
    break;
  }
  case v1::AgentRequest::kAwaitMemory:
    await_memory(request);
    break;
  case v1::AgentRequest::kSetOnlineCpus:
    set_online_cpus(request);
    break;
  case v1::AgentRequest::kReadMemoryBlocks:
    memory_blocks(request.id(), request.read_memory_blocks().address(), request.read_memory_blocks().size_bytes(), {});
    break;
  case v1::AgentRequest::kOfflineMemory:
    offline_memory(request);
    break;
  case v1::AgentRequest::kSetWorkloadLimits:
    set_limits(request);
    break;
  case v1::AgentRequest::kWatchPressure:
    watch_pressure(request);
    break;
  case v1::AgentRequest::kExecStart:
    exec(request);
    break;
  case v1::AgentRequest::kExecSignal:
    signal(request);
    break;
  case v1::AgentRequest::kExecResize:
    done(request.id());
    break;
  case v1::AgentRequest::kPowerOff:
    done(request.id());
    machine_.power_off();
    break;
  case v1::AgentRequest::ASK_NOT_SET:
    fail(request.id(), e_inval, "the request asks for nothing");
    break;
  }
}

void model_guest::await_memory(const v1::AgentRequest& request) {
  const auto& ask = request.await_memory();
  machine_.bring_all_online();
  add_waiting({request.id(), ask.mem_total_at_least_bytes(), ask.mem_total_at_most_bytes(), 0, {}}, ask.wait_ms());
}

void model_guest::set_online_cpus(const v1::AgentRequest& request) {
  const auto& ask = request.set_online_cpus();
  if (ask.online() == 0) {
    fail(request.id(), e_inval, "at least processor 0 stays online");
    return;
  }
  // A newer target replaces the older one.
  for (std::size_t i = 0; i < waiting_.size();) {
    const auto older = waiting_[i];
    if (older.cpus == 0) {
      ++i;
      continue;
    }
    waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(i));
    machine_.cancel(older.end);
    answer(older);
  }
  add_waiting({request.id(), 0, 0, ask.online(), {}}, ask.wait_ms());
}

void model_guest::add_waiting(waiting w, std::uint32_t wait_ms) {
  if (satisfied(w) || wait_ms == 0) {
    answer(w);
    return;
  }
  w.end = later(std::chrono::milliseconds{std::min(wait_ms, wait_ms_max)}, [this, id = w.request_id] {
    const auto it = std::find_if(waiting_.begin(), waiting_.end(), [&](const auto& x) { return x.request_id == id; });
    if (it == waiting_.end())
      return;
    const auto over = *it;
    waiting_.erase(it);
    answer(over);
    output();
  });
  waiting_.push_back(w);
}

bool model_guest::satisfied(const waiting& w) {
  if (w.cpus != 0)
    return machine_.set_online_cpus(w.cpus) == w.cpus;
  const auto total = machine_.mem_total_bytes();
  return (w.at_least == 0 || total >= w.at_least) && (w.at_most == 0 || total <= w.at_most);
}

void model_guest::answer(const waiting& w) {
  v1::AgentReply reply;
  reply.set_id(w.request_id);
  *reply.mutable_facts() = facts();
  session_.send_reply(std::move(reply));
}

void model_guest::fail(std::uint64_t request_id, int guest_errno, std::string text) {
  v1::AgentReply reply;
  reply.set_id(request_id);
  reply.mutable_failure()->set_guest_errno(guest_errno);
  reply.mutable_failure()->set_text(std::move(text));
  session_.send_reply(std::move(reply));
}

void model_guest::done(std::uint64_t request_id) {
  v1::AgentReply reply;
  reply.set_id(request_id);
  reply.mutable_done();
  session_.send_reply(std::move(reply));
}

// ---- commands ----

model_guest::process* model_guest::by_stream(std::uint32_t stream, std::uint64_t& exec_id) {
  for (auto& [id, p] : processes_)
    if (p.in == stream || p.out == stream || p.err == stream) {
      exec_id = id;
      return &p;
    }
  return nullptr;
}

void model_guest::exec(const v1::AgentRequest& request) {
  const auto& ask = request.exec_start();
  if (ask.argv_size() == 0) {
    fail(request.id(), e_inval, "the command is empty");
    return;
  }
  if (!session_.add_input(ask.stdin_stream()) || !session_.add_output(ask.stdout_stream()) ||
      !session_.add_output(ask.stderr_stream())) {
    for (const auto stream : {ask.stdin_stream(), ask.stdout_stream(), ask.stderr_stream()})
      session_.forget(stream);
    fail(request.id(), e_inval, "a stream number is 0 or in use");
    return;
  }
  const auto id = ++last_exec_id_;
  auto& p = processes_[id];
  p.in = ask.stdin_stream(), p.out = ask.stdout_stream(), p.err = ask.stderr_stream();
  v1::AgentReply reply;
  reply.set_id(request.id());
  reply.mutable_exec_started()->set_exec_id(id);
  reply.mutable_exec_started()->set_pid(static_cast<std::int32_t>(100 + id));
  session_.send_reply(std::move(reply));
  run(id, p, {ask.argv().begin(), ask.argv().end()});
}

void model_guest::run(std::uint64_t exec_id, process& p, std::vector<std::string> argv) {
  if (argv.size() == 3 && argv[0] == "sh" && argv[1] == "-c")
    argv = words(argv[2]);
  const auto name = argv.empty() ? std::string{} : argv[0].substr(argv[0].rfind('/') + 1);
  std::uint32_t n = 0;
  p.ends = true;
  if (name == "true") {
    p.exit_code = 0;
  } else if (name == "false") {
    p.exit_code = 1;
  } else if (name == "exit" && argv.size() == 2 && number(argv[1], n)) {
    p.exit_code = static_cast<int>(n & 0xff);
  } else if (name == "nproc") {
    p.pending = std::to_string(machine_.online_cpus()) + "\n";
  } else if (name == "echo") {
    for (std::size_t i = 1; i < argv.size(); ++i)
      p.pending += (i > 1 ? " " : "") + argv[i];
    p.pending += "\n";
  } else if (name == "cat" && argv.size() == 2 && argv[1] == "/proc/meminfo") {
    p.pending = meminfo();
  } else if (name == "cat" && argv.size() == 1) {
    p.echoes = true;
    p.ends = p.eof;
  } else if (name == "hold" && (argv.size() == 2 || argv.size() == 3) && number(argv[1], n)) {
    std::uint32_t seconds = 0;
    p.ends = false;
    p.held_mib = n;
    workload_.want(exec_id, std::uint64_t{n} << 20);
    if (argv.size() == 3 && number(argv[2], seconds))
      later(std::chrono::seconds{seconds}, [this, exec_id] {
        finish(exec_id, 0, 0);
        output();
      });
    settle_workload(); // which may end it
    return;
  } else if (name == "sleep" && argv.size() == 2 && number(argv[1], n)) {
    p.ends = false;
    later(std::chrono::seconds{n}, [this, exec_id] {
      finish(exec_id, 0, 0);
      output();
    });
  } else {
    p.exit_code = 127;
    const auto text = name + ": not found\n";
    session_.write(p.err, bytes_of(text));
  }
  flush(exec_id);
}

void model_guest::flush(std::uint64_t exec_id) {
  const auto it = processes_.find(exec_id);
  if (it == processes_.end())
    return;
  auto& p = it->second;
  if (!p.pending.empty()) {
    const auto taken = session_.write(p.out, bytes_of(p.pending));
    p.pending.erase(0, taken);
    if (p.owed > 0) {
      const auto back = std::min<std::uint32_t>(p.owed, static_cast<std::uint32_t>(taken));
      p.owed -= back;
      session_.consumed(p.in, back);
    }
  }
  if (p.ends && p.pending.empty())
    finish(exec_id, p.exit_code, 0);
}

void model_guest::finish(std::uint64_t exec_id, int exit_code, int signal) {
  workload_.let_go(exec_id); // also where the host that started it has left
  const auto it = processes_.find(exec_id);
  if (it == processes_.end())
    return;
  const auto p = std::move(it->second);
  processes_.erase(it);
  session_.forget(p.in);
  session_.close(p.out);
  session_.close(p.err);
  v1::AgentNotice notice;
  notice.mutable_exec_exited()->set_exec_id(exec_id);
  notice.mutable_exec_exited()->set_exit_code(exit_code);
  notice.mutable_exec_exited()->set_signal(signal);
  session_.send_notice_after({p.out, p.err}, std::move(notice));
}

void model_guest::signal(const v1::AgentRequest& request) {
  const auto& ask = request.exec_signal();
  if (!processes_.contains(ask.exec_id())) {
    fail(request.id(), e_srch, "no such command runs");
    return;
  }
  if (ask.signal() < 1 || ask.signal() > 64) {
    fail(request.id(), e_inval, "no such signal");
    return;
  }
  done(request.id());
  finish(ask.exec_id(), 128 + ask.signal(), ask.signal());
}

} // namespace caisson::backends::simulated
