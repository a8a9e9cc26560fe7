#include "tests/conformance/rig.hpp"

#include <signal.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "backends/simulated/provider.hpp"

namespace caisson::tests {
namespace {

namespace fs = std::filesystem;

const std::string programs = CAISSON_PROGRAM_DIRECTORY;
const std::string guest_directory = CAISSON_GUEST_DIRECTORY;
constexpr const char* vmm_path = "/usr/bin/qemu-system-x86_64";

std::string kernel_parameters() {
  std::ifstream in{guest_directory + "/manifest.json"};
  return nlohmann::json::parse(in).value("kernel_parameters", "");
}

std::string make_directory(const std::string& below) {
  auto pattern = below + "/caisson-XXXXXX";
  if (!::mkdtemp(pattern.data()))
    throw std::runtime_error("cannot make a directory in " + below);
  return pattern;
}

} // namespace

std::ostream& operator<<(std::ostream& out, const kind& k) {
  return out << k.name;
}

bool news_box::await(std::chrono::seconds at_most, const std::function<bool(const v1::VmEvent&)>& fits) {
  std::unique_lock lock{mutex};
  return changed.wait_for(lock, at_most, [&] { return std::any_of(heard.begin(), heard.end(), fits); });
}

std::string rig::missing(const kind& k) {
  if (!backends::find(k.line))
    return "the registry has no line \"" + k.line + "\"";
  if (k.line == "simulated")
    return {};
  for (const auto& file : {programs + "/caisson-backend-" + k.line, std::string{vmm_path}, guest_directory + "/vmlinux",
                           guest_directory + "/initramfs.cpio", guest_directory + "/manifest.json"})
    if (!fs::exists(file))
      return file + " is not there";
  return {};
}

rig::rig(const kind& k) : kind_{k} {
  root_ = make_directory(fs::temp_directory_path());
  run_ = make_directory(fs::exists("/dev/shm") ? "/dev/shm" : "/tmp");
  for (const auto* sub : {"/state", "/log"})
    fs::create_directory(root_ + sub);
  config_ = std::make_unique<caf::actor_system_config>();
  config_->set("scheduler.policy", caf::atom("sharing"));
  system_ = std::make_unique<caf::actor_system>(*config_);
  reactor_ = std::make_unique<reactor::reactor>();
  if (!live()) {
    std::string problem;
    world_ = std::make_shared<backends::simulated::world>(backends::simulated::parse_fault_plan(k.faults, problem));
    if (!problem.empty())
      throw std::runtime_error(problem);
  }
  make_provider();
}

rig::~rig() {
  listeners_.clear();
  provider_.reset();
  system_.reset();
  reactor_.reset();
  std::error_code ignored;
  fs::remove_all(root_, ignored);
  fs::remove_all(run_, ignored);
}

void rig::make_provider() {
  if (!live()) {
    provider_ = backends::simulated::make_simulated(*system_, world_);
    return;
  }
  backends::environment e;
  e.system = system_.get();
  e.channels = reactor_.get();
  e.state_directory = root_ + "/state";
  e.run_directory = run_;
  e.cache_directory = CAISSON_TEST_CACHE_DIRECTORY;
  fs::create_directories(e.cache_directory);
  e.log_directory = root_ + "/log";
  e.program_directory = programs;
  e.log = [](std::string_view line) { fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data()); };
  provider_ = backends::find(kind_.line)->make(e);
}

void rig::restart() {
  provider_.reset();
  make_provider();
}

backend_actor rig::backend(const std::string& id, std::shared_ptr<news_box> news) {
  auto listener = system_->spawn([news](vm_listener::pointer) -> vm_listener::behavior_type {
    return {[news](const v1::VmEvent& e) {
      std::lock_guard lock{news->mutex};
      news->heard.push_back(e);
      news->changed.notify_all();
    }};
  });
  listeners_.push_back(listener); // a backend keeps no listener alive; the sandbox does in production, the rig here
  return provider_->spawn(id, listener);
}

reply<v1::Capabilities> rig::describe() {
  v1::DescribeBackend m;
  m.set_architecture("x86_64");
  m.set_accelerator("auto");
  m.set_deadline_ms(120'000);
  if (live()) {
    m.set_vmm_path(vmm_path);
    m.set_kernel_path(guest_directory + "/vmlinux");
    m.set_initrd_path(guest_directory + "/initramfs.cpio");
  }
  auto r = ask<v1::Capabilities>(provider_->spawn("describe", vm_listener{}), m);
  if (r)
    capabilities_ = *r.value;
  return r;
}

v1::VmSpec rig::spec(const std::string& id, std::uint64_t max_bytes, std::uint32_t slots, std::uint32_t max_vcpus) {
  if (!capabilities_)
    describe();
  v1::VmSpec s;
  s.set_sandbox_id(id);
  s.set_name("conformance");
  s.set_architecture("x86_64");
  s.set_boot_vcpus(1);
  s.set_max_vcpus(max_vcpus);
  s.set_boot_bytes(std::uint64_t{256} << 20);
  s.set_max_bytes(max_bytes);
  s.set_memory_slots(slots);
  s.set_memory_method(kind_.method);
  s.set_accelerator(capabilities_ ? capabilities_->accelerator() : "tcg");
  s.set_run_directory(run_ + "/s/" + id);
  fs::create_directories(s.run_directory());
  fs::permissions(s.run_directory(), fs::perms::owner_all);
  if (live()) {
    s.set_machine_type("q35");
    s.set_vmm_path(vmm_path);
    s.set_kernel_path(guest_directory + "/vmlinux");
    s.set_initrd_path(guest_directory + "/initramfs.cpio");
    s.set_kernel_command_line(kernel_parameters());
    s.set_free_root_ports(1);
    s.set_entropy_source("/dev/urandom");
  }
  return s;
}

reply<v1::VmObserved> rig::inspect(const backend_actor& b, const std::string& id) {
  v1::InspectVm m;
  m.set_sandbox_id(id);
  return ask<v1::VmObserved>(b, m);
}

reply<v1::VmObserved> rig::destroy(const backend_actor& b, const std::string& id) {
  v1::DestroyVm m;
  m.set_sandbox_id(id);
  return ask<v1::VmObserved>(b, m);
}

reply<v1::VmList> rig::list(const backend_actor& b) {
  return ask<v1::VmList>(b, v1::ListVms{});
}

std::unique_ptr<guest_client> rig::guest(const v1::VmObserved& vm) {
  auto g = std::make_unique<guest_client>(provider_->channels());
  if (!g->open(vm.channels().agent(), patience()))
    return nullptr;
  return g;
}

void rig::kill_vmm(const std::string& id, const v1::VmObserved& vm) {
  if (world_)
    world_->kill_vmm(id);
  else if (vm.vmm_pid() > 1)
    ::kill(static_cast<pid_t>(vm.vmm_pid()), SIGKILL);
}

} // namespace caisson::tests
