#include "actors/guest_agent/guest_link.hpp"

#include <csignal>

#include "messages/error.hpp"
#include "messages/validate.hpp"

namespace caisson {
namespace {

constexpr int most_notices_in_flight = 16;
constexpr std::size_t most_early_requests = 64;
constexpr std::size_t most_queued_bytes = 256 * 1024; // in the pipe; the rest waits in the session, control first

v1::Error link_error(ec code, std::string text) {
  return error_message(code, std::move(text));
}

} // namespace

struct guest_link::running {
  guest_exec_events handlers;
  std::uint64_t exec_id = 0;
  std::uint32_t in = 0, out = 0, err = 0;
  bool ended = false, hung_up = false, stdin_closing = false;
  std::string pending_stdin;
  std::function<void()> taken;
  std::vector<std::function<void(guest_link&, running&)>> before_start; // signals and sizes that came too early
};

guest_link::guest_link(pipe_opener& opener, events handlers)
    : opener_{opener}, handlers_{std::move(handlers)},
      session_{guest_protocol::host_events{
          .on_hello =
              [this](const v1::AgentHello& m) {
                v1::GuestControl c;
                *c.mutable_hello() = m;
                handlers_.on_control(std::move(c));
              },
          .on_reply = [this](const v1::AgentReply& m) { handle_reply(m); },
          .on_notice = [this](const v1::AgentNotice& m) { handle_notice(m); },
          .on_data =
              [this](std::uint32_t stream, std::span<const std::byte> bytes) {
                auto at = by_stream_.find(stream);
                if (at == by_stream_.end() || at->second->hung_up)
                  return session_.consumed(stream, bytes.size());
                auto it = at->second;
                (stream == it->out ? it->handlers.on_stdout : it->handlers.on_stderr)(bytes);
              },
          .on_eof = [this](std::uint32_t stream) { by_stream_.erase(stream); },
          .on_writable =
              [this](std::uint32_t stream) {
                if (auto at = by_stream_.find(stream); at != by_stream_.end())
                  push_stdin(*std::shared_ptr{at->second});
              },
          .on_stopped = {},
          .on_protocol_error = [this](const std::string& text) { lose("the guest broke the protocol: " + text); },
      }} {}

guest_link::~guest_link() = default;

void guest_link::on_executor(std::function<void(guest_link&)> work) {
  opener_.runs_on().post([self = shared_from_this(), work = std::move(work)] { work(*self); });
}

void guest_link::open(const std::string& endpoint, std::uint64_t epoch) {
  on_executor([endpoint, epoch](guest_link& l) {
    l.opener_.open(endpoint,
                   [self = l.shared_from_this(), epoch, endpoint](std::unique_ptr<byte_pipe> pipe, std::string why) {
                     if (self->closed_)
                       return;
                     if (!pipe)
                       return self->lose("the agent's channel " + endpoint + " cannot be opened: " + why);
                     self->begin(std::move(pipe), epoch);
                   });
  });
}

void guest_link::begin(std::unique_ptr<byte_pipe> pipe, std::uint64_t epoch) {
  pipe_ = std::move(pipe);
  std::weak_ptr<guest_link> weak = shared_from_this();
  pipe_->start({
      .on_bytes =
          [weak](std::span<const std::byte> bytes) {
            if (auto self = weak.lock(); self && !self->closed_) {
              self->session_.feed(bytes);
              self->pump();
            }
          },
      .on_closed =
          [weak](std::error_code why) {
            if (auto self = weak.lock())
              self->lose("the agent's channel was closed" + (why ? ": " + why.message() : std::string{}));
          },
      .on_drained =
          [weak] {
            if (auto self = weak.lock())
              self->pump();
          },
  });
  session_.open(epoch);
  pump();
}

void guest_link::close() {
  on_executor([](guest_link& l) {
    if (l.closed_)
      return;
    l.handlers_.on_lost = {};
    l.lose("the connection to the guest was given up");
  });
}

void guest_link::pump() {
  while (pipe_ && session_.has_output() && pipe_->queued() < most_queued_bytes) {
    auto bytes = session_.take_output();
    if (bytes.empty())
      break;
    pipe_->write(bytes);
  }
}

void guest_link::lose(const std::string& why) {
  if (closed_)
    return;
  closed_ = true;
  lost_ = true;
  // The session may be the caller: it is left alone here, only the pipe ends.
  if (pipe_) {
    pipe_->close();
    opener_.runs_on().post([pipe = std::shared_ptr<byte_pipe>{std::move(pipe_)}] {});
  }
  auto ended = std::move(execs_);
  for (auto& [id, it] : starting_)
    ended.emplace(UINT64_MAX - id, it);
  starting_.clear();
  execs_.clear();
  by_stream_.clear();
  for (auto& [id, it] : ended)
    end_exec(it, link_error(ec::guest_unresponsive, "exec: " + why + "; how the command ended is not known"));
  if (auto tell = std::exchange(handlers_.on_lost, {}))
    tell(why);
}

void guest_link::request(v1::AgentRequest message) {
  on_executor([message = std::move(message)](guest_link& l) {
    std::optional<std::string> why;
    if (l.closed_)
      why = "the connection to the guest is lost";
    else
      why = l.session_.send_request(message);
    if (why) {
      v1::GuestControl c;
      c.mutable_reply()->set_id(message.id());
      c.mutable_reply()->mutable_failure()->set_text(*why);
      l.handlers_.on_control(std::move(c));
      return;
    }
    l.pump();
  });
}

void guest_link::handle_reply(const v1::AgentReply& reply) {
  auto at = starting_.find(reply.id());
  if (at == starting_.end()) {
    v1::GuestControl c;
    *c.mutable_reply() = reply;
    return handlers_.on_control(std::move(c));
  }
  auto it = at->second;
  starting_.erase(at);
  if (!reply.has_exec_started()) {
    for (auto stream : {it->in, it->out, it->err})
      by_stream_.erase(stream);
    auto text = escape_guest_text(reply.failure().text(), 1024);
    return end_exec(it, link_error(ec::guest_refused, "exec: the guest could not start the command: " + text));
  }
  it->exec_id = reply.exec_started().exec_id();
  execs_[it->exec_id] = it;
  if (it->handlers.on_started)
    it->handlers.on_started();
  for (auto& work : std::exchange(it->before_start, {}))
    work(*this, *it);
}

void guest_link::handle_notice(const v1::AgentNotice& notice) {
  if (notice.has_exec_exited()) {
    auto at = execs_.find(notice.exec_exited().exec_id());
    if (at == execs_.end())
      return;
    auto it = at->second;
    execs_.erase(at);
    by_stream_.erase(it->in);
    session_.close(it->in);
    return end_exec(it, notice.exec_exited());
  }
  if (notices_in_flight_ >= most_notices_in_flight)
    return;
  ++notices_in_flight_;
  v1::GuestControl c;
  *c.mutable_notice() = notice;
  handlers_.on_control(std::move(c));
}

void guest_link::end_exec(const std::shared_ptr<running>& it, std::variant<v1::ExecExited, v1::Error> how) {
  if (it->ended)
    return;
  it->ended = true;
  it->pending_stdin.clear();
  it->before_start.clear();
  auto handlers = std::exchange(it->handlers, {});
  if (auto taken = std::exchange(it->taken, {}))
    taken();
  if (handlers.on_end)
    handlers.on_end(std::move(how));
}

std::uint32_t guest_link::free_stream() {
  do
    ++last_stream_;
  while (last_stream_ == 0 || by_stream_.count(last_stream_) > 0);
  return last_stream_;
}

std::shared_ptr<guest_exec> guest_link::exec(v1::ExecStart start, guest_exec_events handlers) {
  auto it = std::make_shared<running>();
  it->handlers = std::move(handlers);
  on_executor([it, start = std::move(start)](guest_link& l) mutable {
    if (l.closed_)
      return l.end_exec(it, link_error(ec::guest_unresponsive, "exec: the connection to the guest is lost"));
    for (auto* stream : {&it->in, &it->out, &it->err}) {
      *stream = l.free_stream();
      l.by_stream_[*stream] = it;
    }
    start.set_stdin_stream(it->in);
    start.set_stdout_stream(it->out);
    start.set_stderr_stream(it->err);
    v1::AgentRequest ask;
    ask.set_id(l.next_request_id());
    *ask.mutable_exec_start() = std::move(start);
    if (auto why = l.session_.send_request(ask)) {
      for (auto stream : {it->in, it->out, it->err})
        l.by_stream_.erase(stream);
      return l.end_exec(it, link_error(ec::busy, "exec: the command cannot be sent to the guest: " + *why));
    }
    l.starting_[ask.id()] = it;
    l.pump();
  });
  return std::make_shared<guest_exec>(shared_from_this(), it);
}

void guest_link::push_stdin(running& it) {
  if (!it.pending_stdin.empty()) {
    auto n = session_.write(it.in, std::as_bytes(std::span{it.pending_stdin}));
    it.pending_stdin.erase(0, n);
  }
  if (it.pending_stdin.empty()) {
    if (it.stdin_closing) {
      it.stdin_closing = false;
      session_.close(it.in);
    }
    if (auto taken = std::exchange(it.taken, {}))
      taken();
  }
  pump();
}

guest_exec::guest_exec(std::shared_ptr<guest_link> link, std::shared_ptr<guest_link::running> it)
    : link_{std::move(link)}, it_{std::move(it)} {}

guest_exec::~guest_exec() {
  link_->on_executor([it = it_](guest_link& l) {
    if (it->ended || it->hung_up)
      return;
    it->hung_up = true;
    it->pending_stdin.clear();
    auto hang_up = [](guest_link& link, guest_link::running& r) {
      v1::AgentRequest ask;
      ask.set_id(link.next_request_id());
      ask.mutable_exec_signal()->set_exec_id(r.exec_id);
      ask.mutable_exec_signal()->set_signal(SIGHUP);
      (void)link.session_.send_request(ask);
      link.session_.close(r.in);
      link.session_.stop(r.out);
      link.session_.stop(r.err);
      link.pump();
    };
    if (l.closed_)
      return;
    if (it->exec_id == 0)
      it->before_start.push_back(hang_up);
    else
      hang_up(l, *it);
  });
}

void guest_exec::write_stdin(std::string bytes, std::function<void()> taken) {
  link_->on_executor([it = it_, bytes = std::move(bytes), taken = std::move(taken)](guest_link& l) mutable {
    if (it->ended || l.closed_) {
      if (taken)
        taken();
      return;
    }
    it->pending_stdin += bytes;
    it->taken = std::move(taken);
    l.push_stdin(*it);
  });
}

void guest_exec::close_stdin() {
  link_->on_executor([it = it_](guest_link& l) {
    if (it->ended || l.closed_)
      return;
    it->stdin_closing = true;
    l.push_stdin(*it);
  });
}

void guest_exec::ask(std::function<void(v1::AgentRequest&, std::uint64_t exec_id)> fill) {
  link_->on_executor([it = it_, fill = std::move(fill)](guest_link& l) {
    auto send = [fill](guest_link& link, guest_link::running& r) {
      v1::AgentRequest request;
      request.set_id(link.next_request_id());
      fill(request, r.exec_id);
      (void)link.session_.send_request(request); // a refused one only means that the command is about to end
      link.pump();
    };
    if (it->ended || l.closed_)
      return;
    if (it->exec_id != 0)
      send(l, *it);
    else if (it->before_start.size() < most_early_requests)
      it->before_start.push_back(send);
  });
}

void guest_exec::resize(std::uint32_t rows, std::uint32_t columns) {
  ask([rows, columns](v1::AgentRequest& request, std::uint64_t exec_id) {
    request.mutable_exec_resize()->set_exec_id(exec_id);
    request.mutable_exec_resize()->set_rows(rows);
    request.mutable_exec_resize()->set_columns(columns);
  });
}

void guest_exec::signal(int number) {
  ask([number](v1::AgentRequest& request, std::uint64_t exec_id) {
    request.mutable_exec_signal()->set_exec_id(exec_id);
    request.mutable_exec_signal()->set_signal(number);
  });
}

void guest_exec::consumed_stdout(std::size_t bytes) {
  link_->on_executor([it = it_, bytes](guest_link& l) {
    if (l.closed_)
      return;
    l.session_.consumed(it->out, bytes);
    l.pump();
  });
}

void guest_exec::consumed_stderr(std::size_t bytes) {
  link_->on_executor([it = it_, bytes](guest_link& l) {
    if (l.closed_)
      return;
    l.session_.consumed(it->err, bytes);
    l.pump();
  });
}

} // namespace caisson
