// Memory up and down, confirmed by the guest: the engine against raw QEMU with the same devices, agent, onlining and
// offlining, in one program and interleaved. virtio-mem: one qom-set. DIMMs are of the sizes that the engine's plan
// makes: an object-add and a device_add each. Down, the agent is first told to make room; then for each DIMM, the last
// one first, it takes the memory offline, and device_del, its event and object-del follow. In all cases the same agent
// then says when MemTotal has followed.
//
// `bare` is what QMP alone takes down, where nobody asks the guest to prepare: all device_del at once, then their events.
// A guest that then refuses one keeps half of what was to leave, so that the engine does not do it this way.
//
// Where the time goes: `vmm` is the time inside libvirt's calls (raw: QMP's), `guest` what raw QEMU's guest took to
// follow, `engine` all else of ours: planning, the journal, reading back, and down what is asked of the guest
// beforehand.

#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "actors/memory_hotplug/plan.hpp"
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

constexpr std::uint64_t boot = 256 * mib;
constexpr std::uint64_t most = 8192 * mib;
constexpr std::uint32_t slots = 10;
constexpr double ratio_bound = 1.25, slack_ms = 30;
constexpr const char* firmware_code = "/usr/share/AAVMF/AAVMF_CODE.fd";

struct settings {
  std::string guests; ///< the build directory: guest/ARCH and guest-source/aarch64 are below it
  int pairs = 5;
  std::vector<std::string> only; ///< names of machines; empty: all
};

struct machine {
  std::string name, architecture;
  bool dimm = false;
  std::string guest(const settings& s) const {
    return s.guests + (dimm && architecture == "aarch64" ? "/guest-source/" : "/guest/") + architecture;
  }
  std::string firmware() const { return dimm && architecture == "aarch64" ? firmware_code : ""; }
};

const std::vector<machine> machines{{"x86_64 DIMM", "x86_64", true},
                                    {"x86_64 virtio-mem", "x86_64", false},
                                    {"aarch64 DIMM", "aarch64", true},
                                    {"aarch64 virtio-mem", "aarch64", false}};

/// Of one resize, in ms.
struct cost {
  double all = 0, vmm = 0;
};

[[noreturn]] void fail(std::string_view what) {
  std::cerr << what << '\n';
  std::exit(1);
}

class raw_side {
public:
  raw_side(const machine& m, const settings& s)
      : machine_{m}, guest_{options_of(m, s)}, agent_{guest_.connect_agent()} {
    if (!agent_.wait(std::chrono::seconds{120}, [&] { return agent_.hello.has_value(); }))
      fail("the raw guest's agent never answered:\n" + guest_.console());
    boot_total_ = agent_.hello->memory().mem_total_bytes();
  }

  cost resize(std::uint64_t plugged, bool bare = false) {
    const auto t = clock_type::now();
    cost c;
    if (plugged == 0 && !bare)
      make_room();
    if (!machine_.dimm)
      ask(c, fmt::format(R"({{"execute":"qom-set","arguments":{{"path":"/machine/peripheral/vmem0",)"
                         R"("property":"requested-size","value":{}}}}})",
                         plugged));
    else if (plugged > 0)
      plug(c, plugged);
    else if (bare)
      unplug_at_once(c);
    else
      unplug(c);
    v1::AgentRequest request;
    auto& wait = *request.mutable_await_memory();
    if (plugged > 0)
      wait.set_mem_total_at_least_bytes(boot_total_ + plugged);
    else
      wait.set_mem_total_at_most_bytes(boot_total_);
    wait.set_wait_ms(60'000);
    if (!agent_.ask(request, std::chrono::seconds{120}))
      fail("the raw guest never followed");
    if (!machine_.dimm && plugged == 0)
      await_nothing_plugged();
    c.all = ms_since(t);
    if (plugged == 0 && !bare) { // nobody waits for that, with the engine neither
      v1::AgentRequest lift;
      lift.mutable_set_workload_limits()->set_high_bytes(0);
      agent_.ask(lift, std::chrono::seconds{120});
    }
    return c;
  }

private:
  static live_guest::options options_of(const machine& m, const settings& s) {
    live_guest::options o;
    o.image = m.guest(s);
    o.architecture = m.architecture;
    o.firmware = m.firmware();
    o.slots = slots;
    o.max_mib = most / mib;
    o.more = {"-device", "virtio-balloon-pci,id=balloon0,free-page-reporting=on"};
    if (!m.dimm)
      for (const auto& word : {
               std::string{"-object"},
               fmt::format("memory-backend-memfd,id=vm0,size={}M,reserve=off,share=on", (most - boot) / mib),
               std::string{"-device"}, std::string{"pcie-root-port,id=rp1,chassis=1,slot=1"},
               std::string{"-device"}, std::string{"virtio-mem-pci,id=vmem0,memdev=vm0,requested-size=0"}})
        o.more.push_back(word);
    return o;
  }

  void ask(cost& c, const std::string& command) {
    const auto t = clock_type::now();
    const auto answer = guest_.qmp(command);
    c.vmm += ms_since(t);
    if (answer.empty() || answer.find("\"error\"") != answer.npos)
      fail("raw QEMU refused " + command + ": " + answer);
  }

  void plug(cost& c, std::uint64_t size) {
    constexpr std::uint64_t block = 128 * mib;
    for (auto blocks : memory_hotplug::split_growth(size / block, size / block, slots, slots)) {
      plugged_.push_back(++dimms_);
      ask(c, fmt::format(R"({{"execute":"object-add","arguments":{{"qom-type":"memory-backend-memfd","id":"d{0}",)"
                         R"("size":{1},"share":true}}}})",
                         dimms_, blocks * block));
      ask(c,
          fmt::format(R"({{"execute":"device_add","arguments":{{"driver":"pc-dimm","id":"dimm{0}","memdev":"d{0}"}}}})",
                      dimms_));
    }
  }

  void make_room() {
    v1::AgentRequest ask;
    auto& limits = *ask.mutable_set_workload_limits();
    limits.set_high_bytes(boot_total_ / 2);
    limits.set_reclaim_to_bytes(boot_total_ / 2);
    limits.set_wait_ms(60'000);
    if (auto reply = agent_.ask(ask, std::chrono::seconds{120}); !reply || !reply->has_facts())
      fail("the raw guest did not make room");
  }

  void unplug(cost& c) {
    const auto t = clock_type::now();
    const auto there = nlohmann::json::parse(guest_.qmp(R"({"execute":"query-memory-devices"})"))["return"];
    c.vmm += ms_since(t);
    for (auto n = plugged_.rbegin(); n != plugged_.rend(); ++n) {
      v1::AgentRequest request;
      auto& offline = *request.mutable_offline_memory();
      for (const auto& device : there)
        if (device["data"]["id"] == fmt::format("dimm{}", *n)) {
          offline.set_address(device["data"]["addr"].get<std::uint64_t>());
          offline.set_size_bytes(device["data"]["size"].get<std::uint64_t>());
        }
      offline.set_wait_ms(60'000);
      if (auto reply = agent_.ask(request, std::chrono::seconds{120}); !reply || !reply->blocks().why().empty())
        fail("the raw guest did not take its DIMM offline");
      ask(c, fmt::format(R"({{"execute":"device_del","arguments":{{"id":"dimm{}"}}}})", *n));
      if (guest_.qmp_event("DEVICE_DELETED", fmt::format("\"dimm{}\"", *n), 60'000).empty())
        fail("the raw guest did not give its DIMM back");
      ask(c, fmt::format(R"({{"execute":"object-del","arguments":{{"id":"d{}"}}}})", *n));
    }
    plugged_.clear();
  }

  void unplug_at_once(cost& c) {
    for (int n : plugged_)
      ask(c, fmt::format(R"({{"execute":"device_del","arguments":{{"id":"dimm{}"}}}})", n));
    for (int n : plugged_) {
      if (guest_.qmp_event("DEVICE_DELETED", fmt::format("\"dimm{}\"", n), 60'000).empty())
        fail("the raw guest did not give its DIMM back");
      ask(c, fmt::format(R"({{"execute":"object-del","arguments":{{"id":"d{}"}}}})", n));
    }
    plugged_.clear();
  }

  // The guest says so before the device does; the engine believes the device.
  void await_nothing_plugged() {
    for (int look = 0; look < 1000; ++look) {
      const auto answer =
          guest_.qmp(R"({"execute":"qom-get","arguments":{"path":"/machine/peripheral/vmem0","property":"size"}})");
      if (answer.find("\"return\": 0") != answer.npos)
        return;
      guest_.qmp_event("MEMORY_DEVICE_SIZE_CHANGE", "", 20);
    }
    fail("the raw virtio-mem device never came to nothing");
  }

  machine machine_;
  live_guest guest_;
  agent_client agent_;
  std::uint64_t boot_total_ = 0;
  int dimms_ = 0;            // made so far
  std::vector<int> plugged_; // their numbers
};

class our_side {
public:
  explicit our_side(const settings& s) : set_{s} {
    base_ = (fs::temp_directory_path() / fmt::format("caisson-bench-{}", ::getpid())).string();
    fs::create_directories(base_);
    fs::permissions(base_, fs::perms::owner_all);
    engine::options o;
    o.state_directory = base_ + "/state";
    auto out = engine::open(o);
    if (auto* why = std::get_if<v1::Error>(&out))
      fail("the engine cannot be opened: " + why->text());
    engine_ = std::get<0>(std::move(out));
  }
  ~our_side() {
    engine_.reset();
    std::error_code ignored;
    fs::remove_all(base_, ignored);
  }

  void create(const machine& m) {
    const auto path = base_ + "/configuration.toml";
    std::ofstream{path} << "[hypervisor.qemu]\ndefault_memory = 256\ndefault_maxmemory = " << most / mib
                        << "\nmemory_method = \"" << (m.dimm ? "dimm" : "virtio-mem") << "\"\nguest_dir = \""
                        << m.guest(set_) << "\"\n"
                        << (m.architecture == "aarch64" ? "machine_type = \"virt\"\n" : "")
                        << (m.firmware().empty() ? "" : "firmware = \"" + m.firmware() + "\"\n");
    v1::CreateSandbox c;
    c.set_config_path(path);
    id_ = blocking<v1::SandboxStatus>("create", [&](auto done) { engine_->create(c, done); }).id();
  }

  void remove() {
    v1::RemoveSandbox m;
    m.set_sandbox(id_);
    m.set_force(true);
    blocking<v1::SandboxStatus>("rm", [&](auto done) { engine_->remove(m, done); });
  }

  cost resize(std::uint64_t plugged) {
    const auto before = inside_ms();
    const auto t = clock_type::now();
    v1::ResizeSandbox m;
    m.set_sandbox(id_);
    m.set_memory_bytes(boot + plugged);
    auto op = blocking<v1::Operation>("resize", [&](auto done) { engine_->resize(m, done); });
    v1::WaitOperation wait;
    wait.set_operation_id(op.id());
    wait.set_wait_ms(300'000);
    op = blocking<v1::Operation>("wait", [&](auto done) { engine_->wait_operation(wait, done); });
    const auto all = ms_since(t);
    if (op.state() != v1::OPERATION_STATE_CONVERGED)
      fail("the resize did not converge: " + op.why());
    return {all, inside_ms() - before};
  }

private:
  double inside_ms() {
    v1::GetSandbox get;
    get.set_sandbox(id_);
    return static_cast<double>(
               blocking<v1::SandboxStatus>("status", [&](auto done) { engine_->get(get, done); }).vmm_call_us()) /
           1000;
  }

  const settings& set_;
  std::string base_, id_;
  std::unique_ptr<engine::service> engine_;
};

struct direction {
  series raw, raw_vmm, ours, ours_vmm, bare;
  void add(const cost& raw_cost, const cost& our_cost) {
    raw.add(raw_cost.all);
    raw_vmm.add(raw_cost.vmm);
    ours.add(our_cost.all);
    ours_vmm.add(our_cost.vmm);
  }
  nlohmann::json row(const std::string& what) const {
    const auto ratio = ours.median() / raw.median();
    const auto guest = raw.median() - raw_vmm.median();
    return {{"what", what},
            {"bare_ms", bare.values.empty() ? raw.median() : bare.median()},
            {"raw_ms", raw.median()},
            {"raw_range_ms", {raw.least(), raw.most()}},
            {"caisson_ms", ours.median()},
            {"caisson_range_ms", {ours.least(), ours.most()}},
            {"raw_vmm_ms", raw_vmm.median()},
            {"vmm_ms", ours_vmm.median()},
            {"guest_ms", guest},
            {"engine_ms", ours.median() - ours_vmm.median() - guest},
            {"ratio", ratio},
            {"bound", fmt::format("{}x or +{} ms", ratio_bound, slack_ms)},
            {"within", ratio <= ratio_bound || ours.median() <= raw.median() + slack_ms},
            {"pairs", raw.values.size()}};
  }
};

std::string missing(const machine& m, const settings& s) {
  if (auto why = live_guest::unavailable(m.guest(s), m.architecture); !why.empty())
    return m.dimm && m.architecture == "aarch64"
               ? why + "; a kernel with ACPI memory hotplug: the target guest_image_aarch64_source"
               : why;
  if (!m.firmware().empty() && !fs::exists(m.firmware()))
    return m.firmware() + " is not there (package qemu-efi-aarch64), and without firmware there are no DIMMs on ARM64";
  return {};
}

} // namespace

int main(int argc, char** argv) {
  settings s;
  for (int i = 1; i < argc; ++i) {
    std::string a = argv[i];
    auto value = [&] { return i + 1 < argc ? std::string{argv[++i]} : std::string{}; };
    if (a == "--guests")
      s.guests = value();
    else if (a == "--pairs")
      s.pairs = std::max(1, std::atoi(value().c_str()));
    else if (a == "--machine")
      s.only.push_back(value());
    else {
      std::cerr << "bench_hotplug: unknown word " << a
                << "; usage: bench_hotplug --guests BUILD_DIRECTORY [--pairs N] [--machine \"x86_64 DIMM\"]...\n";
      return 2;
    }
  }
  auto out = nlohmann::json::array();
  our_side ours{s};
  for (const auto& m : machines) {
    if (!s.only.empty() && std::find(s.only.begin(), s.only.end(), m.name) == s.only.end())
      continue;
    if (auto why = missing(m, s); !why.empty()) {
      out.push_back({{"what", m.name}, {"not_measured", why}});
      continue;
    }
    raw_side raw{m, s};
    ours.create(m);
    for (std::uint64_t size : {128, 1024, 4096}) {
      direction up, down;
      for (int i = 0; i < s.pairs; ++i) {
        const auto raw_up = raw.resize(size * mib);
        up.add(raw_up, ours.resize(size * mib));
        const auto raw_down = raw.resize(0);
        down.add(raw_down, ours.resize(0));
        raw.resize(size * mib);
        down.bare.add(raw.resize(0, true).all);
      }
      const auto text = size < 1024 ? fmt::format("{} MiB", size) : fmt::format("{} GiB", size / 1024);
      out.push_back(up.row(fmt::format("{} +{}", m.name, text)));
      out.push_back(down.row(fmt::format("{} -{}", m.name, text)));
    }
    ours.remove();
  }
  std::cout << out.dump(2) << '\n';
}
