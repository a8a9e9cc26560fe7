#include "tests/conformance/rig.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>

#include "backends/simulated/provider.hpp"

namespace caisson::tests {
namespace {

namespace fs = std::filesystem;

std::string kernel_parameters(const std::string& guest_directory) {
  std::ifstream in{guest_directory + "/manifest.json"};
  return nlohmann::json::parse(in).value("kernel_parameters", "");
}

std::string make_directory(const std::string& below) {
  auto pattern = below + "/caisson-XXXXXX";
  if (!::mkdtemp(pattern.data()))
    throw std::runtime_error("cannot make a directory in " + below);
  return pattern;
}

std::string whole(const fs::path& file) {
  std::ifstream in{file};
  return {std::istreambuf_iterator<char>{in}, {}};
}

/// The double takes its knobs on its command line, and a backend starts the program that the spec names.
std::string with_knobs(const std::string& vmm, const std::string& knobs, const std::string& directory) {
  auto script = directory + "/vmm";
  std::ofstream{script} << "#!/bin/sh\nCAISSON_CH_FAULTS='" << knobs << "' exec " << vmm << " \"$@\"\n";
  fs::permissions(script, fs::perms::owner_all);
  return script;
}

/// False: somebody has removed it meanwhile.
bool remove_tap(const std::string& name) {
  if (::if_nametoindex(name.c_str()) == 0)
    return false;
  int fd = ::open("/dev/net/tun", O_RDWR | O_CLOEXEC);
  ifreq ask{};
  name.copy(ask.ifr_name, IFNAMSIZ - 1);
  ask.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
  bool done = fd >= 0 && ::ioctl(fd, TUNSETIFF, &ask) == 0 && ::ioctl(fd, TUNSETPERSIST, 0) == 0;
  if (fd >= 0)
    ::close(fd);
  return done;
}

} // namespace

bool news_box::await(std::chrono::seconds at_most, const std::function<bool(const v1::VmEvent&)>& fits) {
  std::unique_lock lock{mutex};
  return changed.wait_for(lock, at_most, [&] { return std::any_of(heard.begin(), heard.end(), fits); });
}

void expect_documented(std::string_view message, ec code, const std::string& text) {
  using codes = std::vector<ec>;
  static const codes any_verb{ec::invalid_argument, ec::internal, ec::backend_lost, ec::outcome_unknown};
  static const std::map<std::string_view, codes> rows{
      {"DescribeBackend", {ec::host_missing, ec::host_denied, ec::unsupported}},
      {"CreateVm",
       {ec::backend_refused, ec::already_exists, ec::out_of_range, ec::host_missing, ec::host_denied,
        ec::host_resources, ec::host_io, ec::unsupported, ec::vmm_died}},
      {"InspectVm", {}},
      {"ApplyMemoryStep", {ec::backend_refused, ec::out_of_range, ec::vmm_died, ec::unsupported}},
      {"SetVmVcpus", {ec::backend_refused, ec::out_of_range, ec::vmm_died, ec::unsupported}},
      {"AttachDevice",
       {ec::backend_refused, ec::already_exists, ec::host_missing, ec::host_denied, ec::vmm_died, ec::unsupported}},
      {"DetachDevice", {ec::backend_refused, ec::vmm_died, ec::unsupported}},
      {"PauseVm", {ec::backend_refused, ec::vmm_died, ec::unsupported}},
      {"ResumeVm", {ec::backend_refused, ec::vmm_died, ec::unsupported}},
      {"DestroyVm", {}},
      {"ListVms", {}},
  };
  const auto row = rows.find(message);
  ASSERT_NE(row, rows.end()) << message << " is no verb of the contract";
  const auto in = [code](const codes& some) { return std::find(some.begin(), some.end(), code) != some.end(); };
  EXPECT_TRUE(in(any_verb) || in(row->second))
      << message << " was answered with what backends/backend.hpp does not name for it: " << text;
}

rig::rig(const kind& k) : kind_{k}, place_{place_of(k)} {
  root_ = make_directory(fs::temp_directory_path());
  run_ = make_directory(fs::exists("/dev/shm") ? "/dev/shm" : "/tmp");
  for (const auto* sub : {"/state", "/log"})
    fs::create_directory(root_ + sub);
  config_ = std::make_unique<caf::actor_system_config>();
  config_->set("scheduler.policy", caf::atom("sharing"));
  system_ = std::make_unique<caf::actor_system>(*config_);
  reactor_ = std::make_unique<reactor::reactor>();
  if (k.line == "simulated") {
    std::string problem;
    world_ = std::make_shared<backends::simulated::world>(backends::simulated::parse_fault_plan(k.faults, problem));
    if (!problem.empty())
      throw std::runtime_error(problem);
  } else if (!k.faults.empty()) {
    place_.vmm_path = with_knobs(place_.vmm_path, k.faults, root_);
  }
  make_provider();
}

rig::~rig() {
  listeners_.clear();
  provider_.reset();
  system_.reset();
  reactor_.reset();
  // What has just been told to end may need a moment.
  auto left = left_behind();
  for (int turn = 0; turn < 100 && !left.empty(); ++turn, left = left_behind())
    ::poll(nullptr, 0, 50);
  EXPECT_EQ(left, "") << kind_.name << " has left something behind";
  for (const auto& name : taps_)
    EXPECT_TRUE(remove_tap(name)) << "tap " << name << " is its maker's: " << kind_.name << " has removed or kept it";
  std::error_code ignored;
  fs::remove_all(root_, ignored);
  fs::remove_all(run_, ignored);
}

std::string rig::left_behind() const {
  std::string out;
  std::error_code ignored;
  if (fs::exists(run_ + "/s"))
    for (const auto& file : fs::recursive_directory_iterator(run_ + "/s", ignored))
      if (!file.is_directory(ignored))
        out += "file " + file.path().string() + "; ";
  for (const auto& process : fs::directory_iterator("/proc", ignored)) {
    auto name = process.path().filename().string();
    if (name.find_first_not_of("0123456789") != name.npos || name == std::to_string(::getpid()))
      continue;
    auto line = whole(process.path() / "cmdline");
    if (line.find(root_) != line.npos || line.find(run_) != line.npos) {
      std::replace(line.begin(), line.end(), '\0', ' ');
      out += "process " + name + " (" + line.substr(0, 200) + "); ";
    }
  }
  return out;
}

void rig::make_provider() {
  if (world_) {
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
  e.program_directory = CAISSON_PROGRAM_DIRECTORY;
  e.log = [](std::string_view line) { fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data()); };
  provider_ = find_line(kind_.line)->make(e);
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
  m.set_architecture(kind_.architecture);
  m.set_accelerator("auto");
  m.set_deadline_ms(120'000);
  m.set_vmm_path(place_.vmm_path);
  m.set_libvirt_uri(place_.libvirt_uri);
  if (!place_.guest_directory.empty()) {
    m.set_kernel_path(place_.guest_directory + (kind_.architecture == "aarch64" ? "/Image" : "/vmlinux"));
    m.set_initrd_path(place_.guest_directory + "/initramfs.cpio");
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
  s.set_architecture(kind_.architecture);
  s.set_boot_vcpus(1);
  s.set_max_vcpus(max_vcpus);
  s.set_boot_bytes(std::uint64_t{256} << 20);
  s.set_max_bytes(max_bytes);
  s.set_memory_slots(slots);
  s.set_memory_method(kind_.method);
  s.set_accelerator(capabilities_ ? capabilities_->accelerator() : "tcg");
  s.set_run_directory(run_ + "/s/" + id);
  s.set_vmm_path(place_.vmm_path);
  s.set_libvirt_uri(place_.libvirt_uri);
  s.set_free_root_ports(4);
  fs::create_directories(s.run_directory());
  fs::permissions(s.run_directory(), fs::perms::owner_all);
  if (!place_.guest_directory.empty()) {
    s.set_kernel_path(place_.guest_directory + (kind_.architecture == "aarch64" ? "/Image" : "/vmlinux"));
    s.set_initrd_path(place_.guest_directory + "/initramfs.cpio");
    s.set_kernel_command_line(kernel_parameters(place_.guest_directory));
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

void rig::hold(const v1::VmObserved& vm) {
  if (world_) {
    auto plan = world_->plan();
    plan.late = 1;
    plan.slow_ms = {20, 20};
    world_->set_plan(plan);
    return;
  }
  const auto pid = static_cast<pid_t>(vm.vmm_pid());
  if (pid <= 1)
    return;
  ::kill(pid, SIGSTOP);
  // The kernel stops it at once, but a thread of it may still be on its way.
  for (int turn = 0; turn < 200; ++turn) {
    auto stat = whole("/proc/" + std::to_string(pid) + "/stat");
    if (auto at = stat.rfind(") "); at != stat.npos && stat.substr(at + 2, 1) == "T")
      break;
    ::poll(nullptr, 0, 10);
  }
}

void rig::let_go(const v1::VmObserved& vm) {
  if (world_) {
    auto plan = world_->plan();
    plan.late = 0;
    world_->set_plan(plan);
  } else if (vm.vmm_pid() > 1) {
    ::kill(static_cast<pid_t>(vm.vmm_pid()), SIGCONT);
  }
}

std::string rig::vmm_that_fails_at_start() const {
  if (!place_.process || place_.vmm_path.empty() || !kind_.faults.empty())
    return {};
  // Always the same file: what has been learnt of a VMM's program is kept under its path and time.
  const auto content = "#!/bin/sh\ncase \"$*\" in\n*" + std::string{stops_at_start} + "*) kill -STOP $$ ;;\n*" +
                       dies_at_start + "*) kill -KILL $$ ;;\nesac\nexec " + place_.vmm_path + " \"$@\"\n";
  const auto path = CAISSON_TEST_CACHE_DIRECTORY "/at-start-" + fs::path{place_.vmm_path}.filename().string();
  if (whole(path) == content)
    return path;
  const auto fresh = root_ + "/at-start";
  std::ofstream{fresh} << content;
  fs::permissions(fresh, fs::perms::owner_all);
  const auto beside = path + "." + std::to_string(::getpid());
  fs::copy_file(fresh, beside, fs::copy_options::overwrite_existing);
  fs::rename(beside, path);
  return path;
}

std::string rig::image(const std::string& name) {
  auto path = root_ + "/" + name + ".raw";
  if (!fs::exists(path)) {
    std::ofstream{path};
    fs::resize_file(path, 1u << 20);
  }
  return path;
}

std::string rig::tap(std::string& why_not) {
  if (world_)
    return "tap" + std::to_string(tap_count_++);
  int fd = ::open("/dev/net/tun", O_RDWR | O_CLOEXEC);
  ifreq ask{};
  auto name = "cai" + std::to_string(::getpid() % 100'000) + "x" + std::to_string(tap_count_++);
  name.copy(ask.ifr_name, IFNAMSIZ - 1);
  ask.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
  if (fd < 0 || ::ioctl(fd, TUNSETIFF, &ask) != 0 || ::ioctl(fd, TUNSETPERSIST, 1) != 0) {
    why_not = std::string{"no tap can be made here: "} + std::strerror(errno);
    if (fd >= 0)
      ::close(fd);
    return {};
  }
  ::close(fd); // whoever opens it next is its only user
  taps_.push_back(name);
  return name;
}

} // namespace caisson::tests
