#include "bench/cloud_guest_tier.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <stdexcept>

#include "bench/cloud_rows.hpp"
#include "engine/service.hpp"
#include "tests/guest/agent_client.hpp"
#include "tests/nested/cloud_guest.hpp"

namespace caisson::bench {
namespace {

namespace fs = std::filesystem;
using guest_protocol::agent_client;
using guest_protocol::cloud_guest;

constexpr std::uint64_t most = boot + 5376 * mib; // all three sizes on top of each other, and a block to spare
constexpr std::chrono::seconds patience{180};

void need(bool good, const std::string& what) {
  if (!good)
    throw std::runtime_error{what};
}

class raw_guest {
public:
  raw_guest(bool dimm, const std::string& image) : guest_{options_of(dimm, image)} {
    need(guest_.failure().empty(), "raw: " + guest_.failure());
    const int fd = guest_.connect_agent();
    need(fd >= 0, "the raw guest's agent takes no connection:\n" + guest_.console());
    agent_.emplace(fd);
    need(agent_->wait(patience, [&] { return agent_->hello.has_value(); }), "the raw guest's agent never answered");
    at_boot_ = agent_->hello->memory().mem_total_bytes();
  }

  double resize(std::uint64_t beyond_boot) {
    const auto t = clock_type::now();
    const auto answer = guest_.ask("PUT", "vm.resize", fmt::format(R"({{"desired_ram":{}}})", boot + beyond_boot));
    need(answer.status == 204, "raw: vm.resize: " + answer.body);
    v1::AgentRequest request;
    auto& wait = *request.mutable_await_memory();
    if (beyond_boot > last_)
      wait.set_mem_total_at_least_bytes(at_boot_ + beyond_boot);
    else
      wait.set_mem_total_at_most_bytes(at_boot_ + beyond_boot);
    wait.set_wait_ms(60'000); // the longest that an agent waits
    auto followed = [&](const auto& reply) {
      return reply && reply->facts().memory().mem_total_bytes() == at_boot_ + beyond_boot;
    };
    auto reply = agent_->ask(request, patience);
    while (reply && !followed(reply) && clock_type::now() - t < patience)
      reply = agent_->ask(request, patience);
    const auto took = ms_since(t);
    need(followed(reply),
         fmt::format("the raw guest never followed to {} bytes beyond its {} at boot: {}", beyond_boot, at_boot_,
                     reply ? reply->ShortDebugString() : "no answer"));
    last_ = beyond_boot;
    return took;
  }

private:
  static cloud_guest::options options_of(bool dimm, const std::string& image) {
    cloud_guest::options o;
    o.image = image;
    o.method = dimm ? "Acpi" : "VirtioMem";
    o.boot_bytes = boot;
    o.hotplug_bytes = most - boot + (dimm ? 128 * mib : 0); // the VMM rounds a region for ACPI down by a block
    return o;
  }

  cloud_guest guest_;
  std::optional<agent_client> agent_;
  std::uint64_t at_boot_ = 0, last_ = 0;
};

class our_guest {
public:
  our_guest(bool dimm, const std::string& vmm, const std::string& image)
      : base_{(fs::temp_directory_path() / fmt::format("caisson-bench-{}", ::getpid())).string()} {
    fs::create_directories(base_);
    fs::permissions(base_, fs::perms::owner_all);
    const auto path = base_ + "/configuration.toml";
    std::ofstream{path} << "[hypervisor.cloud-hypervisor]\npath = \"" << vmm << "\"\ndefault_memory = " << boot / mib
                        << "\ndefault_maxmemory = " << most / mib << "\nmemory_method = \""
                        << (dimm ? "dimm" : "virtio-mem") << "\"\nguest_dir = \"" << image << "\"\n";
    engine::options o;
    o.state_directory = base_ + "/state";
    auto out = engine::open(o);
    if (auto* why = std::get_if<v1::Error>(&out))
      throw std::runtime_error{"the engine cannot be opened: " + why->text()};
    engine_ = std::get<0>(std::move(out));
    v1::CreateSandbox c;
    c.set_config_path(path);
    c.set_hypervisor("cloud-hypervisor");
    id_ = blocking<v1::SandboxStatus>("create", [&](auto done) { engine_->create(c, done); }).id();
  }
  ~our_guest() {
    v1::RemoveSandbox m;
    m.set_sandbox(id_);
    m.set_force(true);
    blocking<v1::SandboxStatus>("rm", [&](auto done) { engine_->remove(m, done); });
    engine_.reset();
    std::error_code ignored;
    fs::remove_all(base_, ignored);
  }
  our_guest(const our_guest&) = delete;

  double resize(std::uint64_t beyond_boot) {
    const auto t = clock_type::now();
    v1::ResizeSandbox m;
    m.set_sandbox(id_);
    m.set_memory_bytes(boot + beyond_boot);
    auto op = blocking<v1::Operation>("resize", [&](auto done) { engine_->resize(m, done); });
    v1::WaitOperation wait;
    wait.set_operation_id(op.id());
    wait.set_wait_ms(300'000);
    op = blocking<v1::Operation>("wait", [&](auto done) { engine_->wait_operation(wait, done); });
    const auto took = ms_since(t);
    need(op.state() == v1::OPERATION_STATE_CONVERGED, "the resize did not converge: " + op.why());
    return took;
  }

private:
  std::string base_, id_;
  std::unique_ptr<engine::service> engine_;
};

} // namespace

nlohmann::json guest_confirmed(bool dimm, int pairs, const std::string& vmm, const std::string& guest_directory) {
  // The engine promises no sandbox more than the host has.
  const auto host_bytes =
      static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  need(host_bytes > most + 1024 * mib,
       fmt::format("this machine has {} MiB, and {} are needed: tests/nested/run --memory 8192", host_bytes / mib,
                   most / mib + 1024));
  ::setenv("CH_BIN", vmm.c_str(), 1); // where the raw guest looks for it
  std::vector<std::string> order;
  std::map<std::string, measured> rows;
  std::string broken_off;
  const auto step = [&](const std::string& what, raw_guest& raw, our_guest& ours, std::uint64_t beyond_boot) {
    if (!broken_off.empty())
      return;
    try {
      const auto raw_ms = raw.resize(beyond_boot), our_ms = ours.resize(beyond_boot);
      if (!rows.contains(what))
        order.push_back(what);
      rows[what].raw.add(raw_ms);
      rows[what].ours.add(our_ms);
    } catch (const std::exception& e) {
      broken_off = what + ", and what follows it: " + e.what();
    }
  };
  // Memory by ACPI never comes back, so that a pair is a pair of VMs there.
  for (int boots = 0; boots < (dimm ? pairs : 1); ++boots) {
    raw_guest raw{dimm, guest_directory};
    our_guest ours{dimm, vmm, guest_directory};
    std::uint64_t total = 0;
    for (auto size : sizes_mib) {
      if (dimm)
        step("guest: ACPI +" + text_of(size), raw, ours, total += size * mib);
      else
        for (int i = 0; i < pairs; ++i) {
          step("guest: virtio-mem +" + text_of(size), raw, ours, size * mib);
          step("guest: virtio-mem -" + text_of(size), raw, ours, 0);
        }
    }
  }
  auto out = nlohmann::json::array();
  for (const auto& what : order)
    out.push_back(rows[what].row(what));
  if (!broken_off.empty())
    out.push_back({{"what", dimm ? "guest: ACPI" : "guest: virtio-mem"}, {"not_measured", broken_off}});
  return out;
}

} // namespace caisson::bench
