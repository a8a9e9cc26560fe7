#include "guest/agent/hotplug.hpp"

#include "guest/agent/facts.hpp"

#include <algorithm>
#include <utility>

namespace caisson::agent {

using std::chrono::milliseconds;

hotplug::hotplug(event_loop& loop, settings s, std::function<v1::AgentFacts()> facts, answer on_answer,
                 blocks_answer on_blocks)
    : loop_{loop}, settings_{s}, facts_{std::move(facts)}, on_answer_{std::move(on_answer)},
      on_blocks_{std::move(on_blocks)}, writer_{loop}, offliner_{loop} {}

bool hotplug::await_memory(std::uint64_t request_id, const v1::AwaitMemory& wanted) {
  if (memory_waits_.size() >= waits_max)
    return false;
  memory_waits_.push_back({request_id,
                           wanted.mem_total_at_least_bytes(),
                           wanted.mem_total_at_most_bytes(),
                           clock::now() + milliseconds{std::min(wanted.wait_ms(), wait_ms_max)},
                           {}});
  release_blocks();
  online_memory();
  step_memory();
  tick();
  return true;
}

bool hotplug::set_online_cpus(std::uint64_t request_id, const v1::SetOnlineCpus& wanted) {
  answer_cpus(); // a newer target replaces the older one
  const auto now = clock::now();
  cpu_wait_ = cpu_wait{request_id, std::max(wanted.online(), 1u),
                       now + milliseconds{std::min(wanted.wait_ms(), wait_ms_max)}, now, false};
  step_cpus();
  tick();
  return true;
}

void hotplug::on_memory_event() {
  forget_gone_blocks();
  online_memory();
  step_memory();
}

void hotplug::on_cpu_event() {
  step_cpus();
}

void hotplug::forget_waits() {
  memory_waits_.clear();
  cpu_wait_.reset();
  if (offline_job_)
    offline_job_->request_id = 0;
  release_blocks();
}

// Blocks come online by themselves where the kernel has auto_online_blocks; this takes care of the rest.
void hotplug::online_memory() {
  if (!settings_.may_change_blocks)
    return;
  if (memory_job_) {
    memory_again_ = true;
    return;
  }
  auto blocks = offline_memory_blocks(held_);
  if (blocks.empty())
    return;
  memory_job_ = true;
  writer_.write(std::move(blocks), [this](int) {
    memory_job_ = false;
    if (std::exchange(memory_again_, false))
      online_memory();
    step_memory();
  });
}

void hotplug::step_memory() {
  if (memory_waits_.empty())
    return;
  const auto total = mem_total_bytes();
  const auto now = clock::now();
  std::vector<std::uint64_t> done;
  std::erase_if(memory_waits_, [&](memory_wait& wait) {
    const bool reached = (wait.at_least == 0 || total >= wait.at_least) && (wait.at_most == 0 || total <= wait.at_most);
    if (!reached)
      wait.reached_at = {};
    else if (wait.reached_at == clock::time_point{})
      wait.reached_at = now;
    // MemTotal counts a block a moment before its state says online: the answer waits until both say the same, but not
    // for a block that stays offline.
    const bool settled =
        reached && (now - wait.reached_at >= settle_for || (!memory_job_ && offline_memory_blocks(held_).empty()));
    if (!settled && now < wait.deadline)
      return false;
    done.push_back(wait.request_id);
    return true;
  });
  for (const auto id : done)
    on_answer_(id, facts_());
}

void hotplug::step_cpus() {
  if (!cpu_wait_)
    return;
  const auto now = clock::now();
  // The first try is made even where the wait is 0; an answer then waits for its writes.
  const bool reached = !cpu_job_ && read_cpu_facts().online() == cpu_wait_->online;
  const bool over = now >= cpu_wait_->deadline && cpu_wait_->tried;
  if (reached || over) {
    answer_cpus();
    return;
  }
  cpu_wait_->tried = true;
  if (cpu_job_ || !settings_.may_change_cpus || now < cpu_wait_->not_before)
    return;
  auto steps = cpu_steps(cpu_wait_->online);
  if (steps.empty())
    return;
  cpu_job_ = true;
  writer_.write(std::move(steps), [this](int failed) {
    cpu_job_ = false;
    if (failed != 0 && cpu_wait_)
      cpu_wait_->not_before = clock::now() + milliseconds{100};
    step_cpus();
  });
}

void hotplug::answer_cpus() {
  if (const auto wait = std::exchange(cpu_wait_, std::nullopt))
    on_answer_(wait->request_id, facts_());
}

void hotplug::tick() {
  if (ticking_ || (memory_waits_.empty() && !cpu_wait_))
    return;
  ticking_ = true;
  loop_.after(tick_every, [this] {
    ticking_ = false;
    step_memory();
    step_cpus();
    tick();
  });
}

} // namespace caisson::agent
