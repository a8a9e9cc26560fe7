#include "actors/memory_hotplug/step.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "messages/validate.hpp"

// The guest follows: AwaitMemory in slices, so that progress is seen and patience begins anew at each.

namespace caisson::memory_hotplug {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds agent_slice{5'000};

struct marks {
  std::uint64_t least = 0;
  std::uint64_t most = 0; // 0: none
};

marks marks_of(const state& st) {
  const auto& c = *st.running;
  const bool step_under_way = c.now.bytes > 0 && c.now.grow;
  const auto mark = st.book.guest_mark_bytes(step_under_way ? c.now.plugged_after_bytes : st.book.plugged_bytes());
  const auto slack = agreement_bytes - 1;
  return {mark > slack ? mark - slack : 1, step_under_way ? 0 : mark + slack};
}

void ask_guest(self_ptr self);

/// virtio-mem has grown by the guest's claim; the VMM's word decides.
void size_looked_at(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  if (st.book.plugged_bytes() >= c.now.plugged_after_bytes) {
    c.now = {};
    return next(self);
  }
  if (now(self) < c.patience_end)
    return wake_after(self, st.set.poll_interval, [](self_ptr s) { inspect(s, size_looked_at); });
  give_up(self, ec::guest_refused,
          fmt::format("the guest claims to use memory of which {} are not plugged by the VMM's word",
                      show_bytes(c.now.plugged_after_bytes - st.book.plugged_bytes())));
}

void guest_is_short(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  auto text = fmt::format(
      "the guest uses {} of the {} that the VM was to have", show_bytes(st.book.guest_bytes()),
      show_bytes(st.book.boot_bytes() + (c.now.bytes > 0 ? c.now.plugged_after_bytes : st.book.plugged_bytes())));
  if (st.book.offline_blocks() > 0)
    text += fmt::format("; {} memory blocks of it are plugged and not online", st.book.offline_blocks());
  if (!c.guest_trouble.empty())
    text += "; its agent: " + c.guest_trouble;
  const auto code = c.guest_trouble.empty() ? ec::guest_refused : ec::guest_unresponsive;
  give_up(self, code, std::move(text));
}

void guest_looked_at(self_ptr self, bool early) {
  auto& st = self->state;
  auto& c = *st.running;
  if (reached(st))
    return guest_followed(self);
  const auto total = st.book.guest_total_bytes();
  const bool grows = c.now.bytes > 0 ? c.now.grow : total < marks_of(st).least;
  if (grows ? total > c.best_seen : total < c.best_seen) {
    c.best_seen = total;
    be_patient(self);
  }
  if (now(self) >= c.patience_end)
    return guest_is_short(self);
  if (early) // a guest that answers at once and wrongly must not keep us busy
    wake_after(self, st.set.poll_interval, ask_guest);
  else
    ask_guest(self);
}

void ask_guest(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  const auto wait = std::clamp(left_until(self, c.patience_end), milliseconds{1}, agent_slice);
  const auto m = marks_of(st);
  v1::AgentRequest ask;
  ask.mutable_await_memory()->set_mem_total_at_least_bytes(m.least);
  ask.mutable_await_memory()->set_mem_total_at_most_bytes(m.most);
  ask.mutable_await_memory()->set_wait_ms(ms(wait));
  ask_to_follow(self, std::move(ask), wait, guest_looked_at);
}

} // namespace

bool reached(const state& st) {
  const auto m = marks_of(st);
  const auto total = st.book.guest_total_bytes();
  return total >= m.least && (m.most == 0 || total <= m.most);
}

void guest_followed(self_ptr self) {
  auto& st = self->state;
  auto& c = *st.running;
  const bool ask_vmm = c.now.bytes > 0 && st.spec.memory_method() == v1::MEMORY_METHOD_VIRTIO_MEM;
  if (ask_vmm)
    return inspect(self, size_looked_at);
  c.now = {};
  next(self);
}

void follow_guest(self_ptr self) {
  auto& c = *self->state.running;
  c.doing = phase::following;
  c.best_seen = self->state.book.guest_total_bytes();
  c.guest_trouble.clear();
  be_patient(self);
  ask_guest(self);
}

} // namespace caisson::memory_hotplug
