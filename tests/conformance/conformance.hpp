#pragma once

/// What the files of the conformance body share: the rig of one kind of backend, and its verbs as short calls.

#include <gtest/gtest.h>

#include <algorithm>
#include <string_view>

#include "tests/conformance/rig.hpp"

namespace caisson::tests {

inline constexpr std::uint64_t mib = 1u << 20;
inline constexpr std::uint64_t boot_bytes = 256 * mib;

template <class T> ec code(const reply<T>& r) {
  return r ? ec::none : code_of(r.error);
}

/// What cannot be done is refused for a reason of the VMM's or the caller's, and is no loss and no death.
template <class T>::testing::AssertionResult refused(const reply<T>& r) {
  const auto c = code(r);
  if (c == ec::backend_refused || c == ec::unsupported || c == ec::out_of_range)
    return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << r.text();
}

struct conformance : ::testing::TestWithParam<kind> {
  void SetUp() override;
  void TearDown() override;

  bool dimm() const { return GetParam().method == v1::MEMORY_METHOD_DIMM; }
  /// The kind's method is there. Where a backend has neither, everything but memory is tried.
  bool grows() const { return dimm() ? capabilities.dimm() : capabilities.virtio_mem(); }
  std::uint64_t step_bytes() const {
    return dimm() ? capabilities.dimm_block_bytes() : capabilities.virtio_mem_granule_bytes();
  }
  /// The guest follows hotplug, so that what needs it comes to an end.
  bool reacts() const { return on->here().reacts; }

  v1::CreateVm create_message(const std::string& id, std::uint64_t max_bytes = 1024 * mib, std::uint32_t slots = 4,
                              std::uint32_t max_vcpus = 3);
  reply<v1::VmObserved> create(const backend_actor& b, const std::string& id, std::uint64_t max_bytes = 1024 * mib,
                               std::uint32_t slots = 4, std::uint32_t max_vcpus = 3) {
    return on->ask<v1::VmObserved>(b, create_message(id, max_bytes, slots, max_vcpus));
  }
  /// The guest's agent, where this kind has one. False: it has one, which does not answer.
  ::testing::AssertionResult meet(std::unique_ptr<guest_client>& guest, const v1::VmObserved& vm);

  /// A deadline of 0 is the contract's own.
  reply<v1::VmObserved> plug(const backend_actor& b, const std::string& id, const std::string& dimm_id,
                             std::uint64_t bytes, std::uint32_t deadline_ms = 0);
  reply<v1::VmObserved> unplug(const backend_actor& b, const std::string& id, const std::string& dimm_id);
  reply<v1::VmObserved> request(const backend_actor& b, const std::string& id, std::uint64_t bytes,
                                std::uint32_t deadline_ms = 0);
  /// By the kind's method, `bytes` in all beyond boot; DIMM: one of that size with the id "grown".
  reply<v1::VmObserved> grow(const backend_actor& b, const std::string& id, std::uint64_t bytes,
                             std::uint32_t deadline_ms = 0) {
    return dimm() ? plug(b, id, "grown", bytes, deadline_ms) : request(b, id, bytes, deadline_ms);
  }
  reply<v1::VmObserved> vcpus(const backend_actor& b, const std::string& id, std::uint32_t count,
                              std::uint32_t deadline_ms = 0);
  reply<v1::VmObserved> attach_disk(const backend_actor& b, const std::string& id, const std::string& disk_id,
                                    const std::string& path, std::uint32_t deadline_ms = 0);
  reply<v1::VmObserved> attach_net(const backend_actor& b, const std::string& id, const std::string& net_id,
                                   const std::string& tap, std::uint32_t deadline_ms = 0);
  reply<v1::VmObserved> detach(const backend_actor& b, const std::string& id, const std::string& device_id,
                               std::uint32_t deadline_ms = 0);
  template <class Message>
  reply<v1::VmObserved> simple(const backend_actor& b, const std::string& id, std::uint32_t deadline_ms = 0) {
    Message m;
    m.set_sandbox_id(id);
    m.set_deadline_ms(deadline_ms);
    return on->ask<v1::VmObserved>(b, m);
  }

  /// A verb that this backend can, on a VM that runs.
  struct deed {
    std::string name;
    /// What has to be done before it means anything (a device that leaves has to be there); may be empty.
    std::function<reply<v1::VmObserved>()> before;
    std::function<reply<v1::VmObserved>(std::uint32_t deadline_ms)> send;
    /// Whether the VM shows that it was done.
    std::function<bool(const v1::VmObserved&)> done;
    /// What brings the VM back to where it was for the next one; may be empty.
    std::function<reply<v1::VmObserved>()> after;
  };
  std::vector<deed> verbs(const backend_actor& b, const std::string& id);

  /// Inspects until the VMM answers for itself again.
  reply<v1::VmObserved> fresh(const backend_actor& b, const std::string& id);
  bool left(const std::string& device_id) {
    return news->await(on->patience(), [&](const v1::VmEvent& e) {
      return e.kind() == v1::VmEvent::KIND_DEVICE_REMOVED && e.device_id() == device_id;
    });
  }

  /// Two in `taps`; false where the host lets us make none.
  bool can_have_taps();

  std::unique_ptr<rig> on;
  v1::Capabilities capabilities;
  std::vector<std::string> made;
  std::vector<std::string> taps; ///< of one VM after the other
  std::shared_ptr<news_box> news = std::make_shared<news_box>();
};

inline const v1::VmDevice* device_in(const v1::VmObserved& vm, std::string_view id) {
  for (const auto& d : vm.devices())
    if (d.id() == id)
      return &d;
  return nullptr;
}

} // namespace caisson::tests
