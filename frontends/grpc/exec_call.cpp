#include "frontends/grpc/exec_call.hpp"

#include <random>
#include <utility>

#include "frontends/grpc/status.hpp"

namespace caisson::door {
namespace {

std::string picked_name() {
  std::random_device random;
  constexpr char letters[] = "0123456789abcdefghijklmnopqrstuvwxyz";
  std::string name = "run-";
  for (int i = 0; i < 10; ++i)
    name += letters[random() % 36];
  return name;
}

} // namespace

grpc::ServerBidiReactor<v1::ExecInput, v1::ExecOutput>* make_exec_call(std::shared_ptr<door_context> door,
                                                                       grpc::CallbackServerContext& context) {
  return exec_call::start(std::move(door), context);
}

void remove_orphan(const std::shared_ptr<door_context>& door, std::string sandbox,
                   std::function<void(std::string)> then) {
  v1::RemoveSandbox request;
  request.set_sandbox(sandbox);
  request.set_force(true);
  auto running = std::make_shared<activity>(door);
  door->service.remove(request, [door, sandbox, running, then](engine::outcome<v1::SandboxStatus> o) {
    std::string why;
    if (auto* failure = std::get_if<v1::Error>(&o); failure && failure->code() != "not_found") {
      why = failure->text();
      door->log("sandbox " + sandbox + " could not be removed: " + why);
    }
    then(std::move(why));
  });
}

exec_call* exec_call::start(std::shared_ptr<door_context> door, grpc::CallbackServerContext& context) {
  auto self = std::make_shared<exec_call>(std::move(door), context);
  self->self_ = self;
  self->StartRead(&self->in_);
  return self.get();
}

exec_call::exec_call(std::shared_ptr<door_context> door, grpc::CallbackServerContext& context)
    : running_{door}, door_{std::move(door)}, context_{context} {}

void exec_call::OnReadDone(bool ok) {
  if (!ok) {
    input_closed();
    return;
  }
  if (!begun_ && in_.input_case() != v1::ExecInput::kStart && in_.input_case() != v1::ExecInput::kHangUp)
    end_with(make_error("invalid_argument", "exec: the stream does not begin with a start message"));
  switch (in_.input_case()) {
  case v1::ExecInput::kStart:
    begin(std::move(*in_.mutable_start()));
    break;
  case v1::ExecInput::kStdinBytes:
    if (!take_stdin(std::move(*in_.mutable_stdin_bytes())))
      return; // read on when the piece before has been taken
    break;
  case v1::ExecInput::kStdinClosed:
    close_stdin();
    break;
  case v1::ExecInput::kResize:
    if (auto s = session())
      s->resize(in_.resize().rows(), in_.resize().columns());
    break;
  case v1::ExecInput::kSignal:
    if (auto s = session())
      s->signal(in_.signal());
    break;
  case v1::ExecInput::kHangUp:
    hang_up();
    break;
  case v1::ExecInput::INPUT_NOT_SET:
    break;
  }
  std::lock_guard hold{mutex_};
  if (!finished_)
    StartRead(&in_);
}

void exec_call::begin(v1::ExecRequest request) {
  bool twice = begun_.exchange(true);
  if (twice || (request.has_create() && !request.sandbox().empty())) {
    end_with(
        make_error("invalid_argument", twice ? "exec: the stream has a second start message; one stream is one process"
                                             : "exec: sandbox and create are both given; give one of them"));
    return;
  }
  if (!request.has_create()) {
    launch(std::move(request));
    return;
  }
  auto create = std::move(*request.mutable_create());
  request.clear_create();
  create.set_owner("stream");
  create.set_remove_when_stopped(true);
  if (create.name().empty()) {
    create.set_name(picked_name());
    std::lock_guard hold{mutex_};
    name_to_abort_ = create.name();
  }
  auto self = shared_from_this();
  door_->service.create(std::move(create), [self, request = std::move(request)](engine::outcome<v1::SandboxStatus> o) {
    self->created(std::move(o), request);
  });
}

void exec_call::created(engine::outcome<v1::SandboxStatus> outcome, v1::ExecRequest request) {
  if (auto* failure = std::get_if<v1::Error>(&outcome)) {
    end_with(std::move(*failure));
    return;
  }
  auto& made = std::get<v1::SandboxStatus>(outcome);
  request.set_sandbox(made.id());
  bool gone = false;
  {
    std::lock_guard hold{mutex_};
    owned_ = made.id();
    name_to_abort_.clear();
    gone = cancelled_ || hung_up_;
    if (!gone) {
      v1::ExecOutput out;
      *out.mutable_sandbox() = std::move(made);
      push(std::move(out));
    }
  }
  if (gone)
    end_with(make_error("cancelled", "the client has hung up"));
  else
    launch(std::move(request));
}

void exec_call::launch(v1::ExecRequest request) {
  auto self = shared_from_this();
  engine::exec_events events;
  events.on_started = [self] {
    std::lock_guard hold{self->mutex_};
    v1::ExecOutput out;
    out.set_started(true);
    self->push(std::move(out));
  };
  events.on_stdout = [self](std::string_view bytes) {
    std::lock_guard hold{self->mutex_};
    v1::ExecOutput out;
    out.set_stdout_bytes(bytes.data(), bytes.size());
    self->push(std::move(out));
  };
  events.on_stderr = [self](std::string_view bytes) {
    std::lock_guard hold{self->mutex_};
    v1::ExecOutput out;
    out.set_stderr_bytes(bytes.data(), bytes.size());
    self->push(std::move(out));
  };
  events.on_end = [self](engine::outcome<v1::ExecExited> o) {
    if (auto* failure = std::get_if<v1::Error>(&o)) {
      self->end_with(std::move(*failure));
      return;
    }
    v1::ExecOutput last;
    *last.mutable_exited() = std::get<v1::ExecExited>(o);
    self->end(std::move(last), std::nullopt);
  };
  auto session = door_->service.exec(std::move(request), std::move(events));
  bool close = false;
  std::size_t out_bytes = 0, err_bytes = 0;
  std::optional<std::string> early;
  {
    std::lock_guard hold{mutex_};
    if (cancelled_ || hung_up_ || finished_ || !session)
      early.reset();
    else {
      session_ = session;
      close = stdin_closed_;
      early = std::exchange(stdin_waiting_, std::nullopt);
      out_bytes = std::exchange(owed_stdout_, 0);
      err_bytes = std::exchange(owed_stderr_, 0);
    }
  }
  if (!session)
    return;
  if (out_bytes > 0)
    session->consumed_stdout(out_bytes);
  if (err_bytes > 0)
    session->consumed_stderr(err_bytes);
  if (early) {
    give_stdin(*session, std::move(*early));
    read_on();
  }
  if (close)
    session->close_stdin();
}

bool exec_call::take_stdin(std::string bytes) {
  if (bytes.size() > most_stdin_bytes) {
    end_with(make_error("invalid_argument", "exec: " + std::to_string(bytes.size()) +
                                                " bytes of standard input in one message; at most 32768 are taken"));
    return true;
  }
  std::shared_ptr<engine::exec_session> s;
  {
    std::lock_guard hold{mutex_};
    if (stdin_closed_ || ending_)
      return true;
    if (stdin_busy_ || !session_) {
      stdin_waiting_ = std::move(bytes);
      return false;
    }
    stdin_busy_ = true;
    s = session_;
  }
  give_stdin(*s, std::move(bytes));
  return true;
}

void exec_call::give_stdin(engine::exec_session& s, std::string bytes) {
  {
    std::lock_guard hold{mutex_};
    stdin_busy_ = true;
  }
  s.write_stdin(std::move(bytes), [self = shared_from_this()] { self->stdin_taken(); });
}

void exec_call::stdin_taken() {
  std::optional<std::string> next;
  std::shared_ptr<engine::exec_session> s;
  {
    std::lock_guard hold{mutex_};
    stdin_busy_ = false;
    v1::ExecOutput out;
    out.set_stdin_taken(true);
    push(std::move(out));
    next = std::exchange(stdin_waiting_, std::nullopt);
    s = session_;
  }
  if (!next)
    return;
  if (s)
    give_stdin(*s, std::move(*next));
  read_on();
}

void exec_call::read_on() {
  std::lock_guard hold{mutex_};
  if (!finished_)
    StartRead(&in_);
}

void exec_call::close_stdin() {
  std::shared_ptr<engine::exec_session> s;
  {
    std::lock_guard hold{mutex_};
    if (std::exchange(stdin_closed_, true))
      return;
    s = session_;
  }
  if (s)
    s->close_stdin();
}

// The client will say nothing more: that alone ends standard input, not the process.
void exec_call::input_closed() {
  if (!begun_)
    end_with(make_error("invalid_argument", "exec: the stream has no start message; it has to come first"));
  else
    close_stdin();
}

void exec_call::hang_up() {
  std::string abort;
  {
    std::lock_guard hold{mutex_};
    if (hung_up_ || ending_)
      return;
    hung_up_ = true;
    abort = name_to_abort_;
    if (begun_ && !session_ && owned_.empty() && abort.empty())
      return; // being created under a name that may be another's: created() ends it
  }
  if (!abort.empty()) {
    // Ends the boot; the answer of the create then ends the stream.
    remove_orphan(door_, abort, [](std::string) {});
    return;
  }
  end_with(make_error("cancelled", "the client has hung up"));
}

void exec_call::end_with(v1::Error e) {
  v1::ExecOutput last;
  *last.mutable_error() = e;
  end(std::move(last), std::move(e));
}

// Comes from the process, from the client's going or from a misuse, whichever is first. What the stream owns goes
// first.
void exec_call::end(v1::ExecOutput last, std::optional<v1::Error> failure) {
  std::string owned;
  std::shared_ptr<engine::exec_session> s;
  {
    std::lock_guard hold{mutex_};
    if (std::exchange(ending_, true))
      return;
    failure_ = std::move(failure);
    owned = owned_;
    if (hung_up_ || cancelled_ || failure_)
      s = std::move(session_);
  }
  s.reset();
  if (owned.empty()) {
    finish_with(std::move(last), {});
    return;
  }
  remove_orphan(door_, owned, [self = shared_from_this(), last = std::move(last)](std::string why) {
    self->finish_with(last, std::move(why));
  });
}

void exec_call::finish_with(v1::ExecOutput last, std::string not_removed) {
  std::lock_guard hold{mutex_};
  if (!not_removed.empty()) {
    v1::ExecOutput notice;
    notice.set_notice("its sandbox could not be removed: " + not_removed + "; try caisson rm " + owned_);
    push(std::move(notice));
  }
  push(std::move(last));
  flushed_ends_ = true;
  pump();
}

void exec_call::push(v1::ExecOutput out) {
  if (finished_ || cancelled_ || flushed_ends_)
    return;
  waiting_.push_back(std::move(out));
  pump();
}

void exec_call::pump() {
  if (writing_ || finished_)
    return;
  if (!waiting_.empty()) {
    writing_ = true;
    current_ = std::move(waiting_.front());
    waiting_.pop_front();
    StartWrite(&current_);
  } else if (flushed_ends_) {
    finished_ = true;
    Finish(failure_ ? to_status(*failure_, context_) : grpc::Status::OK);
  }
}

void exec_call::OnWriteDone(bool ok) {
  auto out_bytes = current_.output_case() == v1::ExecOutput::kStdoutBytes ? current_.stdout_bytes().size() : 0;
  auto err_bytes = current_.output_case() == v1::ExecOutput::kStderrBytes ? current_.stderr_bytes().size() : 0;
  std::shared_ptr<engine::exec_session> s;
  {
    std::lock_guard hold{mutex_};
    writing_ = false;
    s = session_;
    if (!s) {
      owed_stdout_ += out_bytes;
      owed_stderr_ += err_bytes;
    }
    if (ok)
      pump();
  }
  if (s && out_bytes > 0)
    s->consumed_stdout(out_bytes);
  if (s && err_bytes > 0)
    s->consumed_stderr(err_bytes);
}

void exec_call::OnCancel() {
  {
    std::lock_guard hold{mutex_};
    cancelled_ = true;
    waiting_.clear();
    if (!std::exchange(finished_, true))
      Finish({grpc::StatusCode::CANCELLED, "the client has gone"});
  }
  hang_up();
}

void exec_call::OnDone() {
  auto last = std::move(self_);
  std::shared_ptr<engine::exec_session> s;
  {
    std::lock_guard hold{mutex_};
    s = std::move(session_);
  }
}

std::shared_ptr<engine::exec_session> exec_call::session() {
  std::lock_guard hold{mutex_};
  return session_;
}

} // namespace caisson::door
