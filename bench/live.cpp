// The engine against raw QEMU, in one program and interleaved: start, resize, memory a sandbox, idle CPU. What the
// engine adds is read as a ratio, because the machine is shared and single times wander.

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "bench/measure.hpp"
#include "engine/service.hpp"
#include "tests/guest/agent_client.hpp"
#include "tests/guest/live_guest.hpp"

namespace {

namespace fs = std::filesystem;
using namespace caisson;
using namespace caisson::bench;
using guest_protocol::agent_client;
using guest_protocol::live_guest;

struct settings {
  std::string guest;
  std::string config;
  int pairs = 10;
  int many = 20;
};

class live_bench {
public:
  explicit live_bench(settings s) : set_{std::move(s)} {
    auto base = fs::temp_directory_path() / fmt::format("caisson-bench-{}", ::getpid());
    fs::create_directories(base);
    fs::permissions(base, fs::perms::owner_all);
    base_ = base.string();
    reopen();
  }
  ~live_bench() {
    auto left = list();
    for (const auto& s : left.sandboxes())
      remove(s.id());
    engine_.reset();
    std::error_code ignored;
    fs::remove_all(base_, ignored);
  }

  void reopen() {
    engine_.reset();
    engine::options o;
    o.state_directory = base_ + fmt::format("/state{}", opened_++);
    o.guest_directory = set_.guest;
    auto out = engine::open(o);
    if (auto* why = std::get_if<v1::Error>(&out)) {
      std::cerr << "the engine cannot be opened: " << why->text() << '\n';
      std::exit(1);
    }
    engine_ = std::get<0>(std::move(out));
  }

  v1::SandboxList list() {
    return blocking<v1::SandboxList>("list", [&](auto done) { engine_->list({}, done); });
  }

  v1::CreateSandbox request(v1::MemoryMethod method = v1::MEMORY_METHOD_VIRTIO_MEM) const {
    v1::CreateSandbox m;
    m.set_config_path(set_.config);
    m.set_memory_bytes(256 * mib);
    m.set_vcpus(1);
    m.set_memory_method(method);
    return m;
  }

  v1::SandboxStatus create() {
    return blocking<v1::SandboxStatus>("create", [&](auto done) { engine_->create(request(), done); });
  }

  void remove(const std::string& id) {
    v1::RemoveSandbox m;
    m.set_sandbox(id);
    m.set_force(true);
    blocking<v1::SandboxStatus>("rm", [&](auto done) { engine_->remove(m, done); });
  }

  nlohmann::json start() {
    remove(create().id()); // the host's caches are warm afterwards
    series raw, ours, inside;
    for (int i = 0; i < set_.pairs; ++i) {
      auto t = clock_type::now();
      {
        live_guest guest{raw_options()};
        agent_client agent{guest.connect_agent()};
        if (!agent.wait(std::chrono::seconds{60}, [&] { return agent.hello.has_value(); }))
          fail("the raw guest's agent never answered");
        raw.add(ms_since(t));
      }
      t = clock_type::now();
      auto status = create();
      ours.add(ms_since(t));
      inside.add(static_cast<double>(status.vmm_call_us()) / 1000);
      remove(status.id());
    }
    return row("cold start to agent-ready", raw, ours, inside, 1.6, 0);
  }

  nlohmann::json resize() {
    live_guest guest{raw_options()};
    agent_client agent{guest.connect_agent()};
    if (!agent.wait(std::chrono::seconds{60}, [&] { return agent.hello.has_value(); }))
      fail("the raw guest's agent never answered");
    auto boot_total = agent.hello->memory().mem_total_bytes();
    auto status = create();
    series raw_up, raw_down, our_up, our_down, inside_up, inside_down;
    for (int i = 0; i < set_.pairs; ++i) {
      raw_up.add(raw_resize(guest, agent, boot_total, 512 * mib));
      auto [up, up_inside] = our_resize(status.id(), 768 * mib);
      our_up.add(up);
      inside_up.add(up_inside);
      raw_down.add(raw_resize(guest, agent, boot_total, 0));
      auto [down, down_inside] = our_resize(status.id(), 256 * mib);
      our_down.add(down);
      inside_down.add(down_inside);
    }
    remove(status.id());
    return nlohmann::json::array({row("grow by 512 MiB, guest-confirmed", raw_up, our_up, inside_up, 1.5, 50),
                                  row("shrink by 512 MiB, guest-confirmed", raw_down, our_down, inside_down, 1.5, 50)});
  }

  nlohmann::json memory_and_idle() {
    nlohmann::json out;
    auto one_after_another = [&] {
      std::vector<std::string> ids;
      ids.push_back(create().id());
      double first = host_pss_mib();
      for (int i = 1; i < set_.many; ++i)
        ids.push_back(create().id());
      double all = host_pss_mib();
      out["engine_pss_mib_at_1"] = first;
      out[fmt::format("engine_pss_mib_at_{}", set_.many)] = all;
      out["engine_pss_mib_a_further_sandbox"] = (all - first) / (set_.many - 1);
      out["idle_cpu_percent_of_a_core"] = idle_cpu_percent(30);
      for (const auto& id : ids)
        remove(id);
    };
    one_after_another();
    reopen();
    auto first = create();
    double before = host_pss_mib();
    std::vector<std::future<v1::SandboxStatus>> jobs;
    for (int i = 1; i < set_.many; ++i)
      jobs.push_back(std::async(std::launch::async, [&] { return create(); }));
    std::vector<std::string> ids{first.id()};
    for (auto& j : jobs)
      ids.push_back(j.get().id());
    out["engine_pss_mib_a_further_sandbox_created_in_parallel"] = (host_pss_mib() - before) / (set_.many - 1);
    for (const auto& id : ids)
      remove(id);
    return out;
  }

private:
  [[noreturn]] static void fail(std::string_view what) {
    std::cerr << what << '\n';
    std::exit(1);
  }

  live_guest::options raw_options() const {
    live_guest::options o;
    o.image = set_.guest;
    // The devices that the engine's machine has beside the agent's port and the console.
    o.more = {"-object", "memory-backend-memfd,id=vm0,size=1536M,reserve=off,share=on",
              "-device", "pcie-root-port,id=rp1,chassis=1,slot=1",
              "-device", "virtio-mem-pci,id=vmem0,memdev=vm0,requested-size=0",
              "-object", "rng-random,id=rng0,filename=/dev/urandom",
              "-device", "virtio-rng-pci,rng=rng0"};
    return o;
  }

  static double raw_resize(live_guest& guest, agent_client& agent, std::uint64_t boot_total, std::uint64_t plugged) {
    auto t = clock_type::now();
    auto answer = guest.qmp(fmt::format(
        R"({{"execute":"qom-set","arguments":{{"path":"/machine/peripheral/vmem0","property":"requested-size","value":{}}}}})",
        plugged));
    if (answer.find("error") != std::string::npos)
      fail("raw QEMU refused the resize: " + answer);
    v1::AgentRequest ask;
    auto& wait = *ask.mutable_await_memory();
    if (plugged > 0)
      wait.set_mem_total_at_least_bytes(boot_total + plugged);
    else
      wait.set_mem_total_at_most_bytes(boot_total);
    wait.set_wait_ms(60'000);
    if (!agent.ask(ask, std::chrono::seconds{70}))
      fail("the raw guest never had the memory");
    return ms_since(t);
  }

  std::pair<double, double> our_resize(const std::string& id, std::uint64_t target) {
    v1::GetSandbox get;
    get.set_sandbox(id);
    auto inside = [&] {
      return static_cast<double>(
                 blocking<v1::SandboxStatus>("status", [&](auto done) { engine_->get(get, done); }).vmm_call_us()) /
             1000;
    };
    auto before = inside();
    auto t = clock_type::now();
    v1::ResizeSandbox m;
    m.set_sandbox(id);
    m.set_memory_bytes(target);
    auto op = blocking<v1::Operation>("resize", [&](auto done) { engine_->resize(m, done); });
    v1::WaitOperation wait;
    wait.set_operation_id(op.id());
    wait.set_wait_ms(120'000);
    op = blocking<v1::Operation>("wait", [&](auto done) { engine_->wait_operation(wait, done); });
    auto took = ms_since(t);
    if (op.state() != v1::OPERATION_STATE_CONVERGED)
      fail("the resize did not converge: " + op.why());
    return {took, inside() - before};
  }

  static nlohmann::json row(std::string name, const series& raw, const series& ours, const series& inside,
                            double ratio_bound, double slack_ms) {
    auto r = ours.median() / raw.median();
    return {
        {"what", std::move(name)},
        {"raw_ms", raw.median()},
        {"raw_range_ms", {raw.least(), raw.most()}},
        {"caisson_ms", ours.median()},
        {"caisson_range_ms", {ours.least(), ours.most()}},
        {"inside_libvirt_ms", inside.median()},
        {"ratio", r},
        {"bound", slack_ms > 0 ? fmt::format("{}x or +{} ms", ratio_bound, slack_ms) : fmt::format("{}x", ratio_bound)},
        {"within", r <= ratio_bound || (slack_ms > 0 && ours.median() <= raw.median() + slack_ms)},
        {"pairs", raw.values.size()}};
  }

  // This program and every process of the project below it: all that the engine costs, but for the VMMs.
  static std::vector<long> engine_processes() {
    std::vector<long> pids{::getpid()};
    for (const auto& entry : fs::directory_iterator{"/proc"}) {
      auto name = entry.path().filename().string();
      if (name.empty() || !std::isdigit(static_cast<unsigned char>(name.front())))
        continue;
      std::ifstream comm{entry.path() / "comm"};
      std::string text;
      std::getline(comm, text);
      if (text.starts_with("caisson-backend"))
        pids.push_back(std::stol(name));
    }
    return pids;
  }

  static double host_pss_mib() {
    double kib = 0;
    for (auto pid : engine_processes()) {
      std::ifstream in{fmt::format("/proc/{}/smaps_rollup", pid)};
      for (std::string line; std::getline(in, line);)
        if (line.starts_with("Pss:"))
          kib += std::strtod(line.c_str() + 4, nullptr);
    }
    return kib / 1024;
  }

  // Of the whole process, threads that have ended included; in ticks of the kernel.
  static double cpu_seconds() {
    double ticks = 0;
    for (auto pid : engine_processes()) {
      std::ifstream in{fmt::format("/proc/{}/stat", pid)};
      std::string line;
      std::getline(in, line);
      std::istringstream fields{line.substr(std::min(line.size(), line.rfind(')') + 1))};
      std::string field;
      for (int n = 3; n <= 15 && fields >> field; ++n)
        if (n >= 14)
          ticks += std::strtod(field.c_str(), nullptr);
    }
    return ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
  }

  static double idle_cpu_percent(int seconds) {
    ::poll(nullptr, 0, 8'000); // what the last creation left running ends
    auto before = cpu_seconds();
    auto t = clock_type::now();
    ::poll(nullptr, 0, seconds * 1000);
    return (cpu_seconds() - before) / (ms_since(t) / 1000) * 100;
  }

  settings set_;
  std::string base_;
  int opened_ = 0;
  std::unique_ptr<engine::service> engine_;
};

} // namespace

int main(int argc, char** argv) {
  settings s;
  std::vector<std::string> wanted;
  for (int i = 1; i < argc; ++i) {
    std::string a = argv[i];
    auto value = [&] { return i + 1 < argc ? std::string{argv[++i]} : std::string{}; };
    if (a == "--guest")
      s.guest = value();
    else if (a == "--config")
      s.config = value();
    else if (a == "--pairs")
      s.pairs = std::max(1, std::atoi(value().c_str()));
    else if (a == "--many")
      s.many = std::max(2, std::atoi(value().c_str()));
    else if (a == "start" || a == "resize" || a == "memory")
      wanted.push_back(a);
    else {
      std::cerr << "bench_live: unknown word " << a
                << "; usage: bench_live --guest DIR --config FILE [--pairs N] [--many N] "
                << "[start] [resize] [memory]\n";
      return 2;
    }
  }
  if (wanted.empty())
    wanted = {"start", "resize", "memory"};
  if (auto why = live_guest::unavailable(s.guest); !why.empty()) {
    std::cerr << "bench_live: no real guest can be run here: " << why << '\n';
    return 1;
  }
  nlohmann::json out;
  live_bench b{s};
  for (const auto& what : wanted)
    out[what] = what == "start" ? b.start() : what == "resize" ? b.resize() : b.memory_and_idle();
  std::cout << out.dump(2) << '\n';
}
