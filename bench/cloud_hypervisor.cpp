// Cloud Hypervisor through its backend against the raw REST API, in one program and interleaved: what the VMM's side of
// each verb costs. Both sides make the same VM (one body of vm.create) and read each step back from vm.info. No guest
// is waited for, so that it can be measured where /dev/kvm runs none: a resize is accepted, not confirmed.

#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>

#include "backends/cloud-hypervisor/spec.hpp"
#include "bench/cloud_raw.hpp"
#include "bench/measure.hpp"
#include "tests/conformance/rig.hpp"

namespace {

namespace fs = std::filesystem;
namespace requests = caisson::cloud_hypervisor::requests;
using namespace caisson;
using namespace caisson::bench;
using nlohmann::json;

constexpr std::uint64_t boot = 256 * mib;
constexpr std::uint64_t sizes_mib[] = {128, 1024, 4096};
constexpr double ratio_bound = 1.25, slack_ms = 30;
constexpr int end_within_ms = 30'000;

[[noreturn]] void fail(const std::string& what) {
  std::cerr << "bench_cloud_hypervisor: " << what << '\n';
  std::exit(1);
}

std::string text_of(std::uint64_t size_mib) {
  return size_mib < 1024 ? fmt::format("{} MiB", size_mib) : fmt::format("{} GiB", size_mib / 1024);
}

/// One row: what both sides took, or why it was not measured.
struct measured {
  series raw, ours;
  std::string why_not;

  json row(const std::string& what) const {
    if (!why_not.empty() || raw.values.empty())
      return {{"what", what}, {"not_measured", why_not}};
    const auto ratio = ours.median() / raw.median();
    return {{"what", what},
            {"raw_ms", raw.median()},
            {"raw_range_ms", {raw.least(), raw.most()}},
            {"caisson_ms", ours.median()},
            {"caisson_range_ms", {ours.least(), ours.most()}},
            {"ratio", ratio},
            {"bound", fmt::format("{}x or +{} ms", ratio_bound, slack_ms)},
            {"within", ratio <= ratio_bound || ours.median() <= raw.median() + slack_ms},
            {"pairs", raw.values.size()}};
  }
};

/// A VM of each side, from start to end; each call returns "" or why its side did not do it.
class raw_side {
public:
  raw_side(v1::VmSpec spec, std::string directory) : spec_{std::move(spec)}, directory_{std::move(directory)} {
    spec_.set_run_directory(directory_);
    fs::create_directories(directory_);
  }
  ~raw_side() {
    vmm_.reset();
    std::error_code ignored;
    fs::remove_all(directory_, ignored);
  }

  std::string start() {
    const auto config = cloud_hypervisor::config_of(spec_);
    if (auto* why = std::get_if<cloud_hypervisor::problem>(&config))
      return why->text;
    const auto create = requests::create(std::get<cloud_hypervisor::vm_config>(config));
    vmm_.emplace(spec_.vmm_path(), cloud_hypervisor::api_socket(directory_));
    if (!vmm_->failed().empty())
      return vmm_->failed();
    for (const auto& step : {create, requests::boot()})
      if (auto why = say(step); !why.empty())
        return why;
    return seen([](const json& info) { return info.at("state") == "Running"; }, "a VM that runs");
  }
  std::string acpi(std::uint64_t total) {
    if (auto why = say(requests::resize_ram(total)); !why.empty())
      return why;
    return seen([&](const json& info) { return info.at("config").at("memory").at("size") == total; }, "the new size");
  }
  std::string virtio_mem(std::uint64_t plugged) {
    if (auto why = say(requests::resize_ram(boot + plugged)); !why.empty())
      return why;
    const auto asked = [&](const json& info) {
      const auto& memory = info.at("config").at("memory");
      const auto at = memory.find("hotplugged_size");
      return (at == memory.end() || at->is_null() ? 0 : at->get<std::uint64_t>()) == plugged;
    };
    return seen(asked, "the requested size");
  }
  std::string vcpus(std::uint32_t count) {
    if (auto why = say(requests::resize_vcpus(count)); !why.empty())
      return why;
    return seen([&](const json& info) { return info.at("config").at("cpus").at("boot_vcpus") == count; }, "the vCPUs");
  }
  std::string end() {
    vmm_->ask(requests::shutdown_vmm()); // the process may end before its answer is out
    return vmm_->await_end(end_within_ms) ? "" : "raw: the VMM did not end after vmm.shutdown";
  }

private:
  std::string say(const cloud_hypervisor::request& step) {
    const auto answer = vmm_->ask(step);
    return answer.ok() ? "" : fmt::format("raw: {}: {} {}", step.path, answer.status, answer.body);
  }
  std::string seen(const std::function<bool(const json&)>& fits, const char* what) {
    const auto answer = vmm_->ask(requests::info());
    const auto info = json::parse(answer.body, nullptr, false);
    return info.is_object() && fits(info) ? "" : fmt::format("raw: vm.info does not show {}: {}", what, answer.body);
  }

  v1::VmSpec spec_;
  std::string directory_;
  std::optional<cloud_raw> vmm_;
};

class our_side {
public:
  our_side(tests::rig& on, v1::VmSpec spec)
      : on_{on}, spec_{std::move(spec)}, backend_{on.backend(spec_.sandbox_id(), std::make_shared<tests::news_box>())} {}

  std::string start() {
    v1::CreateVm m;
    *m.mutable_spec() = spec_;
    m.set_deadline_ms(60'000);
    return check(on_.ask<v1::VmObserved>(backend_, m),
                 [](const v1::VmObserved& vm) { return vm.state() == v1::VM_STATE_RUNNING; });
  }
  std::string acpi(std::uint64_t total) {
    auto m = step();
    m.mutable_plug_dimm()->set_id(fmt::format("dimm{}", dimms_++));
    m.mutable_plug_dimm()->set_size_bytes(total - boot - plugged_);
    plugged_ = total - boot;
    return check(on_.ask<v1::VmObserved>(backend_, m),
                 [&](const v1::VmObserved& vm) { return vm.plugged_bytes() == plugged_; });
  }
  std::string virtio_mem(std::uint64_t plugged) {
    auto m = step();
    m.set_virtio_mem_requested_bytes(plugged);
    return check(on_.ask<v1::VmObserved>(backend_, m),
                 [&](const v1::VmObserved& vm) { return vm.virtio_mem_requested_bytes() == plugged; });
  }
  std::string vcpus(std::uint32_t count) {
    v1::SetVmVcpus m;
    m.set_sandbox_id(spec_.sandbox_id());
    m.set_count(count);
    return check(on_.ask<v1::VmObserved>(backend_, m),
                 [&](const v1::VmObserved& vm) { return vm.plugged_vcpus() == count; });
  }
  std::string end() {
    return check(on_.destroy(backend_, spec_.sandbox_id()),
                 [](const v1::VmObserved& vm) { return vm.state() == v1::VM_STATE_ABSENT; });
  }

private:
  v1::ApplyMemoryStep step() const {
    v1::ApplyMemoryStep m;
    m.set_sandbox_id(spec_.sandbox_id());
    return m;
  }
  static std::string check(const tests::reply<v1::VmObserved>& r, const std::function<bool(const v1::VmObserved&)>& fits) {
    return r && fits(*r.value) ? "" : "through the backend: " + r.text();
  }

  tests::rig& on_;
  v1::VmSpec spec_;
  backend_actor backend_;
  std::uint64_t plugged_ = 0;
  int dimms_ = 0;
};

/// Whichever side went first the last time goes second now.
class turns {
public:
  void begin_with_raw(bool first) { raw_first_ = first; }
  /// False: one side did not do it, which `into` then says.
  bool both(measured& into, raw_side& raw, our_side& ours, const auto& verb) {
    double took[2] = {0, 0};
    std::string why;
    const auto one = [&](int index, auto& side) {
      const auto t = clock_type::now();
      auto said = verb(side);
      took[index] = ms_since(t);
      if (why.empty())
        why = std::move(said);
    };
    if (raw_first_) {
      one(0, raw);
      one(1, ours);
    } else {
      one(1, ours);
      one(0, raw);
    }
    raw_first_ = !raw_first_;
    if (!why.empty()) {
      into.why_not = why;
      return false;
    }
    into.raw.add(took[0]);
    into.ours.add(took[1]);
    return true;
  }

private:
  bool raw_first_ = true;
};

json measure(const tests::kind& k, int pairs) {
  const bool dimm = k.method == v1::MEMORY_METHOD_DIMM;
  tests::rig on{k};
  if (auto can = on.describe(); !can)
    fail("the backend cannot be described: " + can.text());
  std::uint64_t most = boot;
  for (auto size : sizes_mib)
    most = dimm ? most + size * mib : boot + size * mib;
  const auto raw_directory = fs::path{on.spec("model", most, 8, 2).run_directory()}.parent_path().parent_path().string() + "/raw";
  turns turn;
  measured start, vcpus, end;
  measured up[std::size(sizes_mib)], down[std::size(sizes_mib)];
  // The first pair warms the host's caches and is not counted.
  for (int i = 0; i <= pairs; ++i) {
    if (i == 1) {
      start = vcpus = end = {};
      for (std::size_t n = 0; n < std::size(sizes_mib); ++n)
        up[n] = down[n] = {};
    }
    turn.begin_with_raw(i % 2 == 0); // the number of verbs in a life may be even
    const auto spec = on.spec(fmt::format("bench-{}", i), most, 8, 2);
    raw_side raw{spec, raw_directory};
    our_side ours{on, spec};
    if (!turn.both(start, raw, ours, [](auto& side) { return side.start(); }))
      fail("no VM can be started: " + start.why_not);
    std::uint64_t total = boot;
    bool goes = true;
    for (std::size_t n = 0; goes && n < std::size(sizes_mib); ++n) {
      const auto bytes = sizes_mib[n] * mib;
      if (dimm) {
        total += bytes;
        goes = turn.both(up[n], raw, ours, [&](auto& side) { return side.acpi(total); });
      } else {
        goes = turn.both(up[n], raw, ours, [&](auto& side) { return side.virtio_mem(bytes); }) &&
               turn.both(down[n], raw, ours, [&](auto& side) { return side.virtio_mem(0); });
      }
    }
    if (goes && dimm)
      turn.both(vcpus, raw, ours, [](auto& side) { return side.vcpus(2); });
    turn.both(end, raw, ours, [](auto& side) { return side.end(); });
  }
  auto rows = json::array();
  if (dimm)
    rows.push_back(start.row("start: spawned to booted"));
  for (std::size_t n = 0; n < std::size(sizes_mib); ++n) {
    rows.push_back(up[n].row(fmt::format("{} +{}", dimm ? "ACPI" : "virtio-mem", text_of(sizes_mib[n]))));
    if (!dimm)
      rows.push_back(down[n].row(fmt::format("virtio-mem -{}", text_of(sizes_mib[n]))));
  }
  if (dimm) {
    rows.push_back(vcpus.row("vCPUs 1 to 2"));
    rows.push_back(end.row("end: asked to gone"));
  }
  return rows;
}

} // namespace

int main(int argc, char** argv) {
  int pairs = 10;
  for (int i = 1; i < argc; ++i) {
    if (std::string{argv[i]} == "--pairs" && i + 1 < argc)
      pairs = std::max(1, std::atoi(argv[++i]));
    else {
      std::cerr << "bench_cloud_hypervisor: unknown word " << argv[i]
                << "; usage: bench_cloud_hypervisor [--pairs N]; CH_BIN names the VMM, else it is looked up on the PATH\n";
      return 2;
    }
  }
  auto out = json::array();
  for (const auto& k : tests::all_kinds()) {
    if (k.runs != tests::kind::where::found_vmm)
      continue;
    if (const auto missing = tests::place_of(k).missing; !missing.empty()) {
      out.push_back({{"what", "Cloud Hypervisor"}, {"not_measured", missing}});
      break;
    }
    for (auto& row : measure(k, pairs))
      out.push_back(std::move(row));
  }
  std::cout << out.dump(2) << '\n';
}
