// Cloud Hypervisor through its backend against the raw REST API, in one program and interleaved: what the VMM's side of
// each verb costs. Both sides make the same VM (one body of vm.create) and read each step back from vm.info. No guest
// is waited for, so that it can be measured where /dev/kvm runs none: a resize is accepted, not confirmed. Where a
// guest does run (CAISSON_LIVE_TIER=guest) rows follow that it confirms.

#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "backends/cloud-hypervisor/spec.hpp"
#include "bench/cloud_guest_tier.hpp"
#include "bench/cloud_raw.hpp"
#include "bench/cloud_rows.hpp"
#include "tests/conformance/rig.hpp"

namespace {

namespace fs = std::filesystem;
namespace requests = caisson::cloud_hypervisor::requests;
using namespace caisson;
using namespace caisson::bench;
using nlohmann::json;

constexpr int end_within_ms = 30'000;
constexpr int most_guest_pairs = 5; // guests that run in a nested machine take their time

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
      : on_{on}, spec_{std::move(spec)}, backend_{on.backend(spec_.sandbox_id(), std::make_shared<tests::news_box>())} {
  }

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
  static std::string check(const tests::reply<v1::VmObserved>& r,
                           const std::function<bool(const v1::VmObserved&)>& fits) {
    return r && fits(*r.value) ? "" : "through the backend: " + r.text();
  }

  tests::rig& on_;
  v1::VmSpec spec_;
  backend_actor backend_;
  std::uint64_t plugged_ = 0;
  int dimms_ = 0;
};

/// What is measured in a VM's life, in its order.
template <class Side> std::vector<std::pair<std::string, std::function<std::string(Side&)>>> life_of(bool dimm) {
  std::vector<std::pair<std::string, std::function<std::string(Side&)>>> verbs;
  verbs.emplace_back("start: spawned to booted", [](Side& side) { return side.start(); });
  std::uint64_t total = boot;
  for (auto size : sizes_mib) {
    if (dimm) {
      total += size * mib;
      verbs.emplace_back("ACPI +" + text_of(size), [total](Side& side) { return side.acpi(total); });
    } else {
      verbs.emplace_back("virtio-mem +" + text_of(size), [size](Side& side) { return side.virtio_mem(size * mib); });
      verbs.emplace_back("virtio-mem -" + text_of(size), [](Side& side) { return side.virtio_mem(0); });
    }
  }
  if (dimm)
    verbs.emplace_back("vCPUs 1 to 2", [](Side& side) { return side.vcpus(2); });
  verbs.emplace_back("end: asked to gone", [](Side& side) { return side.end(); });
  return verbs;
}

/// In ms, a number for each verb that the side did. A verb that failed is named in `why_not`.
template <class Side>
std::map<std::string, double> live(Side& side, bool dimm, std::map<std::string, std::string>& why_not) {
  std::map<std::string, double> took;
  for (const auto& [what, verb] : life_of<Side>(dimm)) {
    const auto t = clock_type::now();
    auto why = verb(side);
    const auto ms = ms_since(t);
    if (why.empty())
      took[what] = ms;
    else if (took.empty())
      throw std::runtime_error{"no VM can be started: " + why};
    else
      why_not.emplace(what, std::move(why));
  }
  return took;
}

// One VM at a time: where a guest gets nowhere its vCPU spins, and a second one would take the last free core from
// whichever side is being measured.
json measure(const tests::kind& k, int pairs) {
  const bool dimm = k.method == v1::MEMORY_METHOD_DIMM;
  tests::rig on{k};
  if (auto can = on.describe(); !can)
    throw std::runtime_error{"the backend cannot be described: " + can.text()};
  std::uint64_t most = boot;
  for (auto size : sizes_mib)
    most = dimm ? most + size * mib : boot + size * mib;
  std::map<std::string, measured> rows;
  std::map<std::string, std::string> why_not;
  for (int i = 0; i <= pairs; ++i) {
    const auto spec = on.spec(fmt::format("bench-{}", i), most, 8, 2);
    std::map<std::string, double> raw_took, our_took;
    const auto raw_life = [&] {
      raw_side raw{spec, fs::path{spec.run_directory()}.parent_path().parent_path().string() + "/raw"};
      raw_took = live(raw, dimm, why_not);
    };
    const auto our_life = [&] {
      our_side ours{on, spec};
      our_took = live(ours, dimm, why_not);
    };
    if (i % 2 == 0)
      raw_life();
    our_life();
    if (i % 2 != 0)
      raw_life();
    if (i == 0)
      continue; // warms the host's caches
    for (const auto& [what, ms] : raw_took)
      if (our_took.contains(what)) {
        rows[what].raw.add(ms);
        rows[what].ours.add(our_took[what]);
      }
  }
  auto out = json::array();
  for (const auto& [what, ignored] : life_of<raw_side>(dimm)) {
    if (const auto why = why_not.find(what); why != why_not.end())
      out.push_back({{"what", what}, {"not_measured", why->second}});
    else
      out.push_back(rows[what].row(what));
  }
  return out;
}

} // namespace

int main(int argc, char** argv) {
  int pairs = 10;
  for (int i = 1; i < argc; ++i) {
    if (std::string{argv[i]} == "--pairs" && i + 1 < argc)
      pairs = std::max(1, std::atoi(argv[++i]));
    else {
      std::cerr
          << "bench_cloud_hypervisor: unknown word " << argv[i]
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
    const char* method = k.method == v1::MEMORY_METHOD_DIMM ? " (ACPI)" : " (virtio-mem)";
    try {
      for (auto& row : measure(k, pairs)) {
        if (const auto what = row["what"].get<std::string>(); what.find(':') != what.npos) // start, end
          row["what"] = what + method;
        out.push_back(std::move(row));
      }
      if (const auto place = tests::place_of(k); place.reacts)
        for (auto& row : guest_confirmed(k.method == v1::MEMORY_METHOD_DIMM, std::min(pairs, most_guest_pairs),
                                         place.vmm_path, place.guest_directory))
          out.push_back(std::move(row));
    } catch (const std::exception& e) {
      out.push_back({{"what", std::string{"Cloud Hypervisor"} + method}, {"not_measured", e.what()}});
    }
  }
  std::cout << out.dump(2) << '\n';
}
