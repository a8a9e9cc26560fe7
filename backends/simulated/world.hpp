#pragma once

/// A simulated world: machines that live outside of every engine, as virtual machine monitors do. An engine may vanish
/// and another one attach; what was submitted takes effect all the same, and the machines run on. No actors in here:
/// time comes from whoever is attached, answers and news go out through functions.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "backends/simulated/fault_plan.hpp"
#include "backends/simulated/model_guest.hpp"
#include "backends/simulated/model_machine.hpp"
#include "backends/simulated/timeline.hpp"
#include "messages/backend.pb.h"
#include "messages/error.hpp"

namespace caisson::backends::simulated {

/// Who uses the world. The functions are called with the world's lock held: they pass on and return.
struct world_user {
  std::function<timeline::time()> clock;            ///< time since it attached; any thread
  std::function<void(const v1::VmEvent&)> on_event; ///< of every machine
  std::function<void()> on_wake;                    ///< the next thing is due earlier than arm() last said
};

/// One end of a machine's channel. The functions are called with the world's lock held.
struct connection_events {
  std::function<void()> on_readable;
  std::function<void()> on_writable; ///< a write() that was refused may be tried again
  /// Once, not after disconnect(): why, and what had been written and not read yet.
  std::function<void(std::string why, std::vector<std::byte> rest)> on_closed;
};

/// One machine as it truly is, for tests that compare it with what an engine says.
struct machine_picture {
  v1::VmState state = v1::VM_STATE_ABSENT;
  std::uint64_t boot_bytes = 0, plugged_bytes = 0;
  std::uint64_t guest_plugged_bytes = 0; ///< what the guest has online beyond its boot memory
  std::uint64_t virtio_mem_requested_bytes = 0;
  std::size_t dimms = 0;
  std::uint32_t plugged_vcpus = 0, online_vcpus = 0;
  bool agent_answers = false;
};

/// Thread safe.
class world {
public:
  using user_id = std::uint64_t;
  using connection_id = std::uint64_t;
  using answer_function = std::function<void(v1::BackendAnswer)>;

  explicit world(fault_plan plan = {});
  ~world();
  world(const world&) = delete;
  world& operator=(const world&) = delete;

  // ---- for a provider ----
  user_id attach(world_user user);
  /// Its connections are closed, its pending verbs have taken effect by now or never will. None of its functions runs
  /// afterwards.
  void detach(user_id user);
  /// Lets everything happen that is due, and says how long it is until the next thing.
  std::optional<timeline::time> arm(user_id user);

  /// The contract of backends/backend.hpp. `answer` is called exactly once unless the user detaches before, with the
  /// world's lock held, never from inside submit.
  void submit(user_id user, v1::BackendCall call, answer_function answer);

  /// Endpoints "simulated:ID" (the agent) and "simulated:ID/console". 0 and `problem` where there is no such machine. A
  /// connection that exists is closed in favour of the new one.
  connection_id connect(user_id user, std::string_view endpoint, connection_events events, std::string& problem);
  /// False: the other side does not read now, nothing was taken; on_writable follows when it does.
  bool write(connection_id connection, std::span<const std::byte> bytes);
  /// At most `limit` bytes or a little more; empty: nothing there, on_readable follows when there is.
  std::vector<std::byte> read(connection_id connection, std::size_t limit);
  void disconnect(connection_id connection);

  // ---- for tests: what really is, and blows of fate ----
  void set_plan(const fault_plan& plan); ///< for what happens from now on; machines keep their habits
  [[nodiscard]] fault_plan plan() const;
  [[nodiscard]] std::vector<std::string> machines() const;
  [[nodiscard]] machine_picture look(const std::string& id) const;
  void kill_vmm(const std::string& id, const std::string& how = "killed by signal 9");
  void panic_guest(const std::string& id);
  /// As if the processes of all users had been killed: nothing that they do reaches the world any more.
  void detach_all();
  /// Verbs that are not at their end: unanswered, or answered "unknown" and still to take effect.
  [[nodiscard]] std::size_t verbs_under_way() const;
  [[nodiscard]] std::size_t connections() const;

private:
  enum class boot_fate { normal, never, panic, silent };
  enum class fate { normal, refused, lost, late, dies_before, dies_after };
  struct vm;
  struct verb {
    user_id user = 0; // 0: nobody waits for it any more
    std::string sandbox_id;
    v1::BackendCall call;
    fate how = fate::normal;
    bool panics = false; // the guest does, some time after it
    answer_function answer;
    timeline::ticket effect, deadline;
    bool changes = false; // a destroy or a death ends it
    bool answered = false, done = false;
  };
  struct connection {
    user_id user = 0;
    std::string sandbox_id;
    bool console = false;
    bool refused = false; // a write was refused; on_writable is owed
    std::size_t console_at = 0;
    connection_events events;
  };
  struct attached {
    world_user user;
    timeline::time base{0};
    std::optional<timeline::time> armed;
    bool waking = false;
  };

  void enter(user_id user);
  void forget_user(user_id user);
  void wake_users();
  fate draw_fate(const v1::BackendCall& call);
  void take_effect(std::uint64_t tag);
  void answer(std::uint64_t tag, v1::BackendAnswer what);
  void settle(std::uint64_t tag);

  // The verbs (world_verbs.cpp).
  v1::BackendAnswer perform(const v1::BackendCall& call);
  v1::BackendAnswer create(const v1::CreateVm& m);
  v1::BackendAnswer apply(const v1::ApplyMemoryStep& m);
  v1::BackendAnswer set_vcpus(const v1::SetVmVcpus& m);
  v1::BackendAnswer attach(const v1::AttachDevice& m);
  v1::BackendAnswer detach(const v1::DetachDevice& m);
  v1::BackendAnswer pause(const std::string& id, bool on);
  v1::BackendAnswer destroy(const std::string& id);
  [[nodiscard]] v1::BackendAnswer describe(const v1::DescribeBackend& m) const;
  [[nodiscard]] v1::VmObserved observe(const std::string& id) const;
  vm* running(const std::string& id, v1::BackendAnswer& why_not);
  void start_boot(vm& v);
  void guest_up(vm& v);
  void on_news(vm& v, const machine_news& news);
  void stop(vm& v, std::string reason);
  void die(vm& v, const std::string& how);
  void print(vm& v, std::string_view line);
  void event(v1::VmEvent e);
  void fail_verbs_of(const std::string& id, const std::string& why);
  std::vector<std::byte> take(connection& c, std::size_t limit);
  void writable(vm& v);
  void close_connection(connection_id id, const std::string& why);
  [[nodiscard]] vm* find(const std::string& id) const;

  mutable std::mutex mutex_;
  fault_plan plan_;
  dice dice_;
  timeline time_;
  std::map<std::string, std::unique_ptr<vm>> vms_;
  std::map<user_id, attached> users_;
  std::unordered_map<std::uint64_t, verb> verbs_;
  std::map<std::string, std::set<std::uint64_t>> verbs_of_; // by sandbox
  std::unordered_map<connection_id, connection> connections_;
  std::map<std::string, std::uint32_t> verb_counts_;
  std::uint64_t last_id_ = 0;
  std::uint64_t acting_ = 0; // the verb that takes effect now
};

/// The world of a state directory in this process; made at the first call, with the faults that
/// CAISSON_SIMULATED_FAULTS names. `problem` says what is wrong with those. It lives until forget_world, as machines
/// outlive an engine.
std::shared_ptr<world> world_of(const std::string& state_directory, std::string& problem);
void forget_world(const std::string& state_directory);

} // namespace caisson::backends::simulated
