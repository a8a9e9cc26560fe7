#pragma once

/// What the files of the conformance body share: the rig of one kind of backend, and its verbs as short calls.

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/conformance/rig.hpp"

namespace caisson::tests {

inline constexpr std::uint64_t mib = 1u << 20;
inline constexpr std::uint64_t boot_bytes = 256 * mib;

struct conformance : ::testing::TestWithParam<kind> {
  void SetUp() override {
    if (auto why = rig::missing(GetParam()); !why.empty())
      GTEST_SKIP() << GetParam().name << ": not tried, " << why;
    on = std::make_unique<rig>(GetParam());
    auto can = on->describe();
    ASSERT_TRUE(can) << can.text();
    capabilities = *can.value;
    const bool has = dimm() ? capabilities.dimm() : capabilities.virtio_mem();
    if (!has)
      GTEST_SKIP() << GetParam().name << ": not tried, "
                   << (dimm() ? capabilities.dimm_why_not() : capabilities.virtio_mem_why_not());
  }

  void TearDown() override {
    if (!on)
      return;
    for (const auto& id : made) {
      auto gone = on->destroy(on->backend(id, std::make_shared<news_box>()), id);
      EXPECT_TRUE(gone) << gone.text();
      if (gone) {
        EXPECT_EQ(gone->state(), v1::VM_STATE_ABSENT);
      }
    }
  }

  bool dimm() const { return GetParam().method == v1::MEMORY_METHOD_DIMM; }
  std::uint64_t step_bytes() const {
    return dimm() ? capabilities.dimm_block_bytes() : capabilities.virtio_mem_granule_bytes();
  }

  v1::CreateVm create_message(const std::string& id, std::uint64_t max_bytes, std::uint32_t slots,
                              std::uint32_t max_vcpus) {
    made.push_back(id);
    v1::CreateVm m;
    *m.mutable_spec() = on->spec(id, max_bytes, slots, max_vcpus);
    m.set_deadline_ms(60'000);
    return m;
  }

  reply<v1::VmObserved> create(const backend_actor& b, const std::string& id, std::uint64_t max_bytes = 1024 * mib,
                               std::uint32_t slots = 4, std::uint32_t max_vcpus = 3) {
    return on->ask<v1::VmObserved>(b, create_message(id, max_bytes, slots, max_vcpus));
  }

  reply<v1::VmObserved> plug(const backend_actor& b, const std::string& id, const std::string& dimm_id,
                             std::uint64_t bytes) {
    v1::ApplyMemoryStep m;
    m.set_sandbox_id(id);
    m.mutable_plug_dimm()->set_id(dimm_id);
    m.mutable_plug_dimm()->set_size_bytes(bytes);
    return on->ask<v1::VmObserved>(b, m);
  }

  reply<v1::VmObserved> unplug(const backend_actor& b, const std::string& id, const std::string& dimm_id) {
    v1::ApplyMemoryStep m;
    m.set_sandbox_id(id);
    m.set_unplug_dimm_id(dimm_id);
    return on->ask<v1::VmObserved>(b, m);
  }

  reply<v1::VmObserved> request(const backend_actor& b, const std::string& id, std::uint64_t bytes) {
    v1::ApplyMemoryStep m;
    m.set_sandbox_id(id);
    m.set_virtio_mem_requested_bytes(bytes);
    return on->ask<v1::VmObserved>(b, m);
  }

  reply<v1::VmObserved> vcpus(const backend_actor& b, const std::string& id, std::uint32_t count) {
    v1::SetVmVcpus m;
    m.set_sandbox_id(id);
    m.set_count(count);
    return on->ask<v1::VmObserved>(b, m);
  }

  template <class Message> reply<v1::VmObserved> simple(const backend_actor& b, const std::string& id) {
    Message m;
    m.set_sandbox_id(id);
    return on->ask<v1::VmObserved>(b, m);
  }

  std::unique_ptr<rig> on;
  v1::Capabilities capabilities;
  std::vector<std::string> made;
  std::shared_ptr<news_box> news = std::make_shared<news_box>();
};

template <class T> ec code(const reply<T>& r) {
  return r ? ec::none : code_of(r.error);
}

// What cannot be done is refused for a reason of the VMM's or the caller's, and is no loss and no death.
template <class T>::testing::AssertionResult refused(const reply<T>& r) {
  const auto c = code(r);
  if (c == ec::backend_refused || c == ec::unsupported || c == ec::out_of_range)
    return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << r.text();
}

} // namespace caisson::tests
