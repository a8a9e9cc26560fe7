#include "tests/conformance/conformance.hpp"

#include <poll.h>

namespace caisson::tests {

void conformance::SetUp() {
  if (auto why = place_of(GetParam()).missing; !why.empty())
    GTEST_SKIP() << GetParam().name << ": not tried, " << why;
  on = std::make_unique<rig>(GetParam());
  auto can = on->describe();
  ASSERT_TRUE(can) << can.text();
  capabilities = *can.value;
  if (!grows() && (capabilities.dimm() || capabilities.virtio_mem()))
    GTEST_SKIP() << GetParam().name << ": not tried, "
                 << (dimm() ? capabilities.dimm_why_not() : capabilities.virtio_mem_why_not());
}

void conformance::TearDown() {
  if (!on)
    return;
  if (auto* world = on->world())
    world->set_plan(world->plan().calm());
  for (const auto& id : made) {
    auto gone = on->destroy(on->backend(id, std::make_shared<news_box>()), id);
    EXPECT_TRUE(gone) << gone.text();
    if (gone) {
      EXPECT_EQ(gone->state(), v1::VM_STATE_ABSENT);
    }
  }
  on.reset(); // which looks whether anything was left behind
}

v1::CreateVm conformance::create_message(const std::string& id, std::uint64_t max_bytes, std::uint32_t slots,
                                         std::uint32_t max_vcpus) {
  if (std::find(made.begin(), made.end(), id) == made.end())
    made.push_back(id);
  v1::CreateVm m;
  *m.mutable_spec() = on->spec(id, grows() ? max_bytes : boot_bytes, slots, capabilities.vcpu_plug() ? max_vcpus : 1);
  m.set_deadline_ms(60'000);
  return m;
}

::testing::AssertionResult conformance::meet(std::unique_ptr<guest_client>& guest, const v1::VmObserved& vm) {
  if (!on->here().agent)
    return ::testing::AssertionSuccess();
  guest = on->guest(vm);
  if (guest)
    return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "the guest's agent did not answer";
}

reply<v1::VmObserved> conformance::plug(const backend_actor& b, const std::string& id, const std::string& dimm_id,
                                        std::uint64_t bytes, std::uint32_t deadline_ms) {
  v1::ApplyMemoryStep m;
  m.set_sandbox_id(id);
  m.mutable_plug_dimm()->set_id(dimm_id);
  m.mutable_plug_dimm()->set_size_bytes(bytes);
  m.set_deadline_ms(deadline_ms);
  return on->ask<v1::VmObserved>(b, m);
}

reply<v1::VmObserved> conformance::unplug(const backend_actor& b, const std::string& id, const std::string& dimm_id) {
  v1::ApplyMemoryStep m;
  m.set_sandbox_id(id);
  m.set_unplug_dimm_id(dimm_id);
  return on->ask<v1::VmObserved>(b, m);
}

reply<v1::VmObserved> conformance::request(const backend_actor& b, const std::string& id, std::uint64_t bytes,
                                           std::uint32_t deadline_ms) {
  v1::ApplyMemoryStep m;
  m.set_sandbox_id(id);
  m.set_virtio_mem_requested_bytes(bytes);
  m.set_deadline_ms(deadline_ms);
  return on->ask<v1::VmObserved>(b, m);
}

reply<v1::VmObserved> conformance::vcpus(const backend_actor& b, const std::string& id, std::uint32_t count,
                                         std::uint32_t deadline_ms) {
  v1::SetVmVcpus m;
  m.set_sandbox_id(id);
  m.set_count(count);
  m.set_deadline_ms(deadline_ms);
  return on->ask<v1::VmObserved>(b, m);
}

reply<v1::VmObserved> conformance::attach_disk(const backend_actor& b, const std::string& id,
                                               const std::string& disk_id, const std::string& path,
                                               std::uint32_t deadline_ms) {
  v1::AttachDevice m;
  m.set_sandbox_id(id);
  m.mutable_disk()->set_id(disk_id);
  m.mutable_disk()->set_path(path);
  m.set_deadline_ms(deadline_ms);
  return on->ask<v1::VmObserved>(b, m);
}

reply<v1::VmObserved> conformance::attach_net(const backend_actor& b, const std::string& id, const std::string& net_id,
                                              const std::string& tap, std::uint32_t deadline_ms) {
  v1::AttachDevice m;
  m.set_sandbox_id(id);
  m.set_deadline_ms(deadline_ms);
  m.mutable_net()->set_id(net_id);
  m.mutable_net()->set_tap_name(tap);
  m.mutable_net()->set_mac("52:54:00:ca:15:50");
  return on->ask<v1::VmObserved>(b, m);
}

reply<v1::VmObserved> conformance::detach(const backend_actor& b, const std::string& id, const std::string& device_id,
                                          std::uint32_t deadline_ms) {
  v1::DetachDevice m;
  m.set_sandbox_id(id);
  m.set_device_id(device_id);
  m.set_deadline_ms(deadline_ms);
  return on->ask<v1::VmObserved>(b, m);
}

bool conformance::can_have_taps() {
  std::string why;
  for (std::size_t i = taps.size(); i < 2; ++i) {
    auto made_one = on->tap(why);
    if (made_one.empty())
      return false;
    taps.push_back(std::move(made_one));
  }
  return true;
}

std::vector<conformance::deed> conformance::verbs(const backend_actor& b, const std::string& id) {
  std::vector<deed> out;
  if (grows()) {
    const auto bytes = dimm() ? 128 * mib : 64 * mib;
    out.push_back({"memory",
                   {},
                   [=, this](auto ms) { return grow(b, id, bytes, ms); },
                   [=, this](const auto& vm) {
                     return dimm() ? vm.plugged_bytes() == bytes : vm.virtio_mem_requested_bytes() == bytes;
                   },
                   {}});
  }
  if (capabilities.vcpu_plug())
    out.push_back({"vcpus",
                   {},
                   [=, this](auto ms) { return vcpus(b, id, 2, ms); },
                   [](const auto& vm) { return vm.plugged_vcpus() == 2; },
                   {}});
  using attaching = std::function<reply<v1::VmObserved>(const std::string& device_id, std::uint32_t ms)>;
  const auto device_verbs = [&](const std::string& kind, const attaching& attach) {
    const auto stays = "staying-" + kind, leaves = "leaving-" + kind;
    out.push_back({"attach " + kind,
                   {},
                   [=](auto ms) { return attach(stays, ms); },
                   [=](const auto& vm) { return device_in(vm, stays) != nullptr; },
                   {}});
    out.push_back({"detach " + kind,
                   [=] { return attach(leaves, 0); },
                   [=, this](auto ms) { return detach(b, id, leaves, ms); },
                   [=](const auto& vm) {
                     const auto* d = device_in(vm, leaves);
                     return !d || d->leaving();
                   },
                   {}});
  };
  if (capabilities.disks())
    device_verbs("disk", [=, this](const std::string& device_id, std::uint32_t ms) {
      return attach_disk(b, id, device_id, on->image(device_id), ms);
    });
  if (capabilities.nets() && can_have_taps())
    device_verbs("net", [=, this](const std::string& device_id, std::uint32_t ms) {
      return attach_net(b, id, device_id, taps.at(device_id.front() == 's' ? 0 : 1), ms);
    });
  if (capabilities.pause()) {
    const auto pause = [=, this](auto ms) { return simple<v1::PauseVm>(b, id, ms); };
    const auto resume = [=, this](auto ms) { return simple<v1::ResumeVm>(b, id, ms); };
    out.push_back({"pause", {}, pause, [](const auto& vm) { return vm.state() == v1::VM_STATE_PAUSED; },
                   [=] { return resume(0); }});
    out.push_back({"resume", [=] { return pause(0); }, resume,
                   [](const auto& vm) { return vm.state() == v1::VM_STATE_RUNNING; }, {}});
  }
  return out;
}

reply<v1::VmObserved> conformance::fresh(const backend_actor& b, const std::string& id) {
  const auto until = std::chrono::steady_clock::now() + on->patience();
  for (;;) {
    auto seen = on->inspect(b, id);
    if ((seen && seen->stale_reason().empty()) || std::chrono::steady_clock::now() > until)
      return seen;
    ::poll(nullptr, 0, 20);
  }
}

INSTANTIATE_TEST_SUITE_P(backends, conformance, ::testing::ValuesIn(all_kinds()),
                         [](const auto& of) { return of.param.name; });

} // namespace caisson::tests
