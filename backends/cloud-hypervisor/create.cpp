// Making a VM, step by step; whatever fails on the way ends in fail_create(), which leaves nothing behind.

#include <google/protobuf/util/message_differencer.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "backends/cloud-hypervisor/capabilities.hpp"
#include "backends/cloud-hypervisor/machine.hpp"
#include "backends/cloud-hypervisor/tap.hpp"
#include "backends/cloud-hypervisor/vmm_process.hpp"

namespace caisson::cloud_hypervisor {
namespace {

using namespace std::chrono_literals;

constexpr auto ready_within = 10s;
constexpr auto one_ping = 2s;
constexpr auto between_pings = 2ms; // it is up after some ten
constexpr auto create_within = 10s;
constexpr auto look_within = 10s;

std::string unreadable(const char* what, const std::string& path, int mode = R_OK) {
  if (path.empty() || ::access(path.c_str(), mode) == 0)
    return {};
  return std::string{what} + " \"" + escaped_text(path, 200) + "\" cannot be " +
         (mode & X_OK   ? "started"
          : mode & W_OK ? "written"
                        : "read") +
         ": " + std::strerror(errno);
}

} // namespace

problem machine::check_host(v1::VmSpec& spec) const {
  if (spec.firmware_path() == "auto") {
    std::string looked;
    spec.set_firmware_path(find_firmware(spec.architecture(), looked));
    if (spec.firmware_path().empty())
      return {"host_missing", "firmware = \"auto\": no firmware for Cloud Hypervisor was found, looked for " + looked +
                                  "; name its file, or leave `firmware` unset for direct kernel boot"};
  }
  if (auto why = unreadable("VMM", spec.vmm_path(), X_OK); !why.empty())
    return {"host_missing",
            why + "; set `path` of [hypervisor.cloud-hypervisor] (or of [hypervisor.clh]) to the program"};
  for (const auto& why : {unreadable("guest kernel", spec.kernel_path()),
                          unreadable("guest initrd", spec.initrd_path()), unreadable("firmware", spec.firmware_path())})
    if (!why.empty())
      return {"host_missing", why};
  for (const auto& disk : spec.disks())
    if (auto why = unreadable("disk image", disk.path(), disk.read_only() ? R_OK : R_OK | W_OK); !why.empty())
      return {"host_missing", why};
  for (const auto& net : spec.nets())
    if (auto why = tap_problem(net.tap_name()); !why.code.empty())
      return {why.code, "net " + net.id() + ": " + why.text};
  for (const auto& share : spec.shares())
    if (auto why = socket_problem(share.socket_path()); !why.empty())
      return {"host_missing", "share " + share.id() + ", socket \"" + escaped_text(share.socket_path(), 200) +
                                  "\": " + why + ". The boot would stand still for a minute, so the VM was not made"};
  struct stat s {};
  if (::stat(spec.run_directory().c_str(), &s) != 0 || !S_ISDIR(s.st_mode))
    return {"host_io",
            "run directory \"" + escaped_text(spec.run_directory(), 200) + "\" is not there; the engine makes it"};
  return {};
}

void machine::create(const call_ptr& call) {
  auto spec = call->what.create().spec();
  if (record_ && alive()) {
    if (!google::protobuf::util::MessageDifferencer::Equals(record_->spec, spec))
      return refuse(call, {"already_exists",
                           "a VM of this name runs already, made from another specification; destroy it first"});
    if (!record_->booted)
      return refuse(call, {"backend_refused", "an earlier engine has left it half made; destroy it first"});
    return succeed(call);
  }
  if (record_)
    sweep(false);
  const auto asked = spec;
  if (auto why = check_host(spec); !why.code.empty())
    return fail_create(why);
  auto config = config_of(spec);
  if (auto* why = std::get_if<problem>(&config))
    return fail_create(*why);
  record_.emplace();
  record_->spec = asked;
  record_->book = ledger_at_boot(spec);
  if (auto why = start_process(spec); !why.code.empty())
    return fail_create(why);
  config_ = std::get<vm_config>(std::move(config));
  // Over before the call's own deadline, so that it is told what was wrong, and nothing is left behind.
  await_api(call,
            std::chrono::steady_clock::now() + std::min<std::chrono::milliseconds>(ready_within, call->left() / 4 * 3));
}

problem machine::start_process(const v1::VmSpec& spec) {
  asked_to_end_ = false;
  told_size_bytes_ = 0;
  remove_run_files(spec.run_directory(), false);
  around_->store.remove(id_);
  if (auto why = around_->store.save(*record_); !why.empty())
    return {"host_io", why};
  const auto log = around_->store.log_file(id_);
  const int log_fd = open_log(log);
  if (log_fd < 0)
    return {"host_io", "log \"" + log + "\" cannot be made: " + std::strerror(errno)};
  std::string error;
  auto child = around_->on.start(
      vmm_program(spec, around_->store.event_file(id_), log_fd),
      [self = shared_from_this()](const reactor::exit_status& s) { self->exited(s); }, error);
  ::close(log_fd);
  if (!child)
    return {"host_missing", error + "; `path` of [hypervisor.cloud-hypervisor] names the program"};
  child_ = std::move(child);
  record_->pid = child_->pid();
  record_->start_ticks = child_->start_ticks();
  events_ = std::make_unique<event_file>(around_->store.event_file(id_), 0);
  api_ = std::make_unique<api_client>(around_->on, api_socket(spec.run_directory()));
  save();
  return {};
}

void machine::await_api(const call_ptr& call, std::chrono::steady_clock::time_point until) {
  ask(requests::ping(), std::min<std::chrono::milliseconds>(one_ping, call->left()),
      [self = shared_from_this(), call, until](outcome o) {
        if (self->create_failure_ || !self->alive())
          return;
        if (o.ok())
          return self->take_ping(call, o);
        if (o.kind == outcome_kind::answered)
          return self->fail_create({"backend_refused", self->who() + " does not answer a ping: " + o.reply.text()});
        if (std::chrono::steady_clock::now() >= until)
          return self->fail_create(
              {"backend_refused", self->who() + " was started and its API did not answer in time: " + o.why});
        self->step_timer_ =
            self->around_->on.after(between_pings, [self, call, until] { self->await_api(call, until); });
      });
}

void machine::take_ping(const call_ptr& call, const outcome& o) {
  const auto ping = parse_ping(o.reply.body);
  if (!ping)
    return fail_create({"backend_refused", who() + ": is this a Cloud Hypervisor? " + ping.error});
  record_->version = ping->version;
  const auto verdict = judge_version(ping->version);
  if (!verdict.facts)
    return fail_create({"unsupported", verdict.refusal});
  facts_ = verdict.facts;
  record_->accelerator = record_->spec.accelerator() == "simulated" ? "simulated" : "kvm";
  if (record_->spec.memory_method() == v1::MEMORY_METHOD_VIRTIO_MEM && most_plugged_bytes(record_->spec) > 0)
    if (auto why = virtio_mem_problem(*facts_); !why.empty())
      return fail_create({"unsupported", std::move(why)});
  save();
  make_vm(call);
}

void machine::make_vm(const call_ptr& call) {
  ask(requests::create(config_), std::min<std::chrono::milliseconds>(create_within, call->left()),
      [self = shared_from_this(), call](outcome o) {
        if (self->create_failure_ || !self->alive())
          return;
        if (o.ok())
          return self->add_nets(call, 0);
        self->fail_create(o.kind == outcome_kind::answered
                              ? problem{"backend_refused", self->who() + " does not take the VM: " + o.reply.text()}
                              : problem{"backend_refused", self->who() + " did not answer vm.create: " + o.why});
      });
}

void machine::add_nets(const call_ptr& call, std::size_t next) {
  if (next == config_.nets.size())
    return boot_vm(call);
  const auto& net = config_.nets[next];
  const auto tap = attach_tap(net.tap);
  if (!tap)
    return fail_create({tap.why_not().code, "net " + net.id + ": " + tap.why_not().text});
  ask(requests::add_net(net), std::min<std::chrono::milliseconds>(create_within, call->left()),
      [self = shared_from_this(), call, next, id = net.id](outcome o) {
        if (self->create_failure_ || !self->alive())
          return;
        if (o.ok())
          return self->add_nets(call, next + 1);
        self->fail_create(
            o.kind == outcome_kind::answered
                ? problem{"backend_refused", self->who() + " does not take net " + id + ": " + o.reply.text()}
                : problem{"backend_refused", self->who() + " did not answer vm.add-net of " + id + ": " + o.why});
      },
      {tap.fd()});
}

void machine::boot_vm(const call_ptr& call) {
  ask(requests::boot(), call->left(), [self = shared_from_this(), call](outcome o) {
    if (self->create_failure_ || !self->alive())
      return;
    if (o.kind == outcome_kind::answered && !o.ok())
      return self->fail_create({"backend_refused", self->who() + " does not boot the VM: " + o.reply.text()});
    if (o.kind == outcome_kind::late) // it may be at it for a minute, and come to an end yet
      return self->unanswered(call, o, "vm.boot");
    self->look_at_boot(call, o);
  });
}

// Also where the answer of vm.boot was lost: vm.info comes behind it.
void machine::look_at_boot(const call_ptr& call, const outcome& boot) {
  ask(requests::info(),
      std::min<std::chrono::milliseconds>(look_within, std::max<std::chrono::milliseconds>(call->left(), 1s)),
      [self = shared_from_this(), call, boot](outcome o) {
        if (self->create_failure_ || !self->alive())
          return;
        if (!o.ok())
          return self->unanswered(call, boot.ok() ? o : boot, boot.ok() ? "vm.info after the boot" : "vm.boot");
        const auto info = parse_info(o.reply.body);
        if (!info || info->state != vm_state::running)
          return self->fail_create({"backend_refused", self->who() + " was told to boot the VM, and it does not run: " +
                                                           (info ? "its state is " + info->state_text : info.error)});
        self->record_->booted = true;
        self->record_->book.settle(*info, self->facts_->actual_size_counts_virtio_mem);
        self->save();
        call->succeed(self->observed({}));
        self->end_verb(call);
      });
}

void machine::fail_create(problem why) {
  if (create_failure_)
    return;
  create_failure_ = std::move(why);
  step_timer_.cancel();
  if (alive())
    child_->kill(SIGKILL); // exited() goes on
  else
    finish_failed_create();
}

void machine::finish_failed_create() {
  const auto why = *std::exchange(create_failure_, {});
  sweep(false);
  if (auto call = running_) {
    call->fail(why);
    end_verb(call);
  }
  around_->forget(id_);
}

void machine::sweep(bool run_directory_too) {
  if (record_)
    remove_run_files(record_->spec.run_directory(), run_directory_too);
  around_->store.remove(id_);
  follow_timer_.cancel();
  api_.reset();
  events_.reset();
  record_.reset();
}

} // namespace caisson::cloud_hypervisor
