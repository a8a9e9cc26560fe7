// What is asked of the process and what it says: calls, answers, events, the sign of life.

#include "backends/host/backend_process.hpp"

#include "backends/host/server.hpp"

namespace caisson::host {
namespace {

constexpr std::string_view unknown_text = "; it may still take effect: the sandbox's true state has to be read again";

std::string name_of(const v1::BackendCall& call) {
  auto sandbox = sandbox_of(call);
  return std::string{verb_name(call)} + (sandbox.empty() ? "" : " of sandbox " + sandbox);
}

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span{text.data(), text.size()});
}

} // namespace

void backend_process::call(v1::BackendCall call, answer_function answer) {
  {
    std::lock_guard lock{end_mutex_};
    if (!ended_) {
      reactor_.post([self = shared_from_this(), call = std::move(call), answer = std::move(answer)]() mutable {
        self->take_call(std::move(call), std::move(answer));
      });
      return;
    }
  }
  answer(failure("backend_lost", name_of(call) + ": the engine is ending"));
}

void backend_process::take_call(v1::BackendCall call, answer_function answer) {
  if (state_ == state::shut)
    return answer(failure("backend_lost", name_of(call) + ": the engine is ending"));
  auto id = ++last_id_;
  call.set_id(id);
  auto deadline_ms = deadline_ms_of(call);
  set_deadline_ms(call, deadline_ms);
  if (call.ByteSizeLong() > max_message_bytes)
    return answer(failure("invalid_argument", name_of(call) + ": the request is " +
                                                  std::to_string(call.ByteSizeLong()) +
                                                  " bytes long, a backend takes at most 1 MiB"));
  std::chrono::milliseconds wait{deadline_ms};
  auto& kept = calls_[id];
  kept.call = std::move(call);
  kept.answer = std::move(answer);
  kept.overdue = reactor_.after(wait, [this, id] { at_deadline(id); });
  if (state_ == state::ready)
    send(kept);
  else if (state_ == state::idle)
    start();
}

void backend_process::send(waiting_call& what) {
  what.sent = true;
  if (auto frame = to_frame(what.call); frame && pipe_)
    pipe_->write(bytes_of(*frame));
}

void backend_process::send_waiting() {
  for (auto& [id, call] : calls_)
    if (!call.sent)
      send(call);
}

// First at the deadline, when the asker gets his answer; then once more after the grace, when the process is suspected.
void backend_process::at_deadline(std::uint64_t id) {
  auto at = calls_.find(id);
  if (at == calls_.end())
    return;
  auto& kept = at->second;
  auto name = name_of(kept.call);
  if (!kept.sent)
    return finish(
        id, failure("backend_lost", name + ": backend " + settings_.name +
                                        " has had no process that could take it within the deadline; it was not done"));
  if (auto answer = std::exchange(kept.answer, {})) {
    kept.overdue = reactor_.after(settings_.grace, [this, id] { at_deadline(id); });
    return answer(failure("outcome_unknown", name + ": no answer from " + who() + " within " +
                                                 std::to_string(deadline_ms_of(kept.call)) + " ms" +
                                                 std::string{unknown_text}));
  }
  calls_.erase(at);
  ask_for_sign_of_life();
}

void backend_process::finish(std::uint64_t id, v1::BackendAnswer with) {
  auto at = calls_.find(id);
  if (at == calls_.end())
    return;
  auto answer = std::move(at->second.answer);
  calls_.erase(at);
  if (answer)
    answer(std::move(with));
}

void backend_process::ask_for_sign_of_life() {
  if (state_ != state::ready || sign_of_life_id_ != 0)
    return;
  v1::BackendCall ask;
  sign_of_life_id_ = ++last_id_;
  ask.set_id(sign_of_life_id_);
  ask.mutable_list()->set_deadline_ms(static_cast<std::uint32_t>(settings_.sign_of_life_within.count()));
  if (auto frame = to_frame(ask))
    pipe_->write(bytes_of(*frame));
  life_timer_ = reactor_.after(settings_.sign_of_life_within, [this] {
    give_up("backend_lost",
            who() + " has left a call unanswered and gives no sign of life either: it was killed and is started "
                    "again (its VMs live on)",
            true);
  });
}

void backend_process::heard(std::span<const std::byte> bytes) {
  bool whole = frames_.feed(bytes);
  while (pipe_) {
    auto message = frames_.next();
    if (!message)
      break;
    v1::BackendSays says;
    if (!says.ParseFromArray(message->data(), static_cast<int>(message->size())))
      return give_up("backend_lost", who() + " has sent a message that is no caisson.v1.BackendSays", true);
    take(says);
  }
  if (!whole)
    give_up("backend_lost", who() + " has announced a message of more than 1 MiB", true);
}

void backend_process::take(const v1::BackendSays& says) {
  switch (says.what_case()) {
  case v1::BackendSays::kReady:
    return take_ready(says.ready());
  case v1::BackendSays::kAnswer:
    return take_answer(says.answer());
  case v1::BackendSays::kEvent:
    return tell(says.event());
  case v1::BackendSays::kLogLine:
    // Through the same bounds as what it writes to its standard error: the process is not trusted to keep them.
    if (lines_)
      lines_->feed(bytes_of(says.log_line() + "\n"));
    return;
  case v1::BackendSays::WHAT_NOT_SET:
    return; // a newer backend's news
  }
}

void backend_process::take_answer(const v1::BackendAnswer& answer) {
  if (answer.id() != sign_of_life_id_ || sign_of_life_id_ == 0)
    return finish(answer.id(), answer);
  // "I do not know, my library is silent" is no sign of life.
  if (answer.has_error() &&
      (answer.error().code() == "outcome_unknown" || answer.error().code() == "deadline_exceeded"))
    return;
  life_timer_.cancel();
  sign_of_life_id_ = 0;
}

void backend_process::tell(const v1::VmEvent& event) {
  auto [from, to] = by_sandbox_.equal_range(event.sandbox_id());
  for (; from != to; ++from)
    listeners_[from->second].heard(event);
}

void backend_process::tell_restarted() {
  v1::VmEvent event;
  event.set_kind(v1::VmEvent::KIND_BACKEND_RESTARTED);
  event.set_text(lost_why_);
  for (auto& [ticket, owner] : listeners_) {
    event.set_sandbox_id(owner.sandbox_id);
    owner.heard(event);
  }
}

void backend_process::answer_lost(const std::string& code, const std::string& why, bool also_unsent) {
  std::vector<std::pair<answer_function, v1::BackendAnswer>> answers;
  std::erase_if(calls_, [&](auto& entry) {
    auto& kept = entry.second;
    if (!kept.sent && !also_unsent)
      return false;
    auto text = name_of(kept.call) + ": " + why;
    answers.emplace_back(std::move(kept.answer), kept.sent
                                                     ? failure("outcome_unknown", text + std::string{unknown_text})
                                                     : failure(code, text));
    return true;
  });
  for (auto& [answer, with] : answers)
    if (answer)
      answer(std::move(with));
}

} // namespace caisson::host
