#pragma once

/// One VM: its VMM's process, its API, its events, and the contract's verbs (backends/backend.hpp) on them. No CAF.
/// Everything happens on the reactor's thread, in callbacks.
///
///   nothing --CreateVm--> starting --ping--> made --vm.boot, vm.info says Running--> booted
///      ^                     |                 |                                       |
///      |                     +-----------------+------- something fails: SIGKILL       |  the process ends: ended
///      +--------------- swept (files and record removed) <----------- DestroyVm -------+
///
/// A record (records.hpp) is written before the process starts and before each request whose effect could not be read
/// back otherwise, so that a later engine knows what this one knew. One verb at a time, in their order; inspect and
/// destroy beside them. A request whose answer is lost is never repeated: the verb answers `outcome_unknown`, and the
/// next vm.info settles what became of it.

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "backends/cloud-hypervisor/api_client.hpp"
#include "backends/cloud-hypervisor/event_file.hpp"
#include "backends/cloud-hypervisor/records.hpp"
#include "backends/cloud-hypervisor/spec.hpp"
#include "messages/backend.pb.h"
#include "reactor/reactor.hpp"

namespace caisson::cloud_hypervisor {

using answer_function = std::function<void(v1::BackendAnswer)>;

/// A verb that waits for its answer. Answered once: the first answer counts.
class pending_call {
public:
  pending_call(v1::BackendCall what, answer_function answer);

  const v1::BackendCall what;
  const std::string doing; ///< "create of sandbox a"

  bool open() const { return static_cast<bool>(answer_); }
  void succeed(v1::VmObserved observed);
  void fail(const problem& why); ///< the text is completed with `doing`
  void finish(v1::BackendAnswer with);
  std::chrono::milliseconds left() const;
  std::uint32_t deadline_ms() const { return deadline_ms_; }

  reactor::timer overdue;

private:
  answer_function answer_;
  std::uint32_t deadline_ms_;
  std::chrono::steady_clock::time_point deadline_;
};
using call_ptr = std::shared_ptr<pending_call>;

/// What the machines of one driver share.
struct surroundings {
  reactor::reactor& on;
  records store;
  std::function<void(const v1::VmEvent&)> tell;
  std::function<void(const std::string& sandbox_id)> forget; ///< nothing of this VM is left
  std::function<void(const std::string&)> log;
};

class machine : public std::enable_shared_from_this<machine> {
public:
  machine(std::shared_ptr<surroundings> around, std::string sandbox_id);

  /// Takes up what an earlier engine has left. Once, before any verb.
  void recover(vm_record record);
  void submit(const call_ptr& call);
  /// The event stream, the log or something else in their directory has changed.
  void look_at_files();
  /// The engine ends: what waits is answered with backend_lost, the VM lives on.
  void leave();

  bool recorded() const { return record_.has_value(); }
  /// Nothing is left of the VM, and nobody waits for one.
  bool idle() const { return !record_ && !running_ && waiting_.empty(); }

private:
  using next_step = std::function<void(outcome)>;

  // machine.cpp: the process, and what all verbs need
  void run_next();
  void end_verb(const call_ptr& call);
  void succeed(const call_ptr& call);
  void refuse(const call_ptr& call, problem why);
  void ask(request what, std::chrono::milliseconds within, next_step then, const std::vector<int>& descriptors = {});
  void unanswered(const call_ptr& call, const outcome& o, const std::string& doing);
  void save();
  void watch(std::shared_ptr<reactor::child> child);
  void exited(const reactor::exit_status& status);
  void when_ended(std::function<void()> then);
  void end_waited(std::uint64_t waiter);
  void end_now(v1::VmEvent::Kind kind, std::string why);
  void take_event(const vmm_event& event);
  void device_activated(const std::string& id);
  void tell(v1::VmEvent::Kind kind, std::string text, std::string device_id = {}, std::uint64_t size_bytes = 0) const;
  void tell_departed(const held_device& device) const;
  problem ended_problem() const;
  std::string who() const;
  bool alive() const { return child_ != nullptr; }

  // create.cpp
  void create(const call_ptr& call);
  problem check_host(v1::VmSpec& spec) const;
  problem start_process(const v1::VmSpec& spec);
  void await_api(const call_ptr& call, std::chrono::steady_clock::time_point until);
  void take_ping(const call_ptr& call, const outcome& o);
  void make_vm(const call_ptr& call);
  void add_nets(const call_ptr& call, std::size_t next);
  void boot_vm(const call_ptr& call);
  void look_at_boot(const call_ptr& call, const outcome& boot);
  void fail_create(problem why);
  void finish_failed_create();
  void sweep(bool run_directory_too);

  // verbs.cpp
  void memory_step(const call_ptr& call);
  void plug_dimm(const call_ptr& call, const plugged_dimm& dimm);
  void request_virtio_mem(const call_ptr& call, std::uint64_t bytes);
  void set_vcpus(const call_ptr& call, std::uint32_t count);
  void send_vcpus(const call_ptr& call, std::uint32_t count, int attempt);
  void await_departing_vcpus(const call_ptr& call, std::uint32_t count, int attempt);
  void pause(const call_ptr& call, bool paused);
  void attach(const call_ptr& call, const std::string& id, const char* kind, request add);
  void detach_device(const call_ptr& call, const std::string& id);
  void remove_device(const call_ptr& call);
  void destroy(const call_ptr& call);
  void kill_until_gone();
  void finish_destroy();

  // inspect.cpp
  void inspect(const call_ptr& call);
  void read_back(const call_ptr& call, std::function<void(v1::VmObserved)> then);
  void read(std::chrono::milliseconds within, bool ask_for_vcpus, std::function<void(const std::string& stale)> then);
  void take(const info_reply& info);
  v1::VmObserved observed(std::string stale_reason) const;
  void follow_virtio_mem();
  void look_at_virtio_mem(std::uint64_t turn, std::size_t look);

  const std::shared_ptr<surroundings> around_;
  const std::string id_;
  std::optional<vm_record> record_;
  const version_facts* facts_ = nullptr;
  std::shared_ptr<reactor::child> child_; ///< lives; null: no process
  std::unique_ptr<api_client> api_;
  std::unique_ptr<event_file> events_;
  bool asked_to_end_ = false; ///< the event stream has told an orderly shutdown
  bool over_ = false;         ///< destroyed, or the engine ends: callbacks do nothing any more
  bool destroying_ = false;
  std::vector<call_ptr> destroyers_;
  vm_config config_;                      ///< of the creation that is under way
  std::optional<problem> create_failure_; ///< told when the process has gone
  std::deque<call_ptr> waiting_;
  call_ptr running_;
  std::vector<call_ptr> looking_; ///< inspects
  struct end_waiter {
    std::function<void()> then;
    reactor::timer patience;
  };
  std::map<std::uint64_t, end_waiter> when_ended_;
  std::uint64_t last_waiter_ = 0;
  std::set<std::string> activated_; ///< devices whose driver in the guest is up
  std::string awaited_device_;      ///< whose removal, the running verb, waits for that
  reactor::timer step_timer_;       ///< of the running verb, or of destroy
  reactor::timer follow_timer_;
  std::uint64_t follow_turn_ = 0;
  std::uint64_t told_size_bytes_ = 0;
  std::uint64_t spent_us_ = 0;
};

} // namespace caisson::cloud_hypervisor
