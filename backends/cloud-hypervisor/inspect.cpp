// Reading a VM back: from the VMM what it tells truly, from the ledger what it does not.

#include <algorithm>
#include <iterator>

#include "backends/cloud-hypervisor/capabilities.hpp"
#include "backends/cloud-hypervisor/machine.hpp"
#include "backends/cloud-hypervisor/vmm_process.hpp"

namespace caisson::cloud_hypervisor {
namespace {

using namespace std::chrono_literals;

constexpr std::chrono::milliseconds inspect_at_most = 3s;
constexpr std::chrono::milliseconds read_back_at_most = 5s;
constexpr std::chrono::milliseconds look_at_most = 2s;
// virtio-mem: the guest is quick as a rule. A shrink that meets a busy page is tried again by its driver after 50 s, then
// after twice as long and so on: it is followed for ten minutes, and whoever waits longer asks by itself.
constexpr std::chrono::milliseconds looks[]{5ms,   10ms,  20ms,  20ms,  40ms,  40ms,  80ms,  80ms,  160ms,
                                            160ms, 320ms, 320ms, 500ms, 500ms, 500ms, 500ms, 500ms, 500ms};
constexpr std::size_t looks_each_second = std::size(looks) + 30, looks_at_all = looks_each_second + 114;

std::chrono::milliseconds before_look(std::size_t look) {
  return look < std::size(looks) ? looks[look] : look < looks_each_second ? 1s : 5s;
}

} // namespace

void machine::inspect(const call_ptr& call) {
  looking_.push_back(call);
  auto done = [self = shared_from_this(), call](const std::string& stale) {
    std::erase(self->looking_, call);
    call->succeed(self->observed(stale));
  };
  look_at_files(); // which are watched; where the host gives no watch, this is how they are seen
  if (!record_ || !alive() || !api_)
    return done({});
  if (destroying_)
    return; // told when it has gone
  if (running_ && running_->what.has_create())
    return done("it is being made");
  if (process_state(record_->pid) == 'T')
    return done(who() + " is stopped by a signal and answers nothing; SIGCONT lets it go on");
  const bool quiet = !(running_ && running_->what.has_set_vcpus());
  read(std::min(call->left() * 2 / 3, inspect_at_most), quiet && record_->booted, done);
}

void machine::read_back(const call_ptr& call, std::function<void(v1::VmObserved)> then) {
  read(std::clamp(call->left(), std::chrono::milliseconds{50}, read_back_at_most), true,
       [self = shared_from_this(), then = std::move(then)](const std::string& stale) { then(self->observed(stale)); });
}

void machine::read(std::chrono::milliseconds within, bool ask_for_vcpus, std::function<void(const std::string&)> then) {
  ask(requests::info(), within, [self = shared_from_this(), ask_for_vcpus, then = std::move(then)](outcome o) {
    if (!self->record_ || !self->alive())
      return then({});
    if (!o.ok()) {
      const auto silent =
          self->who() + " did not say what the VM has: " + (o.kind == outcome_kind::answered ? o.reply.text() : o.why);
      if (o.kind == outcome_kind::answered || o.kind == outcome_kind::late)
        return then(silent);
      return self->when_ended([self, then, silent] { then(self->alive() ? silent : std::string{}); });
    }
    const auto info = parse_info(o.reply.body);
    if (!info)
      return then(self->who() + ": " + info.error);
    self->take(*info);
    auto& book = self->record_->book;
    if (!book.vcpus_leaving() || !ask_for_vcpus || book.state != v1::VM_STATE_RUNNING) {
      self->save();
      return then({});
    }
    // Asks for what was asked before: done means that the guest has let go, refused that it has not.
    self->ask(requests::resize_vcpus(book.vcpus_asked), look_at_most,
              [self, asked = book.vcpus_asked, then](outcome answer) {
                if (self->record_ && answer.ok() && self->record_->book.vcpus_asked == asked)
                  self->record_->book.vcpus_present = asked;
                self->save();
                then({});
              });
  });
}

void machine::take(const info_reply& info) {
  auto& book = record_->book;
  const auto before = book.devices;
  book.settle(info, facts_ && facts_->actual_size_counts_virtio_mem);
  // A creation whose end nobody has heard, and which has come to a good one.
  if (!record_->booted && !running_ && book.state == v1::VM_STATE_RUNNING)
    record_->booted = true;
  for (const auto& d : before)
    if (!book.device(d.id))
      tell_departed(d);
}

v1::VmObserved machine::observed(std::string stale_reason) const {
  v1::VmObserved o;
  o.set_vmm_call_us(spent_us_);
  if (!record_) {
    o.set_state(v1::VM_STATE_ABSENT);
    o.set_stop_reason("there is no such VM (never made, or destroyed)");
    return o;
  }
  const auto& book = record_->book;
  o.set_vmm_version(title_of(record_->version));
  if (!alive()) {
    o.set_state(v1::VM_STATE_STOPPED);
    o.set_stop_reason(record_->stop_reason);
    return o;
  }
  o.set_state(book.state);
  o.set_boot_bytes(book.boot_bytes);
  const bool virtio_mem = record_->spec.memory_method() == v1::MEMORY_METHOD_VIRTIO_MEM;
  o.set_plugged_bytes(virtio_mem ? book.virtio_mem_plugged_bytes : book.dimm_bytes());
  o.set_virtio_mem_requested_bytes(virtio_mem ? book.virtio_mem_requested_bytes : 0);
  for (const auto& d : book.dimms) {
    auto* dimm = o.add_dimms();
    dimm->set_id(d.id);
    dimm->set_size_bytes(d.size_bytes);
  }
  o.set_plugged_vcpus(book.vcpus_present);
  o.set_max_vcpus(record_->spec.max_vcpus());
  o.set_vmm_pid(record_->pid);
  o.set_vmm_start_ticks(record_->start_ticks);
  o.set_accelerator(record_->accelerator);
  *o.mutable_channels() = channels_of(record_->spec);
  for (const auto& d : book.devices) {
    auto* device = o.add_devices();
    device->set_id(d.id);
    device->set_kind(d.kind);
    device->set_leaving(d.leaving);
    device->set_address(d.address);
  }
  o.set_stale_reason(std::move(stale_reason));
  return o;
}

void machine::follow_virtio_mem() {
  look_at_virtio_mem(++follow_turn_, 0);
}

void machine::look_at_virtio_mem(std::uint64_t turn, std::size_t look) {
  if (look == looks_at_all)
    return;
  follow_timer_ = around_->on.after(before_look(look), [self = shared_from_this(), turn, look] {
    if (self->follow_turn_ != turn || !self->alive() || self->over_ || self->destroying_)
      return;
    self->read(look_at_most, false, [self, turn, look](const std::string& stale) {
      if (self->follow_turn_ != turn || !self->record_ || !self->alive())
        return;
      const auto& book = self->record_->book;
      if (stale.empty() && self->told_size_bytes_ != book.virtio_mem_plugged_bytes) {
        self->told_size_bytes_ = book.virtio_mem_plugged_bytes;
        self->tell(v1::VmEvent::KIND_MEMORY_SIZE,
                   "virtio-mem size is " + std::to_string(self->told_size_bytes_) + " bytes", "virtio-mem",
                   self->told_size_bytes_);
      }
      if (!stale.empty() || book.virtio_mem_plugged_bytes != book.virtio_mem_requested_bytes)
        self->look_at_virtio_mem(turn, look + 1);
    });
  });
}

} // namespace caisson::cloud_hypervisor
