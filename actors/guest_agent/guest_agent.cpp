#include "actors/guest_agent/guest_agent.hpp"

#include <fmt/format.h>

#include "messages/validate.hpp"

namespace caisson {
namespace {

using self_ptr = guest_agent_actor::stateful_pointer<guest_agent_state>;

void fail_all(self_ptr self, const std::string& why) {
  auto& st = self->state;
  auto waiting = std::move(st.waiting);
  st.waiting.clear();
  for (auto& [id, promise] : waiting)
    promise.deliver(make_error(ec::guest_unresponsive, "guest agent: " + why));
  if (st.connecting.pending())
    st.connecting.deliver(make_error(ec::guest_unresponsive, "guest agent: " + why));
}

void drop_link(self_ptr self, const std::string& why) {
  auto& st = self->state;
  ++st.link_number;
  if (st.link)
    st.link->close();
  st.link = nullptr;
  fail_all(self, why);
}

caf::result<v1::AgentHello> on_connect(self_ptr self, const v1::ConnectAgent& m) {
  auto& st = self->state;
  drop_link(self, "a new connection was asked for");
  auto number = st.link_number;
  auto me = caf::actor_cast<guest_agent_actor>(self->ctrl());
  auto weak = caf::actor_cast<caf::weak_actor_ptr>(me);
  auto tell = [weak](auto... parts) {
    if (auto strong = caf::actor_cast<caf::strong_actor_ptr>(weak))
      caf::anon_send(caf::actor_cast<guest_agent_actor>(strong), std::move(parts)...);
  };
  st.link = std::make_shared<guest_link>(
      *st.settings.channels,
      guest_link::events{
          .on_control = [tell, number](v1::GuestControl c) { tell(number, std::move(c)); },
          .on_lost = [tell, number](std::string why) { tell(link_atom::value, number, std::move(why)); }});
  auto epoch = st.settings.random();
  st.link->open(m.endpoint(), epoch == 0 ? 1 : epoch);
  st.connecting = self->make_response_promise<v1::AgentHello>();
  self->delayed_send(self, std::chrono::milliseconds{m.deadline_ms() > 0 ? m.deadline_ms() : 30'000}, tick_atom::value,
                     UINT64_MAX - number);
  return st.connecting;
}

caf::result<v1::AgentReply> on_request(self_ptr self, const v1::AgentRequest& m) {
  auto& st = self->state;
  if (!st.link || st.link->lost())
    return make_error(ec::guest_unresponsive, "guest agent: there is no connection to the guest");
  auto request = m;
  request.set_id(st.link->next_request_id());
  auto promise = self->make_response_promise<v1::AgentReply>();
  st.waiting.emplace(request.id(), promise);
  self->delayed_send(self, st.settings.patience, tick_atom::value, request.id());
  st.link->request(std::move(request));
  return promise;
}

void on_control(self_ptr self, std::uint64_t number, const v1::GuestControl& m) {
  auto& st = self->state;
  if (number != st.link_number)
    return;
  if (m.has_hello()) {
    if (st.connecting.pending())
      st.connecting.deliver(m.hello());
  } else if (m.has_reply()) {
    auto at = st.waiting.find(m.reply().id());
    if (at == st.waiting.end())
      return;
    auto promise = std::move(at->second);
    st.waiting.erase(at);
    promise.deliver(m.reply());
  } else if (m.has_notice()) {
    if (st.link)
      st.link->notice_taken();
    self->send(st.listener, m.notice());
  }
}

void on_lost(self_ptr self, std::uint64_t number, const std::string& why) {
  auto& st = self->state;
  if (number != st.link_number)
    return;
  bool was_connecting = st.connecting.pending();
  st.link = nullptr;
  fail_all(self, why);
  if (!was_connecting)
    self->send(st.listener, link_atom::value, why);
}

void on_tick(self_ptr self, std::uint64_t id) {
  auto& st = self->state;
  if (id == UINT64_MAX - st.link_number) {
    if (st.connecting.pending())
      drop_link(self, "the guest's agent did not answer in time");
    return;
  }
  auto at = st.waiting.find(id);
  if (at == st.waiting.end())
    return;
  auto promise = std::move(at->second);
  st.waiting.erase(at);
  promise.deliver(make_error(ec::guest_unresponsive,
                             fmt::format("guest agent: no reply within {} ms", st.settings.patience.count())));
}

} // namespace

caf::error failure_of(const v1::AgentReply& reply, std::string_view doing) {
  if (!reply.has_failure())
    return {};
  return make_error(ec::guest_refused,
                    fmt::format("{}: the guest says: {}", doing, escape_guest_text(reply.failure().text(), 1024)));
}

guest_agent_actor::behavior_type guest_agent(self_ptr self, guest_agent_settings settings, guest_listener listener) {
  self->state.settings = std::move(settings);
  self->state.listener = std::move(listener);
  self->set_exit_handler([self](caf::exit_msg& e) {
    drop_link(self, "the sandbox has ended");
    self->quit(std::move(e.reason));
  });
  return {
      [self](const v1::ConnectAgent& m) { return on_connect(self, m); },
      [self](const v1::AgentRequest& m) { return on_request(self, m); },
      [self](link_atom) -> caf::result<guest_link_ptr> {
        if (self->state.link && !self->state.link->lost())
          return self->state.link;
        return make_error(ec::guest_unresponsive, "guest agent: there is no connection to the guest");
      },
      [self](std::uint64_t number, const v1::GuestControl& m) { on_control(self, number, m); },
      [self](link_atom, std::uint64_t number, const std::string& why) { on_lost(self, number, why); },
      [self](tick_atom, std::uint64_t id) { on_tick(self, id); },
  };
}

} // namespace caisson
