#include <cerrno>
#include <chrono>
#include <utility>

#include "backends/simulated/model_guest.hpp"

// What the host asks about the guest's memory blocks and its workload.

namespace caisson::backends::simulated {

void model_guest::memory_blocks(std::uint64_t request_id, std::uint64_t address, std::uint64_t size_bytes,
                                std::string why) {
  constexpr int most = 512;
  v1::AgentReply reply;
  reply.set_id(request_id);
  auto& found = *reply.mutable_blocks();
  found.set_why(std::move(why));
  for (const auto& block : machine_.blocks(address, size_bytes)) {
    if (found.blocks_size() == most) {
      found.set_left_out(found.left_out() + 1);
      continue;
    }
    auto& to = *found.add_blocks();
    to.set_address(block.address);
    to.set_size_bytes(block.size_bytes);
    to.set_state(block.online ? "online" : "offline");
    to.set_zone(block.online ? "Movable" : "");
  }
  session_.send_reply(std::move(reply));
}

void model_guest::offline_memory(const v1::AgentRequest& request) {
  const auto& ask = request.offline_memory();
  machine_.take_offline(ask.address(), ask.size_bytes(),
                        [this, weak = std::weak_ptr{alive_}, host = host_, id = request.id(), address = ask.address(),
                         size = ask.size_bytes()](const std::string& why) {
                          if (weak.expired())
                            return;
                          if (host != host_) {
                            machine_.bring_all_online();
                            return;
                          }
                          memory_blocks(id, address, size, why);
                          output();
                        });
}

void model_guest::set_limits(const v1::AgentRequest& request) {
  workload_.set_limits(request.set_workload_limits());
  settle_workload();
  v1::AgentReply reply;
  reply.set_id(request.id());
  *reply.mutable_facts() = facts();
  session_.send_reply(std::move(reply));
}

void model_guest::watch_pressure(const v1::AgentRequest& request) {
  const auto& ask = request.watch_pressure();
  if (ask.stall_us() > 0 && (ask.window_us() < 500'000 || ask.window_us() > 10'000'000)) {
    fail(request.id(), EINVAL, "a window of pressure is 0.5 to 10 s");
    return;
  }
  pressure_window_ = std::chrono::microseconds{ask.stall_us() > 0 ? ask.window_us() : 0};
  done(request.id());
  settle_workload();
}

bool model_guest::settle_workload() {
  const auto news = workload_.settle();
  for (const auto id : news.satisfied)
    if (const auto p = processes_.find(id); p != processes_.end()) {
      p->second.pending += "held " + std::to_string(p->second.held_mib) + "\n";
      flush(id);
    }
  for (const auto id : news.killed) {
    v1::AgentNotice notice;
    notice.mutable_oom()->set_process("hold");
    session_.send_notice(std::move(notice));
    finish(id, 137, 9);
  }
  if (news.stalls && pressure_window_.count() > 0 && !pressure_planned_) {
    pressure_planned_ = true;
    later(pressure_window_, [this] { tell_pressure(); });
  }
  return news.stalls;
}

/// Once a window as long as somebody waits for memory.
void model_guest::tell_pressure() {
  pressure_planned_ = false;
  if (pressure_window_.count() == 0 || !settle_workload())
    return;
  const auto window = std::chrono::duration_cast<std::chrono::microseconds>(pressure_window_);
  stalled_us_ += static_cast<std::uint64_t>(window.count() / 2);
  v1::AgentNotice notice;
  auto& pressure = *notice.mutable_pressure();
  pressure.set_stalled_us(stalled_us_);
  pressure.set_some_avg10_centi(5'000);
  auto now = facts();
  *pressure.mutable_memory() = std::move(*now.mutable_memory());
  session_.send_notice(std::move(notice));
  output();
}

} // namespace caisson::backends::simulated
