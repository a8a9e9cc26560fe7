#include "backends/cloud-hypervisor/driver.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <future>

#include "backends/cloud-hypervisor/capabilities.hpp"
#include "backends/cloud-hypervisor/vmm_process.hpp"
#include "backends/host/server.hpp"
#include "backends/host/wire.hpp"

namespace caisson::cloud_hypervisor {
namespace {

using namespace std::chrono_literals;

constexpr auto between_looks = 10ms;

problem kvm_problem(const std::string& device) {
  const int fd = ::open(device.c_str(), O_RDWR | O_CLOEXEC);
  if (fd >= 0) {
    ::close(fd);
    return {};
  }
  const int why = errno;
  const bool denied = why == EACCES || why == EPERM;
  return {denied ? "host_denied" : "host_missing",
          device + (why == ENOENT ? " is not there" : std::string{" cannot be opened: "} + std::strerror(why)) +
              "; Cloud Hypervisor opens it as soon as it starts and has no other accelerator: " +
              (denied ? "add the user to the group kvm"
                      : "switch on virtualisation in the firmware (or nested virtualisation in the host of this "
                        "machine)") +
              ", or use hypervisor qemu, which runs under TCG, too"};
}

} // namespace

driver::driver(reactor::reactor& on, driver_settings settings) : on_{on}, settings_{std::move(settings)} {}

void driver::start() {
  std::error_code ignored;
  std::filesystem::create_directories(settings_.directory, ignored);
  ::chmod(settings_.directory.c_str(), 0700);
  on_.post([self = shared_from_this()] { self->recover(); });
}

void driver::recover() {
  // Weak: the machines hold the surroundings, and may be held by callbacks of the reactor until its end.
  auto weak = weak_from_this();
  around_ = std::make_shared<surroundings>(surroundings{on_, records{settings_.directory},
                                                        [weak](const v1::VmEvent& e) {
                                                          if (auto self = weak.lock())
                                                            self->tell(e);
                                                        },
                                                        [weak](const std::string& id) {
                                                          auto self = weak.lock();
                                                          if (!self)
                                                            return;
                                                          auto at = self->machines_.find(id);
                                                          if (at != self->machines_.end() && at->second->idle())
                                                            self->machines_.erase(at);
                                                        },
                                                        [log = settings_.log](const std::string& line) {
                                                          if (log)
                                                            log("cloud-hypervisor: " + line);
                                                        }});
  probe_ = std::make_shared<version_probe>(on_);
  watch_ = std::make_unique<reactor::file_watch>(
      on_, std::vector{settings_.directory},
      [weak] {
        auto self = weak.lock();
        if (!self)
          return;
        auto all = self->machines_; // one may end meanwhile
        for (auto& [id, one] : all)
          one->look_at_files();
      },
      reactor::watch_settings{.writes = true, .quiet = between_looks});
  for (auto& record : around_->store.all()) {
    auto id = record.sandbox_id();
    if (!valid_id(id))
      continue;
    auto one = std::make_shared<machine>(around_, id);
    machines_.emplace(id, one);
    one->recover(std::move(record));
  }
}

void driver::submit(v1::BackendCall call, answer_function answer) {
  auto pending = std::make_shared<pending_call>(std::move(call), std::move(answer));
  on_.post([self = shared_from_this(), pending] { self->take(pending); });
}

void driver::take(const call_ptr& call) {
  if (ended_)
    return call->fail({"backend_lost", "the engine is ending"});
  if (call->what.has_describe())
    return describe(call);
  if (call->what.has_list()) {
    v1::VmList all;
    for (const auto& [id, one] : machines_)
      if (one->recorded())
        all.add_sandbox_ids(id);
    return call->finish(host::success(std::move(all)));
  }
  const auto id = host::sandbox_of(call->what);
  if (!valid_id(id))
    return call->fail({"invalid_argument", "expected a sandbox id of 1 to 32 of a-z 0-9 -"});
  auto at = machines_.find(id);
  if (at == machines_.end()) {
    if (!call->what.has_create() && !call->what.has_inspect() && !call->what.has_destroy())
      return call->fail({"vmm_died", "there is no such VM (never made, or destroyed)"});
    auto one = std::make_shared<machine>(around_, id);
    if (call->what.has_create())
      machines_.emplace(id, one);
    return one->submit(call);
  }
  auto one = at->second;
  one->submit(call);
}

void driver::describe(const call_ptr& call) {
  const auto& q = call->what.describe();
  const auto& host = settings_.host_architecture;
  const auto architecture = q.architecture().empty() ? host : q.architecture();
  if (architecture != "x86_64" && architecture != "aarch64")
    return call->fail({"unsupported", "architecture \"" + escaped_text(architecture, 40) +
                                          "\": Cloud Hypervisor makes x86_64 and aarch64"});
  if (architecture != host)
    return call->fail({"unsupported", "architecture " + architecture +
                                          ": Cloud Hypervisor runs guests of the host's own "
                                          "architecture alone, and this host is " +
                                          host + "; hypervisor qemu runs others, under TCG"});
  if (q.accelerator() == "tcg")
    return call->fail(
        {"unsupported", "accelerator tcg: Cloud Hypervisor has none but the host's KVM; hypervisor qemu has"});
  bool firmware = !q.firmware_path().empty();
  if (q.firmware_path() == "auto") {
    std::string looked;
    firmware = !find_firmware(architecture, looked).empty();
    if (!firmware)
      return call->fail(
          {"host_missing", "firmware = \"auto\": no firmware for Cloud Hypervisor was found, looked for " + looked +
                               "; name its file, or leave `firmware` unset for direct kernel boot"});
  } else if (firmware && ::access(q.firmware_path().c_str(), R_OK) != 0) {
    return call->fail({"host_missing", "firmware \"" + escaped_text(q.firmware_path(), 200) +
                                           "\" cannot be read: " + std::strerror(errno)});
  }
  if (q.vmm_path().empty())
    return call->fail({"host_missing", "no program of Cloud Hypervisor is named; set `path` of "
                                       "[hypervisor.cloud-hypervisor] (or of [hypervisor.clh]) to it"});
  probe_->ask(q.vmm_path(), [self = shared_from_this(), call, architecture, firmware](const program_facts& facts) {
    self->describe_program(call, architecture, firmware, facts);
  });
}

void driver::describe_program(const call_ptr& call, const std::string& architecture, bool firmware,
                              const program_facts& facts) {
  if (!facts.wrong.code.empty())
    return call->fail(facts.wrong);
  auto c = capabilities_of(architecture, *judge_version(facts.version).facts, firmware);
  c.set_vmm_version(title_of(facts.version));
  if (facts.model) {
    c.set_accelerator("simulated");
    c.set_modelled_memory(true);
    c.set_accelerator_reason("the program is a model of Cloud Hypervisor and runs no guest code");
  } else if (auto why = kvm_problem(settings_.kvm_device); !why.code.empty()) {
    return call->fail(why);
  } else {
    c.set_accelerator("kvm");
    c.set_accelerator_reason("Cloud Hypervisor has no other; whether a guest boots under this host's KVM is not tried");
  }
  call->finish(host::success(std::move(c)));
}

void driver::listen(std::uint64_t ticket, std::string sandbox_id, event_function heard) {
  on_.post([self = shared_from_this(), ticket, one = listener{std::move(sandbox_id), std::move(heard)}]() mutable {
    if (!self->ended_)
      self->listeners_[ticket] = std::move(one);
  });
}

void driver::unlisten(std::uint64_t ticket) {
  on_.post([self = shared_from_this(), ticket] { self->listeners_.erase(ticket); });
}

void driver::tell(const v1::VmEvent& event) {
  for (const auto& [ticket, one] : listeners_)
    if (one.sandbox_id == event.sandbox_id())
      one.heard(event);
}

void driver::end() {
  auto done = std::make_shared<std::promise<void>>();
  auto ended = done->get_future();
  on_.post([self = shared_from_this(), done] {
    self->ended_ = true;
    for (auto& [id, one] : self->machines_)
      one->leave();
    self->machines_.clear();
    self->listeners_.clear();
    self->watch_.reset();
    done->set_value();
  });
  done.reset(); // a reactor that has ended drops the function, and with it the promise
  ended.wait();
}

} // namespace caisson::cloud_hypervisor
