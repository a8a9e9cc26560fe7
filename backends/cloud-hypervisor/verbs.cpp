// The verbs that change a VM that runs, and its end.

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <optional>
#include <utility>

#include "backends/cloud-hypervisor/machine.hpp"
#include "backends/cloud-hypervisor/tap.hpp"
#include "backends/cloud-hypervisor/vmm_process.hpp"
#include "backends/host/server.hpp"

namespace caisson::cloud_hypervisor {
namespace {

using namespace std::chrono_literals;

constexpr auto vcpu_back_off = 20ms;
constexpr int most_vcpu_attempts = 20;
constexpr std::chrono::milliseconds shutdown_grace = 5s;
constexpr std::chrono::milliseconds activation_patience = 5s; // of a guest that may have no driver for it

bool removal_pending(const outcome& o) {
  return o.answered(429) || o.says("Too Many Requests") || o.says("removal");
}

std::string bytes_text(std::uint64_t bytes) {
  return std::to_string(bytes / mib) + " MiB";
}

} // namespace

void machine::memory_step(const call_ptr& call) {
  const auto& step = call->what.apply_memory_step();
  switch (step.step_case()) {
  case v1::ApplyMemoryStep::kPlugDimm:
    return plug_dimm(call, {step.plug_dimm().id(), step.plug_dimm().size_bytes()});
  case v1::ApplyMemoryStep::kVirtioMemRequestedBytes:
    return request_virtio_mem(call, step.virtio_mem_requested_bytes());
  case v1::ApplyMemoryStep::kUnplugDimmId:
    if (!record_->book.has_dimm(step.unplug_dimm_id()))
      return succeed(call);
    return refuse(call,
                  {"unsupported", "Cloud Hypervisor cannot take ACPI memory back while the VM runs; virtio-mem can "
                                  "(memory_method = \"virtio-mem\")"});
  case v1::ApplyMemoryStep::STEP_NOT_SET:
    break;
  }
  refuse(call, {"invalid_argument", "no step is named"});
}

void machine::plug_dimm(const call_ptr& call, const plugged_dimm& dimm) {
  // Reads first: a DIMM whose answer was lost may be there.
  read_back(call, [self = shared_from_this(), call, dimm](const v1::VmObserved& seen) {
    if (!self->alive())
      return self->refuse(call, self->ended_problem());
    auto& book = self->record_->book;
    const auto& spec = self->record_->spec;
    if (!seen.stale_reason().empty())
      return self->refuse(call, {"backend_refused", "nothing was changed: " + seen.stale_reason()});
    if (book.has_dimm(dimm.id))
      return self->succeed(call);
    if (spec.memory_method() == v1::MEMORY_METHOD_VIRTIO_MEM)
      return self->refuse(call, {"unsupported", "this VM was made for virtio-mem and has no DIMM slots"});
    if (dimm.id.empty() || dimm.size_bytes == 0 || dimm.size_bytes % dimm_block_bytes != 0)
      return self->refuse(call, {"backend_refused", "DIMM of " + std::to_string(dimm.size_bytes) +
                                                        " bytes: expected an id and a multiple of " +
                                                        bytes_text(dimm_block_bytes)});
    if (book.dimms.size() >= dimm_slots)
      return self->refuse(call,
                          {"backend_refused", "no slot is left: Cloud Hypervisor plugs memory by ACPI 8 times in the "
                                              "life of a VM, and it has; virtio-mem knows no slots"});
    if (book.dimms.size() >= spec.memory_slots())
      return self->refuse(call,
                          {"backend_refused", "no slot is left: the VM was made with " +
                                                  std::to_string(spec.memory_slots()) + " (VmSpec.memory_slots)"});
    // Not the region's size, which has a block to spare for the VMM's alignment.
    const auto most = most_plugged_bytes(spec);
    if (dimm.size_bytes > most - std::min(most, book.dimm_bytes()))
      return self->refuse(
          call,
          {"backend_refused", bytes_text(dimm.size_bytes) + " more than the " + bytes_text(book.acpi_total_bytes()) +
                                  " that it has would be above the VM's maximum of " + bytes_text(spec.max_bytes())});
    book.asked_dimm = dimm;
    self->save();
    self->ask(requests::resize_ram(book.acpi_total_bytes() + dimm.size_bytes), call->left(),
              [self, call, dimm](outcome o) {
                if (!self->record_)
                  return;
                auto& now = self->record_->book;
                if (o.ok()) {
                  now.dimm_plugged();
                  self->save();
                  return self->succeed(call);
                }
                if (o.kind != outcome_kind::answered && o.sent)
                  return self->unanswered(call, o, "DIMM " + dimm.id);
                now.asked_dimm.reset();
                self->save();
                if (o.kind != outcome_kind::answered)
                  return self->unanswered(call, o, "DIMM " + dimm.id);
                self->refuse(call, {"backend_refused", "DIMM " + dimm.id + " was not plugged: " + o.reply.text()});
              });
  });
}

void machine::request_virtio_mem(const call_ptr& call, std::uint64_t bytes) {
  if (record_->spec.memory_method() != v1::MEMORY_METHOD_VIRTIO_MEM)
    return refuse(call, {"unsupported", "this VM was made without virtio-mem"});
  if (bytes > most_plugged_bytes(record_->spec) || bytes % virtio_mem_granule_bytes != 0)
    return refuse(call,
                  {"backend_refused", "virtio-mem of " + std::to_string(bytes) + " bytes: expected a multiple of " +
                                          bytes_text(virtio_mem_granule_bytes) + " of at most " +
                                          bytes_text(most_plugged_bytes(record_->spec))});
  read_back(call, [self = shared_from_this(), call, bytes](const v1::VmObserved& seen) {
    if (!self->alive())
      return self->refuse(call, self->ended_problem());
    if (!seen.stale_reason().empty())
      return self->refuse(call, {"backend_refused", "nothing was changed: " + seen.stale_reason()});
    const auto& book = self->record_->book;
    if (book.virtio_mem_requested_bytes == bytes) { // the VMM refuses what it has been asked for already
      self->follow_virtio_mem();
      call->succeed(seen);
      return self->end_verb(call);
    }
    self->ask(requests::resize_ram(book.boot_bytes + bytes), call->left(), [self, call, bytes](outcome o) {
      if (o.ok() || o.says("are identical")) {
        self->follow_virtio_mem();
        return self->succeed(call);
      }
      if (o.kind != outcome_kind::answered)
        return self->unanswered(call, o, "virtio-mem of " + bytes_text(bytes));
      self->refuse(call, {"backend_refused", "virtio-mem was not set to " + bytes_text(bytes) + ": " + o.reply.text()});
    });
  });
}

void machine::set_vcpus(const call_ptr& call, std::uint32_t count) {
  const auto& spec = record_->spec;
  if (count == 0 || count > spec.max_vcpus())
    return refuse(call,
                  {"backend_refused", std::to_string(count) + " vCPUs: expected 1 to " +
                                          std::to_string(spec.max_vcpus()) + ", the most that the VM was made with"});
  read_back(call, [self = shared_from_this(), call, count](v1::VmObserved seen) {
    if (!self->alive())
      return self->refuse(call, self->ended_problem());
    if (!seen.stale_reason().empty())
      return self->refuse(call, {"backend_refused", "nothing was changed: " + seen.stale_reason()});
    const auto& book = self->record_->book;
    if (count == book.vcpus_asked) { // also one that the guest has not let go yet: the VMM has taken it
      call->succeed(std::move(seen));
      return self->end_verb(call);
    }
    if (self->record_->spec.architecture() == "aarch64")
      return self->refuse(call, {"unsupported", "Cloud Hypervisor can neither plug nor unplug vCPUs on ARM64"});
    if (count < book.vcpus_present && self->facts_ && !self->facts_->lets_vcpus_go)
      return self->refuse(call, {"unsupported", "this Cloud Hypervisor does not let the guest eject a vCPU"});
    if (book.vcpus_leaving())
      return self->await_departing_vcpus(call, count, 1);
    self->send_vcpus(call, count, 1);
  });
}

// Another number than the one that is still being worked on: the VMM would refuse it, or mix the two up where it is the
// number that is still there.
void machine::await_departing_vcpus(const call_ptr& call, std::uint32_t count, int attempt) {
  const auto asked = record_->book.vcpus_asked;
  ask(requests::resize_vcpus(asked), call->left(), [self = shared_from_this(), call, count, attempt, asked](outcome o) {
    if (!self->record_ || !self->alive())
      return self->refuse(call, self->ended_problem());
    if (o.ok()) {
      self->record_->book.vcpus_present = asked;
      return self->send_vcpus(call, count, 1);
    }
    if (o.kind != outcome_kind::answered)
      return self->unanswered(call, o, "vCPUs");
    if (attempt >= most_vcpu_attempts)
      return self->refuse(
          call, {"backend_refused", "vCPUs are not set to " + std::to_string(count) + ": the guest has not let go of " +
                                        std::to_string(self->record_->book.vcpus_present - asked) +
                                        " that it was asked to give back before; try again when it has (" +
                                        o.reply.text() + ")"});
    self->step_timer_ = self->around_->on.after(
        vcpu_back_off, [self, call, count, attempt] { self->await_departing_vcpus(call, count, attempt + 1); });
  });
}

void machine::send_vcpus(const call_ptr& call, std::uint32_t count, int attempt) {
  ask(requests::resize_vcpus(count), call->left(), [self = shared_from_this(), call, count, attempt](outcome o) {
    if (!self->record_ || !self->alive())
      return self->refuse(call, self->ended_problem());
    if (o.ok()) {
      auto& book = self->record_->book;
      book.vcpus_asked = count;
      book.vcpus_present = std::max(book.vcpus_present, count);
      self->save();
      return self->succeed(call);
    }
    if (o.kind != outcome_kind::answered)
      return self->unanswered(call, o, "vCPUs");
    if (removal_pending(o) && attempt < most_vcpu_attempts) {
      self->step_timer_ = self->around_->on.after(
          vcpu_back_off, [self, call, count, attempt] { self->send_vcpus(call, count, attempt + 1); });
      return;
    }
    self->refuse(call,
                 {"backend_refused", "vCPUs are not set to " + std::to_string(count) + ": " +
                                         (removal_pending(o) ? "the guest has not let go of others that it was asked "
                                                               "to give back before; try again when it has"
                                                             : o.reply.text())});
  });
}

void machine::pause(const call_ptr& call, bool paused) {
  const auto wanted = paused ? v1::VM_STATE_PAUSED : v1::VM_STATE_RUNNING;
  read_back(call, [self = shared_from_this(), call, paused, wanted](v1::VmObserved seen) {
    if (!self->alive())
      return self->refuse(call, self->ended_problem());
    if (!seen.stale_reason().empty())
      return self->refuse(call, {"backend_refused", "nothing was changed: " + seen.stale_reason()});
    if (seen.state() == wanted) {
      call->succeed(std::move(seen));
      return self->end_verb(call);
    }
    self->ask(paused ? requests::pause() : requests::resume(), call->left(), [self, call, paused](outcome o) {
      if (o.ok())
        return self->succeed(call);
      if (o.kind != outcome_kind::answered)
        return self->unanswered(call, o, paused ? "pause" : "resume");
      self->refuse(call,
                   {"backend_refused",
                    std::string{paused ? "the VM does not pause: " : "the VM does not go on: "} + o.reply.text()});
    });
  });
}

void machine::attach(const call_ptr& call, const std::string& id, const char* kind, request add) {
  if (!valid_id(id))
    return refuse(call, {"invalid_argument", std::string{kind} + " \"" + escaped_text(id, 64) +
                                                 "\": expected an id of 1 to 32 of a-z 0-9 -"});
  if (const auto& path = call->what.attach().disk().path(); call->what.attach().has_disk()) {
    const bool read_only = call->what.attach().disk().read_only();
    if (::access(path.c_str(), read_only ? R_OK : R_OK | W_OK) != 0)
      return refuse(call, {"host_missing",
                           "disk image \"" + escaped_text(path, 200) + "\" cannot be opened: " + std::strerror(errno)});
  }
  read_back(call, [self = shared_from_this(), call, id, kind = std::string{kind}, add](v1::VmObserved seen) {
    if (!self->alive())
      return self->refuse(call, self->ended_problem());
    if (!seen.stale_reason().empty())
      return self->refuse(call, {"backend_refused", "nothing was changed: " + seen.stale_reason()});
    const auto& asked = call->what.attach();
    const auto& source = asked.has_disk() ? asked.disk().path() : asked.net().tap_name();
    // What was told of an earlier device with this id is not told of this one.
    self->look_at_files();
    auto& book = self->record_->book;
    if (auto* there = book.device(id)) {
      if (there->leaving)
        return self->refuse(call, {"backend_refused", kind + " " + id +
                                                          " is still leaving the VM; try again when it has "
                                                          "left, or use another id"});
      if (there->kind != kind || (!there->source.empty() && there->source != source))
        return self->refuse(call, {"already_exists", "a " + there->kind + " with the id " + id +
                                                         " is there already, over " + escaped_text(there->source, 200) +
                                                         "; choose another id or detach it first"});
      call->succeed(std::move(seen));
      return self->end_verb(call);
    }
    std::optional<attached_tap> tap; // the VMM has its own descriptor of it as soon as it is asked
    std::vector<int> descriptors;
    if (asked.has_net()) {
      tap.emplace(attach_tap(source));
      if (!*tap)
        return self->refuse(call, {tap->why_not().code, kind + " " + id + ": " + tap->why_not().text});
      descriptors.push_back(tap->fd());
    }
    self->activated_.erase(id); // of an earlier device with this id
    book.asked_device = held_device{.id = id, .kind = kind, .source = source};
    self->save();
    auto added = [self, call, id, kind](outcome o) {
      if (!self->record_)
        return;
      if (o.kind != outcome_kind::answered)
        return self->unanswered(call, o, kind + " " + id);
      if (!o.ok())
        return self->refuse(call, {"backend_refused", kind + " " + id + " was not added: " + o.reply.text()});
      auto where = parse_pci_device(o.reply.body);
      self->record_->book.device_added(where ? where->bdf : std::string{});
      self->save();
      self->succeed(call);
    };
    self->ask(add, call->left(), std::move(added), descriptors);
  });
}

void machine::detach_device(const call_ptr& call, const std::string& id) {
  read_back(call, [self = shared_from_this(), call, id](v1::VmObserved seen) {
    if (!self->alive())
      return self->refuse(call, self->ended_problem());
    if (!seen.stale_reason().empty())
      return self->refuse(call, {"backend_refused", "nothing was changed: " + seen.stale_reason()});
    const auto* device = self->record_->book.device(id);
    if (!device || device->leaving) { // gone, or asked already: a second request is an error in some versions
      call->succeed(std::move(seen));
      return self->end_verb(call);
    }
    if (self->activated_.contains(id))
      return self->remove_device(call);
    // Asked to remove a device that the guest is just taking up, the VMM waits for the guest and the guest for it, for
    // ever (v51.1 and v53.0, one removal in nine that came at once).
    self->awaited_device_ = id;
    self->step_timer_ = self->around_->on.after(std::min<std::chrono::milliseconds>(activation_patience, call->left() / 2),
                                                [self, call] { self->remove_device(call); });
  });
}

void machine::remove_device(const call_ptr& call) {
  awaited_device_.clear();
  const auto& id = call->what.detach().device_id();
  ask(requests::remove_device(id), call->left(), [self = shared_from_this(), call, id](outcome o) {
    if (!self->record_)
      return;
    if (o.kind != outcome_kind::answered)
      return self->unanswered(call, o, "device " + id);
    if (!o.ok())
      return self->refuse(call, {"backend_refused", "device " + id + " was not asked to leave: " + o.reply.text()});
    if (auto* held = self->record_->book.device(id))
      held->leaving = true;
    self->save();
    self->succeed(call);
  });
}

void machine::destroy(const call_ptr& call) {
  destroyers_.push_back(call);
  if (destroying_)
    return;
  destroying_ = true;
  follow_timer_.cancel();
  step_timer_.cancel();
  const problem gone{"vmm_died", "the VM was destroyed meanwhile"};
  const bool busy = running_ != nullptr;
  if (auto verb = std::exchange(running_, {}))
    verb->fail(gone);
  for (auto& verb : std::exchange(waiting_, {}))
    verb->fail(gone);
  if (!record_ || !alive())
    return finish_destroy();
  // With a verb under way the VMM would take the shutdown only after it.
  if (busy || !api_ || !record_->booted || process_state(record_->pid) == 'T')
    return kill_until_gone();
  const auto grace = std::min(call->left() / 2, shutdown_grace);
  step_timer_ = around_->on.after(grace, [self = shared_from_this()] { self->kill_until_gone(); });
  api_->call(requests::shutdown_vmm(), grace, [self = shared_from_this()](outcome o) {
    // Lost is how it looks when the process ends before its answer is out. It may also hang after a good answer: the
    // timer sees to that.
    if (self->alive() && !o.ok() && o.kind != outcome_kind::lost)
      self->kill_until_gone();
  });
}

void machine::kill_until_gone() {
  step_timer_.cancel();
  if (alive())
    child_->kill(SIGKILL); // exited() goes on; a process that the kernel holds leaves the calls to their deadlines
}

void machine::finish_destroy() {
  step_timer_.cancel();
  sweep(true);
  over_ = true;
  v1::VmObserved gone;
  gone.set_state(v1::VM_STATE_ABSENT);
  gone.set_stop_reason("destroyed");
  gone.set_vmm_call_us(spent_us_);
  for (auto* calls : {&destroyers_, &looking_})
    for (auto& call : std::exchange(*calls, {}))
      call->succeed(gone);
  around_->forget(id_);
}

} // namespace caisson::cloud_hypervisor
