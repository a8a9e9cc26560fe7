#include "guest/agent/hotplug.hpp"

#include "guest/agent/facts.hpp"
#include "guest/agent/files.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

// Memory goes offline before what backs it leaves.

namespace caisson::agent {

using std::chrono::milliseconds;

namespace {

// The blocks of a DIMM that was to leave and has not come back by themselves: a host that forgot them.
constexpr milliseconds hold_at_most{120'000};

std::vector<std::string> names_in(const std::vector<memory_block>& blocks, std::string_view state) {
  std::vector<std::string> names;
  for (const auto& block : blocks)
    if (block.state == state)
      names.push_back(block.name);
  return names;
}

} // namespace

v1::AgentBlocks hotplug::blocks(std::uint64_t address, std::uint64_t size_bytes) const {
  constexpr int most = 512;
  v1::AgentBlocks found;
  for (const auto& block : memory_blocks(address, size_bytes)) {
    if (found.blocks_size() == most) {
      found.set_left_out(found.left_out() + 1);
      continue;
    }
    auto& to = *found.add_blocks();
    to.set_address(block.address);
    to.set_size_bytes(block.size_bytes);
    to.set_state(block.state);
    to.set_zone(block.zone);
  }
  return found;
}

bool hotplug::offline_memory(std::uint64_t request_id, const v1::OfflineMemory& wanted) {
  if (offline_job_ || !settings_.may_change_blocks)
    return false;
  offline_job_ = offline_job{request_id, wanted, {}};
  const auto there = memory_blocks(wanted.address(), wanted.size_bytes());
  for (const auto& block : there)
    held_.insert(block.name);
  offline_job_->names = names_in(there, "online");
  const milliseconds wait{std::min(wanted.wait_ms(), wait_ms_max)};
  offliner_.run(
      [names = offline_job_->names] {
        for (const auto& name : names)
          if (const int failed = write_file(block_state_file(name), "offline"); failed != 0)
            return failed;
        return 0;
      },
      wait, [this](int failed) { offline_done(failed); });
  return true;
}

void hotplug::offline_done(int failed) {
  const auto& job = *offline_job_;
  const auto there = memory_blocks(job.wanted.address(), job.wanted.size_bytes());
  const auto held_out = std::find_if(there.begin(), there.end(), [](const auto& b) { return b.state != "offline"; });
  if (job.request_id != 0 && held_out == there.end()) {
    const auto hold = ++holds_;
    loop_.after(hold_at_most, [this, hold] {
      if (hold == holds_)
        release_blocks();
    });
    return offline_answer({});
  }
  std::string why;
  if (held_out != there.end()) {
    char address[32];
    std::snprintf(address, sizeof address, "0x%llx", static_cast<unsigned long long>(held_out->address));
    why = held_out->name + " at " + address + (held_out->zone.empty() ? "" : " (zone " + held_out->zone + ")") + ": ";
    why += failed == ETIMEDOUT ? "did not go offline in " + std::to_string(job.wanted.wait_ms()) + " ms"
                               : std::string{strerror(failed)};
  }
  // All or none: those that went come back.
  sysfs_writer::batch back;
  for (const auto& name : names_in(there, "offline"))
    if (std::find(job.names.begin(), job.names.end(), name) != job.names.end())
      back.emplace_back(block_state_file(name), "online_movable");
  writer_.write(std::move(back), [this, why = std::move(why)](int not_back) {
    offline_answer(not_back == 0 ? why : why + "; what went offline does not come back: " + strerror(not_back));
  });
}

void hotplug::offline_answer(const std::string& why) {
  const auto job = std::exchange(offline_job_, std::nullopt);
  auto found = blocks(job->wanted.address(), job->wanted.size_bytes());
  found.set_why(why.substr(0, 1024));
  if (!why.empty() || job->request_id == 0)
    release_blocks();
  if (job->request_id != 0)
    on_blocks_(job->request_id, found);
}

/// Whatever was kept offline comes online again.
void hotplug::release_blocks() {
  ++holds_;
  if (offline_job_) // its end looks after them
    return;
  held_.clear();
  online_memory();
}

void hotplug::forget_gone_blocks() {
  std::erase_if(held_, [](const std::string& name) { return !exists(block_state_file(name)); });
}

} // namespace caisson::agent
