#include "backends/cloud-hypervisor/machine.hpp"

#include <algorithm>
#include <csignal>
#include <utility>

#include "backends/cloud-hypervisor/capabilities.hpp"
#include "backends/cloud-hypervisor/vmm_process.hpp"
#include "backends/host/server.hpp"
#include "backends/host/wire.hpp"

namespace caisson::cloud_hypervisor {
namespace {

using namespace std::chrono_literals;

// Between a connection's end and the news that its process has ended, too.
constexpr auto end_may_follow = 300ms;
constexpr int most_event_reads = 64;

std::string doing_of(const v1::BackendCall& what) {
  auto sandbox = host::sandbox_of(what);
  return std::string{host::verb_name(what)} + (sandbox.empty() ? "" : " of sandbox " + escaped_text(sandbox, 64));
}

} // namespace

pending_call::pending_call(v1::BackendCall call, answer_function answer)
    : what{std::move(call)}, doing{doing_of(what)}, answer_{std::move(answer)},
      deadline_ms_{host::deadline_ms_of(what)}, deadline_{std::chrono::steady_clock::now() +
                                                          std::chrono::milliseconds{deadline_ms_}} {}

void pending_call::finish(v1::BackendAnswer with) {
  if (auto answer = std::exchange(answer_, {})) {
    overdue.cancel();
    answer(std::move(with));
  }
}

void pending_call::succeed(v1::VmObserved observed) {
  finish(host::success(std::move(observed)));
}

void pending_call::fail(const problem& why) {
  finish(host::failure(why.code, what.has_describe() ? why.text : doing + ": " + why.text));
}

std::chrono::milliseconds pending_call::left() const {
  auto rest = std::chrono::duration_cast<std::chrono::milliseconds>(deadline_ - std::chrono::steady_clock::now());
  return std::max(rest, std::chrono::milliseconds{0});
}

machine::machine(std::shared_ptr<surroundings> around, std::string sandbox_id)
    : around_{std::move(around)}, id_{std::move(sandbox_id)} {}

void machine::recover(vm_record record) {
  record_ = std::move(record);
  facts_ = judge_version(record_->version).facts;
  for (const auto& held : record_->book.devices) // taken up long ago, or never to be
    activated_.insert(held.id);
  events_ = std::make_unique<event_file>(around_->store.event_file(id_), record_->events_read_bytes);
  if (record_->pid == 0) {
    record_->pid = find_vmm(api_socket(record_->spec.run_directory()));
    record_->start_ticks = record_->pid == 0 ? 0 : reactor::start_ticks_of(record_->pid);
  }
  if (record_->pid != 0 && process_state(record_->pid) != 'Z')
    watch(around_->on.watch(record_->pid, record_->start_ticks,
                            [self = shared_from_this()](const reactor::exit_status& s) { self->exited(s); }));
  if (!alive())
    return exited({});
  api_ = std::make_unique<api_client>(around_->on, api_socket(record_->spec.run_directory()));
  save();
  look_at_files();
}

void machine::watch(std::shared_ptr<reactor::child> child) {
  child_ = std::move(child);
}

void machine::submit(const call_ptr& call) {
  call->overdue = around_->on.after(call->left(), [weak = std::weak_ptr{call}] {
    if (auto late = weak.lock())
      late->fail({"outcome_unknown", "not done within " + std::to_string(late->deadline_ms()) +
                                         " ms; it may still take effect, inspect tells"});
  });
  if (call->what.has_inspect())
    return inspect(call);
  if (call->what.has_destroy())
    return destroy(call);
  if (destroying_)
    return call->fail({"vmm_died", "the VM is being destroyed"});
  waiting_.push_back(call);
  run_next();
}

void machine::run_next() {
  while (!running_ && !waiting_.empty()) {
    auto call = std::move(waiting_.front());
    waiting_.pop_front();
    if (!call->open())
      continue; // its deadline has come before its turn: it is not done
    running_ = call;
    const auto& what = call->what;
    if (what.has_create()) {
      create(call);
      continue;
    }
    if (!record_ || !alive()) {
      refuse(call, ended_problem());
    } else if (!record_->booted) {
      refuse(call, {"backend_refused", "the VM has not booted; nothing was changed"});
    } else if (process_state(record_->pid) == 'T') {
      refuse(call,
             {"backend_refused", who() + " is stopped by a signal and does nothing; nothing was changed: let it go "
                                         "on (SIGCONT) or destroy the VM"});
    } else if (what.has_apply_memory_step()) {
      memory_step(call);
    } else if (what.has_set_vcpus()) {
      set_vcpus(call, what.set_vcpus().count());
    } else if (what.has_pause() || what.has_resume()) {
      pause(call, what.has_pause());
    } else if (what.has_attach() && what.attach().has_disk()) {
      const auto& disk = what.attach().disk();
      attach(call, disk.id(), "disk", requests::add_disk(disk_of(disk)));
    } else if (what.has_attach() && what.attach().has_net()) {
      const auto& net = what.attach().net();
      attach(call, net.id(), "net", requests::add_net(net_of(net)));
    } else if (what.has_detach()) {
      detach_device(call, what.detach().device_id());
    } else {
      refuse(call, {"invalid_argument", "the Cloud Hypervisor backend does not know what this asks for"});
    }
  }
}

void machine::end_verb(const call_ptr& call) {
  if (running_ != call)
    return;
  step_timer_.cancel();
  awaited_device_.clear();
  running_.reset();
  around_->on.post([self = shared_from_this()] { self->run_next(); });
}

void machine::succeed(const call_ptr& call) {
  read_back(call, [self = shared_from_this(), call](v1::VmObserved seen) {
    if (!self->alive())
      return self->refuse(call, self->ended_problem());
    call->succeed(std::move(seen));
    self->end_verb(call);
  });
}

void machine::refuse(const call_ptr& call, problem why) {
  call->fail(why);
  end_verb(call);
}

void machine::ask(request what, std::chrono::milliseconds within, next_step then,
                  const std::vector<int>& descriptors) {
  auto guarded = [self = shared_from_this(), then = std::move(then)](outcome o) {
    self->spent_us_ += static_cast<std::uint64_t>(o.spent.count());
    if (!self->over_ && !self->destroying_)
      then(std::move(o));
  };
  if (api_)
    return api_->call(std::move(what), within, std::move(guarded), descriptors);
  outcome none;
  none.why = who() + " has ended";
  around_->on.post([guarded, none] { guarded(none); });
}

// A connection that ends may be the first that is seen of a process that ends: waits for the news of that, but not
// long.
void machine::when_ended(std::function<void()> then) {
  if (!alive())
    return then();
  const auto waiter = ++last_waiter_;
  when_ended_[waiter] = {std::move(then), around_->on.after(end_may_follow, [self = shared_from_this(), waiter] {
                           self->end_waited(waiter);
                         })};
}

void machine::end_waited(std::uint64_t waiter) {
  if (auto node = when_ended_.extract(waiter); !node.empty() && !over_ && !destroying_)
    node.mapped().then();
}

void machine::unanswered(const call_ptr& call, const outcome& o, const std::string& doing) {
  when_ended([self = shared_from_this(), call, o, doing] {
    if (!self->alive())
      return self->refuse(call, self->ended_problem());
    if (o.kind == outcome_kind::malformed)
      return self->refuse(call, {"internal", doing + ": " + o.why});
    if (!o.sent || o.kind == outcome_kind::refused)
      return self->refuse(
          call, {"backend_refused", doing + ": " + self->who() + " was not reached, nothing was changed: " + o.why});
    self->refuse(call, {"outcome_unknown", doing + ": the answer of " + self->who() + " was lost (" + o.why +
                                               "); it may have taken effect, inspect tells"});
  });
}

void machine::save() {
  if (!record_)
    return;
  if (events_)
    record_->events_read_bytes = events_->read_bytes();
  if (auto why = around_->store.save(*record_); !why.empty())
    around_->log("sandbox " + id_ + ": " + why);
}

std::string machine::who() const {
  return title_of(record_ ? record_->version : std::string{}) +
         (record_ && record_->pid ? " (pid " + std::to_string(record_->pid) + ")" : "");
}

problem machine::ended_problem() const {
  if (!record_)
    return {"vmm_died", "there is no such VM (never made, or destroyed)"};
  return {"vmm_died", "the VM has ended: " + (record_->stop_reason.empty() ? "unseen" : record_->stop_reason)};
}

void machine::tell(v1::VmEvent::Kind kind, std::string text, std::string device_id, std::uint64_t size_bytes) const {
  v1::VmEvent e;
  e.set_sandbox_id(id_);
  e.set_kind(kind);
  e.set_text(std::move(text));
  e.set_device_id(std::move(device_id));
  e.set_size_bytes(size_bytes);
  around_->tell(e);
}

void machine::tell_departed(const held_device& device) const {
  tell(v1::VmEvent::KIND_DEVICE_REMOVED, device.kind + " " + device.id + " has left the VM", device.id);
}

void machine::look_at_files() {
  if (!record_ || over_)
    return;
  bound_log(around_->store.log_file(id_));
  for (int turn = 0; events_; ++turn) {
    if (turn == most_event_reads) // somebody floods it: the others get their turn
      return around_->on.post([self = shared_from_this()] { self->look_at_files(); });
    auto news = events_->read();
    if (news.empty())
      return;
    for (const auto& event : news)
      take_event(event);
  }
}

void machine::take_event(const vmm_event& event) {
  if (event.is("guest", "panic"))
    return end_now(v1::VmEvent::KIND_GUEST_PANICKED, "guest panicked");
  if (event.is("vm", "rebooting")) // only a guest asks for it; a sandbox that reboots is a sandbox that ended
    return end_now(v1::VmEvent::KIND_GUEST_STOPPED, "guest reset itself, which ends its sandbox");
  if (event.is("vmm", "shutdown"))
    asked_to_end_ = true;
  if (event.is("virtio-device", "activated"))
    return device_activated(event.property("id"));
  if (!event.is("vm", "device-removed"))
    return;
  if (const auto* held = record_->book.device(event.property("id"))) {
    const auto device = *held;
    record_->book.device_left(device.id);
    save();
    tell_departed(device);
  }
}

void machine::device_activated(const std::string& id) {
  if (!valid_id(id)) // one of the VMM's own
    return;
  activated_.insert(id);
  if (id != awaited_device_)
    return;
  awaited_device_.clear();
  step_timer_.cancel();
  around_->on.post([self = shared_from_this(), call = running_] {
    if (call && self->running_ == call)
      self->remove_device(call);
  });
}

void machine::end_now(v1::VmEvent::Kind kind, std::string why) {
  if (destroying_ || record_->ended != v1::VmEvent::KIND_UNSPECIFIED)
    return;
  record_->ended = kind;
  record_->stop_reason = std::move(why);
  save();
  if (alive())
    child_->kill(SIGKILL);
}

void machine::exited(const reactor::exit_status& status) {
  if (over_ || !record_)
    return;
  child_.reset();
  look_at_files();
  if (destroying_)
    return finish_destroy();
  if (create_failure_)
    return finish_failed_create();
  if (running_ && running_->what.has_create() && !record_->booted) {
    const auto words = last_words(around_->store.log_file(id_));
    const bool no_kvm =
        words.find("hypervisor interface") != std::string::npos || words.find("/dev/kvm") != std::string::npos;
    const bool denied = no_kvm && words.find("ermission denied") != std::string::npos;
    return fail_create({denied ? "host_denied" : no_kvm ? "host_missing" : "backend_refused",
                        who() + " " + status.text() + " while the VM was being made" +
                            (no_kvm ? "; it needs a /dev/kvm that this user may open, from its start on" : "") +
                            (words.empty() ? "" : "; its last words: " + words)});
  }
  if (record_->ended == v1::VmEvent::KIND_UNSPECIFIED) {
    const bool orderly = status.known ? !status.signalled && status.code == 0 : asked_to_end_;
    record_->ended = orderly ? v1::VmEvent::KIND_GUEST_STOPPED : v1::VmEvent::KIND_VMM_DIED;
    if (orderly) {
      // Both leave the same events and the same exit status.
      record_->stop_reason = "guest shut down, or somebody asked the VMM to end (SIGTERM)";
    } else {
      const auto words = last_words(around_->store.log_file(id_));
      record_->stop_reason =
          "vmm died: " + who() + " " +
          (!status.known ? "is gone, unasked"
           : status.signalled && status.code == SIGSYS
               ? "was ended by its own seccomp filter (SIGSYS): it made a system call that the filter does not know"
               : status.text()) +
          (words.empty() ? "" : "; its last words: " + words);
    }
  }
  record_->book.state = v1::VM_STATE_STOPPED;
  save();
  api_.reset(); // what waits for an answer hears of it
  while (!when_ended_.empty())
    end_waited(when_ended_.begin()->first);
  tell(record_->ended, record_->stop_reason);
}

void machine::leave() {
  over_ = true;
  step_timer_.cancel();
  follow_timer_.cancel();
  when_ended_.clear();
  const problem gone{"backend_lost", "the engine is ending"};
  if (running_)
    running_->fail(gone);
  for (auto* calls : {&looking_, &destroyers_})
    for (auto& call : *calls)
      call->fail(gone);
  for (auto& call : waiting_)
    call->fail(gone);
  waiting_.clear();
  running_.reset();
  api_.reset();
  save();
}

} // namespace caisson::cloud_hypervisor
