// Random sequences of targets, cancels, pauses, faults, lost and late events and stubborn guests, against the model VM:
// the truth that the actor never sees but through answers. CAISSON_PROPERTY_RUNS sets how many; a failure names its
// seed.

#include "tests/actors/hotplug/scene.hpp"

namespace caisson::tests {
namespace {

struct sequence : hotplug_scene {
  std::mt19937_64 dice;
  std::size_t looked_at = 0; // of what was told
  std::uint64_t roll(std::uint64_t n) { return dice() % n; }
  bool chance(int percent) { return roll(100) < static_cast<std::uint64_t>(percent); }

  void TestBody() override {}

  void make_vm(std::uint64_t seed) {
    dice.seed(seed);
    vm->method = chance(50) ? v1::MEMORY_METHOD_DIMM : v1::MEMORY_METHOD_VIRTIO_MEM;
    vm->boot = (64 + roll(1024)) * mib;
    vm->boot_total = vm->boot - vm->boot / 10;
    vm->used = roll(vm->boot_total / mib) * mib * 8 / 10;
    vm->max = vm->boot + roll(16 * 1024) * mib;
    vm->features.set_workload_cgroup(chance(50));
    vm->tells_addresses = chance(60);
    vm->old_agent = chance(10);
    vm->workload = chance(50) ? roll(vm->boot_total / mib) * mib / 4 : 0;
    vm->workload_max = chance(20) ? vm->boot_total : 0;
    vm->slots = static_cast<std::uint32_t>(1 + roll(16));
    vm->takes = std::chrono::milliseconds{roll(4) == 0 ? 4'000 : 50};
    vm->lose_events = chance(20);
    vm->event_delay = std::chrono::milliseconds{chance(30) ? roll(5'000) : 0};
    const bool rebels = chance(30);
    vm->before_verb = [this, rebels] {
      bounds();
      if (rebels)
        misbehave();
    };
  }

  /// What must hold at every moment, looked at before each verb: what the model has, was asked to have, and what was told.
  void bounds() {
    EXPECT_LE(vm->boot + vm->plugged(), vm->max) << "never above the maximum";
    EXPECT_LE(vm->boot + vm->virtio_requested, vm->max) << "nor is more asked for";
    EXPECT_LE(vm->dimms.size(), vm->slots);
    const auto& all = told->of<v1::MemoryStatus>();
    for (; looked_at < all.size(); ++looked_at) {
      const auto& m = all[looked_at];
      EXPECT_EQ(m.boot_bytes(), vm->boot) << "what there was at boot is never taken";
      EXPECT_GE(m.target_bytes(), vm->boot);
      EXPECT_LE(m.target_bytes(), vm->max);
      EXPECT_LE(m.boot_bytes() + m.plugged_bytes(), vm->max);
      EXPECT_LE(m.slots_used(), vm->slots);
    }
  }

  /// The ledger, the model, and what the backend reads back are one.
  void agree() {
    v1::InspectVm look;
    look.set_sandbox_id("s1");
    look.set_deadline_ms(5'000);
    auto read = sys.ask<v1::VmObserved>(backend, look);
    sys.run_until([&] { return read.done(); });
    ASSERT_TRUE(read.value());
    const auto book = status(true);
    EXPECT_EQ(book.plugged_bytes(), vm->plugged()) << "the ledger is what the VMM has";
    EXPECT_EQ(read.value()->plugged_bytes(), vm->plugged()) << "and what is read back";
    EXPECT_EQ(book.boot_bytes(), vm->boot);
    EXPECT_EQ(book.slots_used(), vm->dimms.size());
  }

  void misbehave() {
    switch (roll(10)) {
    case 0:
      vm->online_most = vm->online + roll(1024) * mib;
      break;
    case 1:
      vm->online_most = UINT64_MAX;
      break;
    case 2:
      vm->virtio_most = roll(4096) * mib;
      break;
    case 3:
      vm->virtio_least = roll(1024) * mib;
      break;
    case 4:
      vm->virtio_least = 0;
      break;
    case 5:
      vm->ignores_removal = chance(50);
      break;
    case 6:
      for (const auto& d : vm->dimms)
        vm->refuses[d.id()] = static_cast<int>(roll(4));
      break;
    case 7:
      vm->agent_silent = chance(30);
      break;
    case 8:
      for (const auto& d : vm->dimms)
        vm->keeps_online[d.id()] = static_cast<int>(roll(4));
      break;
    case 9:
      vm->workload = roll(vm->boot_total / mib) * mib / 2;
      vm->workload_cache = roll(512) * mib;
      break;
    }
  }

  void fault_or_two() {
    for (auto n = roll(3); n > 0; --n)
      vm->faults.push_back(static_cast<fault>(roll(6))); // all but death
    if (chance(5))
      vm->faults.push_back(fault::die);
    if (chance(10))
      vm->silent_looks = static_cast<int>(roll(3));
  }

  std::uint64_t some_target() {
    const auto t = vm->boot + roll((vm->max - vm->boot) / mib + 1) * mib;
    return chance(10) ? t + 1 + roll(mib) : chance(5) ? roll(vm->max * 2) : t;
  }

  void check(const pending_answer<v1::HotplugOutcome>& a, bool alone) {
    ASSERT_TRUE(a.done()) << "never answered";
    if (!a.value()) {
      EXPECT_FALSE(text_of(a.error()).empty());
      return;
    }
    const auto& out = *a.value();
    const auto& m = out.memory();
    EXPECT_LE(m.target_bytes(), vm->max);
    EXPECT_GE(m.target_bytes(), vm->boot);
    switch (out.state()) {
    case v1::OPERATION_STATE_CONVERGED:
      EXPECT_EQ(m.boot_bytes() + m.plugged_bytes(), out.plan().memory_target_bytes());
      EXPECT_EQ(m.guest_bytes(), out.plan().memory_target_bytes());
      if (alone) {
        EXPECT_EQ(vm->plugged(), m.plugged_bytes()) << "what converged is what the VMM has";
        EXPECT_EQ(vm->online, m.plugged_bytes()) << "and what the guest uses";
      }
      break;
    case v1::OPERATION_STATE_FAILED:
      EXPECT_TRUE(out.has_error());
      [[fallthrough]];
    case v1::OPERATION_STATE_PARTLY:
    case v1::OPERATION_STATE_CANCELLED:
      EXPECT_FALSE(out.why().empty());
      break;
    default:
      ADD_FAILURE() << "an outcome in state " << out.state();
    }
  }

  void run(std::uint64_t seed) {
    make_vm(seed);
    up();
    int op = 0;
    for (auto rounds = 1 + roll(5); rounds > 0 && vm->vm_state == v1::VM_STATE_RUNNING; --rounds) {
      if (chance(40))
        fault_or_two();
      std::vector<pending_answer<v1::HotplugOutcome>> asked;
      const auto at_once = chance(25) ? 2 + roll(2) : 1;
      for (auto n = at_once; n > 0; --n) {
        asked.push_back(set_memory(some_target(), "op" + std::to_string(++op),
                                   std::chrono::milliseconds{chance(20) ? 1 + roll(30'000) : 0}));
        if (chance(70))
          sys.run_for(std::chrono::milliseconds{roll(3'000)});
        if (chance(10))
          cancel_memory("op" + std::to_string(op));
        if (chance(5))
          vm->event(v1::VmEvent::KIND_BACKEND_RESTARTED);
        if (chance(3))
          sys.after(std::chrono::milliseconds{roll(2'000)}, [this] { vm->die(); });
        if (chance(10))
          set_memory(some_target(), "dry", 0ms, true);
        if (chance(10))
          misbehave();
      }
      sys.run_until([&] { return std::ranges::all_of(asked, [](auto& a) { return a.done(); }); }, 30min);
      for (const auto& a : asked)
        check(a, at_once == 1 && vm->event_delay.count() == 0 && vm->vm_state == v1::VM_STATE_RUNNING);
      bounds();
      vm->agent_silent = false;
      vm->silent_looks = 0;
      sys.run_for(20s);
      if (vm->vm_state != v1::VM_STATE_RUNNING)
        break;
      agree();
      sys.run_for(1s);
      ASSERT_TRUE(vm->offline.empty()) << "nothing stays offline that stays";
      ASSERT_EQ(vm->workload_high, 0u) << "the workload is held only while memory leaves";
    }
  }
};

TEST(hotplug_sequences, keep_the_ledger_true_and_answer_everybody) {
  const char* more = std::getenv("CAISSON_PROPERTY_RUNS");
  const auto runs = more ? std::strtoull(more, nullptr, 10) : 5'000;
  const char* one = std::getenv("CAISSON_SEED");
  for (std::uint64_t i = 1; i <= (one ? 1 : runs); ++i) {
    const auto seed = one ? std::strtoull(one, nullptr, 10) : i;
    SCOPED_TRACE("CAISSON_SEED=" + std::to_string(seed));
    sequence s;
    s.sys.random().seed(seed);
    s.run(seed);
    s.TearDown();
    if (testing::Test::HasFailure())
      break;
  }
}

} // namespace
} // namespace caisson::tests
