#include "tests/system/hotplug_rig.hpp"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <optional>
#include <sstream>

namespace caisson::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr auto answer_within = 400s; // an operation's own deadline is 300 s
constexpr const char* firmware_code = "/usr/share/AAVMF/AAVMF_CODE.fd";

std::string guest_of(const machine& m) {
  if (!m.arm())
    return CAISSON_X86_GUEST;
  return m.dimm() ? CAISSON_ARM64_SOURCE_GUEST : CAISSON_ARM64_GUEST;
}

template <class T> std::function<engine::outcome<T>()> later(const std::function<void(engine::done<T>)>& call) {
  auto promise = std::make_shared<std::promise<engine::outcome<T>>>();
  call([promise](engine::outcome<T> o) { promise->set_value(std::move(o)); });
  auto answer = std::make_shared<std::future<engine::outcome<T>>>(promise->get_future());
  return [answer]() -> engine::outcome<T> {
    if (answer->wait_for(answer_within) != std::future_status::ready) {
      v1::Error e;
      e.set_code("test");
      e.set_text("the engine has not answered");
      return e;
    }
    return answer->get();
  };
}

template <class T> engine::outcome<T> asked(const std::function<void(engine::done<T>)>& call) {
  return later<T>(call)();
}

} // namespace

std::string unavailable(const machine& m) {
  const auto vmm = std::string{"/usr/bin/qemu-system-"} + m.architecture;
  if (::access(vmm.c_str(), X_OK) != 0)
    return vmm + " is not there (package " + (m.arm() ? "qemu-system-arm" : "qemu-system-x86") + ")";
  const auto guest = guest_of(m);
  if (!fs::exists(guest + "/manifest.json"))
    return "there is no guest in " + guest + ": build the target guest_image" +
           (!m.arm()   ? ""
            : m.dimm() ? "_aarch64_source (takes long: Debian's ARM64 kernel knows no DIMMs)"
                       : "_aarch64");
  if (m.arm() && m.dimm() && !fs::exists(firmware_code))
    return std::string{firmware_code} + " is not there (package qemu-efi-aarch64)";
  return {};
}

void event_box::put(const v1::Event& e) {
  std::lock_guard hold{mutex_};
  heard_.push_back(e);
  changed_.notify_all();
}

std::optional<v1::Event> event_box::await(const std::function<bool(const v1::Event&)>& fits,
                                          std::chrono::seconds at_most) {
  std::unique_lock hold{mutex_};
  std::optional<v1::Event> found;
  changed_.wait_for(hold, at_most, [&] {
    for (auto i = from_; i < heard_.size() && !found; ++i)
      if (fits(heard_[i]))
        found = heard_[i];
    return found.has_value();
  });
  return found;
}

std::size_t event_box::count() const {
  std::lock_guard hold{mutex_};
  return heard_.size();
}

void event_box::forget() {
  std::lock_guard hold{mutex_};
  from_ = heard_.size();
}

hotplug_rig::hotplug_rig() {
  char root[] = "/tmp/caisson-hotplug-XXXXXX", run[] = "/dev/shm/caisson-hp-XXXXXX";
  root_ = ::mkdtemp(root);
  run_ = ::mkdtemp(run);
  engine::options o;
  o.state_directory = root_ + "/state";
  o.run_directory = run_ + "/r";
  auto opened = engine::open(o);
  if (auto* why = std::get_if<v1::Error>(&opened)) {
    ADD_FAILURE() << why->text();
    return;
  }
  engine_ = std::get<0>(std::move(opened));
  watching_ = engine_->watch(
      {}, [this](const v1::Event& e) { events.put(e); }, [] {});
}

hotplug_rig::~hotplug_rig() {
  if (engine_) {
    auto left = asked<v1::SandboxList>([&](auto done) { engine_->list({}, done); });
    if (auto* list = std::get_if<v1::SandboxList>(&left))
      for (const auto& s : list->sandboxes()) {
        remove(s.id());
        EXPECT_TRUE(s.vmm_pid() == 0 || gone(s.vmm_pid(), 30s)) << "the VMM of " << s.name() << " is still there";
      }
    watching_.reset();
    engine_.reset();
    for (const auto& entry : fs::directory_iterator{run_ + "/r"})
      EXPECT_FALSE(entry.is_directory()) << entry.path() << " is left behind";
  }
  std::error_code ignored;
  fs::remove_all(root_, ignored);
  fs::remove_all(run_, ignored);
}

std::string hotplug_rig::text_of(const wish& w) {
  std::ostringstream text;
  text << "[hypervisor.qemu]\ndefault_memory = 256\ndefault_maxmemory = " << w.max_mib << "\nmemory_method = \""
       << w.on.method << "\"\n";
  if (w.on.arm())
    text << "machine_type = \"virt\"\n";
  if (w.on.arm() && w.on.dimm())
    text << "firmware = \"" << firmware_code << "\"\n";
  text << "guest_dir = \"" << (w.guest.empty() ? guest_of(w.on) : w.guest) << "\"\n" << w.more;
  auto path = root_ + "/" + w.name + ".toml";
  std::ofstream{path} << text.str();
  return path;
}

std::function<engine::outcome<v1::SandboxStatus>()> hotplug_rig::create_later(const wish& w) {
  v1::CreateSandbox m;
  m.set_name(w.name);
  m.set_config_path(text_of(w));
  m.set_memory_bytes(w.boot_mib * mib);
  return later<v1::SandboxStatus>([&](auto done) { engine_->create(m, done); });
}

engine::outcome<v1::SandboxStatus> hotplug_rig::create(const wish& w) {
  return create_later(w)();
}

engine::outcome<v1::Operation> hotplug_rig::begin_resize(const std::string& name, std::uint64_t memory_bytes,
                                                         bool dry_run) {
  v1::ResizeSandbox m;
  m.set_sandbox(name);
  m.set_memory_bytes(memory_bytes);
  m.set_dry_run(dry_run);
  return asked<v1::Operation>([&](auto done) { engine_->resize(m, done); });
}

v1::Operation hotplug_rig::wait(const v1::Operation& o) {
  v1::WaitOperation m;
  m.set_operation_id(o.id());
  m.set_wait_ms(380'000);
  auto ended = asked<v1::Operation>([&](auto done) { engine_->wait_operation(m, done); });
  if (auto* why = std::get_if<v1::Error>(&ended)) {
    ADD_FAILURE() << why->text();
    return {};
  }
  return std::get<v1::Operation>(ended);
}

v1::Operation hotplug_rig::resize(const std::string& name, std::uint64_t memory_bytes) {
  auto begun = begin_resize(name, memory_bytes);
  if (auto* o = std::get_if<v1::Operation>(&begun))
    return wait(*o);
  v1::Operation refused;
  refused.set_state(v1::OPERATION_STATE_FAILED);
  refused.set_why(std::get<v1::Error>(begun).text());
  *refused.mutable_error() = std::get<v1::Error>(begun);
  return refused;
}

engine::outcome<v1::Operation> hotplug_rig::cancel(const v1::Operation& o) {
  v1::CancelOperation m;
  m.set_operation_id(o.id());
  return asked<v1::Operation>([&](auto done) { engine_->cancel_operation(m, done); });
}

engine::outcome<v1::Operation> hotplug_rig::look(const v1::Operation& o) {
  v1::GetOperation m;
  m.set_operation_id(o.id());
  return asked<v1::Operation>([&](auto done) { engine_->get_operation(m, done); });
}

engine::outcome<v1::SandboxStatus> hotplug_rig::get(const std::string& name) {
  v1::GetSandbox m;
  m.set_sandbox(name);
  return asked<v1::SandboxStatus>([&](auto done) { engine_->get(m, done); });
}

v1::SandboxStatus hotplug_rig::status(const std::string& name) {
  auto got = get(name);
  if (auto* why = std::get_if<v1::Error>(&got)) {
    ADD_FAILURE() << why->text();
    return {};
  }
  return std::get<v1::SandboxStatus>(got);
}

engine::outcome<v1::SandboxStatus> hotplug_rig::pause(const std::string& name) {
  v1::PauseSandbox m;
  m.set_sandbox(name);
  return asked<v1::SandboxStatus>([&](auto done) { engine_->pause(m, done); });
}

engine::outcome<v1::SandboxStatus> hotplug_rig::resume(const std::string& name) {
  v1::ResumeSandbox m;
  m.set_sandbox(name);
  return asked<v1::SandboxStatus>([&](auto done) { engine_->resume(m, done); });
}

engine::outcome<v1::SandboxStatus> hotplug_rig::remove(const std::string& name) {
  v1::RemoveSandbox m;
  m.set_sandbox(name);
  m.set_force(true);
  return asked<v1::SandboxStatus>([&](auto done) { engine_->remove(m, done); });
}

ran hotplug_rig::in_guest(const std::string& name, std::vector<std::string> argv) {
  struct running {
    std::mutex mutex;
    ran so_far;
    std::promise<void> ended;
    std::shared_ptr<engine::exec_session> session;
  };
  auto r = std::make_shared<running>();
  v1::ExecRequest m;
  m.set_sandbox(name);
  for (auto& word : argv)
    m.mutable_start()->add_argv(std::move(word));
  engine::exec_events on;
  auto took = [r](std::string ran::*into, void (engine::exec_session::*grant)(std::size_t), std::string_view bytes) {
    std::lock_guard hold{r->mutex};
    (r->so_far.*into).append(bytes);
    if (r->session)
      (r->session.get()->*grant)(bytes.size());
  };
  on.on_stdout = [took](std::string_view b) { took(&ran::out, &engine::exec_session::consumed_stdout, b); };
  on.on_stderr = [took](std::string_view b) { took(&ran::err, &engine::exec_session::consumed_stderr, b); };
  on.on_end = [r](engine::outcome<v1::ExecExited> end) {
    {
      std::lock_guard hold{r->mutex};
      if (auto* why = std::get_if<v1::Error>(&end))
        r->so_far.err += why->text();
      else
        r->so_far.status = std::get<v1::ExecExited>(end).exit_code();
    }
    r->ended.set_value();
  };
  auto session = engine_->exec(std::move(m), std::move(on));
  {
    std::lock_guard hold{r->mutex};
    r->session = session;
    // What came before there was somebody to grant it.
    session->consumed_stdout(r->so_far.out.size());
    session->consumed_stderr(r->so_far.err.size());
  }
  session->close_stdin();
  if (r->ended.get_future().wait_for(answer_within) != std::future_status::ready)
    ADD_FAILURE() << "a command in " << name << " has not ended";
  std::lock_guard hold{r->mutex};
  r->session.reset();
  return r->so_far;
}

std::uint64_t hotplug_rig::mem_total(const std::string& name) {
  auto got = in_guest(name, {"awk", "/^MemTotal/ {print $2}", "/proc/meminfo"});
  EXPECT_EQ(got.status, 0) << got.err;
  return got.out.empty() ? 0 : std::stoull(got.out) * 1024;
}

std::uint64_t hotplug_rig::mapped_by(std::int64_t vmm_pid) {
  std::ifstream maps{"/proc/" + std::to_string(vmm_pid) + "/maps"};
  std::uint64_t sum = 0;
  for (std::string line; std::getline(maps, line);) {
    if (line.find("/memfd:") == line.npos)
      continue;
    const auto dash = line.find('-');
    sum += std::stoull(line.substr(dash + 1), nullptr, 16) - std::stoull(line.substr(0, dash), nullptr, 16);
  }
  return sum;
}

void hotplug_rig::expect_everywhere(const std::string& name, std::uint64_t plugged_bytes, std::uint64_t total_at_boot,
                                    bool target_reached) {
  // A kernel that takes an emptied block of virtio-mem offline counts it once more for a moment.
  auto s = status(name);
  for (int look = 0; look < 200 && s.memory().guest_bytes() != s.memory().boot_bytes() + plugged_bytes; ++look) {
    ::poll(nullptr, 0, 50);
    s = status(name);
  }
  const auto& m = s.memory();
  EXPECT_EQ(m.plugged_bytes(), plugged_bytes) << "the VMM's word";
  if (target_reached) {
    EXPECT_EQ(m.target_bytes(), m.boot_bytes() + plugged_bytes) << "the target";
  }
  EXPECT_EQ(m.guest_bytes(), m.boot_bytes() + plugged_bytes) << "the guest's claim";
  EXPECT_LE(m.boot_bytes() + m.plugged_bytes(), m.max_bytes());
  const auto total = mem_total(name);
  EXPECT_LE(total, total_at_boot + plugged_bytes + mib) << "the guest's own file";
  EXPECT_GE(total + mib, total_at_boot + plugged_bytes) << "the guest's own file";
  if (m.method() == v1::MEMORY_METHOD_DIMM) {
    // QEMU lets go of a DIMM's memory a moment after it has said that the DIMM is gone.
    for (int look = 0; look < 500 && mapped_by(s.vmm_pid()) > m.boot_bytes() + plugged_bytes; ++look)
      ::poll(nullptr, 0, 20);
    EXPECT_EQ(mapped_by(s.vmm_pid()), m.boot_bytes() + plugged_bytes) << "the host's map of the VMM";
  }
}

bool gone(std::int64_t pid, std::chrono::seconds at_most) {
  const int fd = static_cast<int>(::syscall(SYS_pidfd_open, static_cast<pid_t>(pid), 0));
  if (fd < 0)
    return true;
  pollfd p{fd, POLLIN, 0};
  const bool ended = ::poll(&p, 1, static_cast<int>(std::chrono::milliseconds{at_most}.count())) > 0;
  ::close(fd);
  return ended;
}

} // namespace caisson::test
