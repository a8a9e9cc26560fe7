#include "backends/simulated/world.hpp"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "backends/simulated/world_vm.hpp"

namespace caisson::backends::simulated {
namespace {

constexpr std::uint32_t default_deadline_ms = 30'000;

struct verb_facts {
  std::string_view name; // as in fault_plan::die_at_verb
  std::string sandbox_id;
  std::uint32_t deadline_ms = 0;
  bool of_machine = true; // takes the dice's faults
  bool changes = true;    // may be refused
};

verb_facts facts_of(const v1::BackendCall& call) {
  switch (call.verb_case()) {
  case v1::BackendCall::kCreate:
    return {"create", call.create().spec().sandbox_id(), call.create().deadline_ms()};
  case v1::BackendCall::kInspect:
    return {"inspect", call.inspect().sandbox_id(), call.inspect().deadline_ms(), true, false};
  case v1::BackendCall::kApplyMemoryStep:
    return {"memory", call.apply_memory_step().sandbox_id(), call.apply_memory_step().deadline_ms()};
  case v1::BackendCall::kSetVcpus:
    return {"vcpus", call.set_vcpus().sandbox_id(), call.set_vcpus().deadline_ms()};
  case v1::BackendCall::kPause:
    return {"pause", call.pause().sandbox_id(), call.pause().deadline_ms()};
  case v1::BackendCall::kResume:
    return {"resume", call.resume().sandbox_id(), call.resume().deadline_ms()};
  case v1::BackendCall::kDestroy:
    return {"destroy", call.destroy().sandbox_id(), call.destroy().deadline_ms(), true, false};
  case v1::BackendCall::kDescribe:
    return {"describe", {}, call.describe().deadline_ms(), false, false};
  case v1::BackendCall::kAttach:
    return {"attach", call.attach().sandbox_id(), call.attach().deadline_ms()};
  case v1::BackendCall::kDetach:
    return {"detach", call.detach().sandbox_id(), call.detach().deadline_ms()};
  case v1::BackendCall::kList:
    return {"list", {}, call.list().deadline_ms(), false, false};
  case v1::BackendCall::VERB_NOT_SET:
    break;
  }
  return {"", {}, 0, false, false};
}

v1::BackendAnswer failure(ec code, std::string text) {
  v1::BackendAnswer a;
  *a.mutable_error() = error_message(code, std::move(text));
  return a;
}

} // namespace

world::world(fault_plan plan) : plan_{std::move(plan)}, dice_{plan_.seed} {
  time_.on_earlier = [this](timeline::time) { wake_users(); };
}

world::~world() {
  // Machines stop before their guests go.
  for (auto& [id, v] : vms_)
    v->machine->stop();
}

// ---- users and their time ----

world::user_id world::attach(world_user user) {
  std::lock_guard lock{mutex_};
  const auto id = ++last_id_;
  const auto started = user.clock();
  users_.emplace(id, attached{std::move(user), time_.now() - started, std::nullopt, false});
  if (time_.next())
    wake_users();
  return id;
}

void world::detach(user_id user) {
  std::lock_guard lock{mutex_};
  forget_user(user);
}

void world::detach_all() {
  std::lock_guard lock{mutex_};
  while (!users_.empty())
    forget_user(users_.begin()->first);
}

void world::forget_user(user_id user) {
  users_.erase(user);
  std::vector<std::uint64_t> forgotten;
  for (auto& [tag, v] : verbs_)
    if (v.user == user)
      forgotten.push_back(tag);
  std::sort(forgotten.begin(), forgotten.end());
  for (const auto tag : forgotten) {
    auto& v = verbs_.at(tag);
    v.user = 0;
    v.answer = {};
    v.answered = true;
    time_.cancel(v.deadline);
  }
  // What its owner had under way when it ended has reached the VMM by now or never will: nothing comes later.
  for (const auto tag : forgotten) {
    const auto it = verbs_.find(tag);
    if (it == verbs_.end())
      continue;
    if (!it->second.done) {
      time_.cancel(it->second.effect);
      if (dice_.chance(0.5)) {
        take_effect(tag);
        continue;
      }
      it->second.done = true;
    }
    settle(tag);
  }
  std::vector<connection_id> open;
  for (const auto& [id, c] : connections_)
    if (c.user == user)
      open.push_back(id);
  std::sort(open.begin(), open.end());
  for (const auto id : open) {
    connections_.at(id).events = {};
    close_connection(id, {});
  }
}

void world::enter(user_id user) {
  const auto it = users_.find(user);
  if (it != users_.end())
    time_.run_until(it->second.base + it->second.user.clock());
}

void world::wake_users() {
  const auto next = time_.next();
  if (!next)
    return;
  for (auto& [id, u] : users_) {
    if (u.waking || (u.armed && *u.armed <= *next))
      continue;
    u.waking = true;
    u.user.on_wake();
  }
}

std::optional<timeline::time> world::arm(user_id user) {
  std::lock_guard lock{mutex_};
  const auto it = users_.find(user);
  if (it == users_.end())
    return std::nullopt;
  // What happens now plans more; it is not to wake the one that is here.
  it->second.waking = true;
  enter(user);
  it->second.waking = false;
  it->second.armed = time_.next();
  if (!it->second.armed)
    return std::nullopt;
  return *it->second.armed - time_.now();
}

// ---- verbs: submitted, taking effect, answered ----

world::fate world::draw_fate(const v1::BackendCall& call) {
  const auto facts = facts_of(call);
  const auto count = ++verb_counts_[std::string{facts.name}];
  const bool dice_say_before = dice_.chance(0.5);
  if (plan_.die_at_count != 0 && plan_.die_at_verb == facts.name && plan_.die_at_count == count)
    return fate::dies_before;
  if (!facts.of_machine)
    return fate::normal;
  if (facts.changes && dice_.chance(plan_.refuse))
    return fate::refused;
  if (dice_.chance(plan_.lost))
    return fate::lost;
  if (dice_.chance(plan_.late))
    return fate::late;
  if (facts.changes && dice_.chance(plan_.die))
    return dice_say_before ? fate::dies_before : fate::dies_after;
  return fate::normal;
}

void world::submit(user_id user, v1::BackendCall call, answer_function answer_to) {
  std::lock_guard lock{mutex_};
  if (!users_.contains(user))
    return;
  enter(user);
  const auto facts = facts_of(call);
  const auto how = draw_fate(call);
  const bool panics = facts.changes && dice_.chance(plan_.panic);
  const auto patience = std::chrono::milliseconds{facts.deadline_ms == 0 ? default_deadline_ms : facts.deadline_ms};
  auto delay = dice_.chance(plan_.slow) ? plan_.slow_ms.draw(dice_) : plan_.verb_ms.draw(dice_);
  if (how == fate::late)
    delay = patience + plan_.slow_ms.draw(dice_);

  const auto tag = ++last_id_;
  auto& v = verbs_[tag];
  v.user = user;
  v.sandbox_id = facts.sandbox_id;
  v.how = how;
  v.panics = panics;
  v.answer = std::move(answer_to);
  v.changes = facts.changes && facts.of_machine;
  if (!v.sandbox_id.empty())
    verbs_of_[v.sandbox_id].insert(tag);
  v.call = std::move(call);
  v.effect = time_.after(delay, [this, tag] { take_effect(tag); });
  v.deadline = time_.after(patience, [this, tag, name = std::string{facts.name}, id = facts.sandbox_id, patience] {
    answer(tag, failure(ec::outcome_unknown, "simulated VMM of sandbox " + id + ": no answer to " + name + " within " +
                                                 std::to_string(patience.count()) + " ms; it may still take effect"));
  });
}

void world::take_effect(std::uint64_t tag) {
  auto at = verbs_.find(tag);
  if (at == verbs_.end())
    return;
  // A VMM does what it is told in order: a late verb never comes after a later one of the same VM. (A destroy calls the
  // earlier ones off instead.)
  if (at->second.changes && !at->second.call.has_destroy()) {
    const auto of = verbs_of_[at->second.sandbox_id];
    for (auto it = of.begin(); it != of.end() && *it < tag; ++it)
      if (const auto earlier = verbs_.find(*it);
          earlier != verbs_.end() && earlier->second.changes && !earlier->second.done) {
        time_.cancel(earlier->second.effect);
        take_effect(*it);
      }
    at = verbs_.find(tag);
    if (at == verbs_.end() || at->second.done)
      return;
  }
  const auto call = at->second.call;
  const auto how = at->second.how;
  const bool panics = at->second.panics;
  at->second.done = true;
  acting_ = tag;
  const auto id = at->second.sandbox_id;
  const std::string verb_name{facts_of(call).name};
  const auto die_now = [&] {
    auto* v = find(id);
    if (!v || v->state == v1::VM_STATE_STOPPED)
      return false;
    answer(tag, failure(ec::vmm_died, "simulated VMM of sandbox " + id + " died at " + verb_name));
    if (call.has_create())
      destroy(id); // a create that fails leaves nothing behind
    else
      die(*v, "killed at " + verb_name + " by the fault plan");
    return true;
  };
  if (how == fate::refused) {
    answer(tag,
           failure(ec::backend_refused, "simulated VMM of sandbox " + id + " refused " + verb_name + " (fault plan)"));
  } else if (how == fate::dies_before && !call.has_create() && die_now()) {
  } else {
    auto result = perform(call);
    const bool dead = (how == fate::dies_after || how == fate::dies_before) && die_now();
    if (!dead && how != fate::lost)
      answer(tag, std::move(result));
    if (auto* v = find(id); v && panics && v->state == v1::VM_STATE_RUNNING)
      v->machine->after(plan_.slow_ms.draw(dice_), [this, id] {
        if (auto* panicking = find(id))
          panicking->machine->panic();
      });
  }
  acting_ = 0;
  settle(tag);
}

void world::answer(std::uint64_t tag, v1::BackendAnswer what) {
  const auto it = verbs_.find(tag);
  if (it == verbs_.end() || it->second.answered)
    return;
  auto& v = it->second;
  v.answered = true;
  time_.cancel(v.deadline);
  what.set_id(v.call.id());
  if (auto to = std::exchange(v.answer, {}))
    to(std::move(what));
  settle(tag);
}

void world::settle(std::uint64_t tag) {
  const auto it = verbs_.find(tag);
  if (it == verbs_.end() || !it->second.answered || !it->second.done)
    return;
  if (const auto of = verbs_of_.find(it->second.sandbox_id); of != verbs_of_.end()) {
    of->second.erase(tag);
    if (of->second.empty())
      verbs_of_.erase(of);
  }
  verbs_.erase(it);
}

void world::fail_verbs_of(const std::string& id, const std::string& why) {
  const auto of = verbs_of_.find(id);
  if (of == verbs_of_.end())
    return;
  for (const auto tag : std::set{of->second}) {
    auto& v = verbs_.at(tag);
    if (tag == acting_ || !v.changes)
      continue;
    if (!v.done) {
      time_.cancel(v.effect);
      v.done = true;
    }
    answer(tag, failure(ec::vmm_died, why));
    settle(tag);
  }
}

// ---- one world a state directory ----

namespace {

struct table {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<world>> worlds;
};

table& worlds() {
  static table t;
  return t;
}

} // namespace

std::shared_ptr<world> world_of(const std::string& state_directory, std::string& problem) {
  auto& t = worlds();
  std::lock_guard lock{t.mutex};
  auto& w = t.worlds[state_directory];
  if (!w) {
    const char* text = std::getenv("CAISSON_SIMULATED_FAULTS");
    w = std::make_shared<world>(parse_fault_plan(text ? text : "", problem));
  }
  return w;
}

void forget_world(const std::string& state_directory) {
  auto& t = worlds();
  std::lock_guard lock{t.mutex};
  t.worlds.erase(state_directory);
}

} // namespace caisson::backends::simulated
