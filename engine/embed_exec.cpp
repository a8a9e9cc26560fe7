#include "engine/embed_exec.hpp"

#include <algorithm>

namespace caisson::embedding {
namespace {

constexpr std::size_t chunk_bytes = 32 * 1024;

} // namespace

void collected_exec::start(service& on, const v1::ExecRequest& what) {
  exec_events events;
  auto self = shared_from_this();
  events.on_started = [self] {
    {
      std::lock_guard hold{self->mutex_};
      self->started_ = true;
    }
    self->feed();
  };
  events.on_stdout = [self](std::string_view bytes) { self->on_output(stream::out, bytes); };
  events.on_stderr = [self](std::string_view bytes) { self->on_output(stream::err, bytes); };
  events.on_end = [self](outcome<v1::ExecExited> how) { self->on_end(std::move(how)); };
  auto session = on.exec(what, std::move(events));
  std::size_t out = 0, err = 0;
  {
    std::lock_guard hold{mutex_};
    if (ended_)
      return;  // and the session with us
    session_ = session;
    out = std::exchange(owed_out_bytes_, 0);
    err = std::exchange(owed_err_bytes_, 0);
  }
  if (out != 0)
    session->consumed_stdout(out);
  if (err != 0)
    session->consumed_stderr(err);
  feed();
}

void collected_exec::hang_up() {
  std::shared_ptr<exec_session> session;
  std::lock_guard hold{mutex_};
  ended_ = true;
  then_ = nullptr;
  session.swap(session_);
}

void collected_exec::on_output(stream which, std::string_view bytes) {
  std::shared_ptr<exec_session> session;
  {
    std::lock_guard hold{mutex_};
    if (ended_)
      return;
    auto& into = which == stream::out ? collected_.out : collected_.err;
    auto taken = std::min(bytes.size(), exec_output_limit_bytes - into.size());
    into.append(bytes.substr(0, taken));
    collected_.dropped_bytes += bytes.size() - taken;
    session = session_;
    if (!session)
      (which == stream::out ? owed_out_bytes_ : owed_err_bytes_) += bytes.size();
  }
  if (session && which == stream::out)
    session->consumed_stdout(bytes.size());
  else if (session)
    session->consumed_stderr(bytes.size());
}

void collected_exec::on_end(outcome<v1::ExecExited> how) {
  std::function<void(result<exec_result>)> then;
  std::shared_ptr<exec_session> session;
  exec_result collected;
  {
    std::lock_guard hold{mutex_};
    ended_ = true;
    then.swap(then_);
    session.swap(session_);
    collected = std::move(collected_);
  }
  if (!then)
    return;
  if (auto* why = std::get_if<v1::Error>(&how))
    return then(to_public(*why));
  collected.exit_code = std::get<v1::ExecExited>(how).exit_code();
  then(std::move(collected));
}

/// Goes on for as long as the session takes bytes at once; one that takes them later calls again.
void collected_exec::feed() {
  {
    std::lock_guard hold{mutex_};
    if (feeding_)
      return;
    feeding_ = true;
  }
  for (;;) {
    std::shared_ptr<exec_session> session;
    std::string chunk;
    {
      std::lock_guard hold{mutex_};
      if (!session_ || !started_ || ended_ || stdin_closed_ || write_pending_) {
        feeding_ = false;
        return;
      }
      session = session_;
      chunk = stdin_.substr(fed_bytes_, chunk_bytes);
      fed_bytes_ += chunk.size();
      (chunk.empty() ? stdin_closed_ : write_pending_) = true;
    }
    if (chunk.empty())
      session->close_stdin();
    else
      session->write_stdin(std::move(chunk), [weak = weak_from_this()] {
        auto self = weak.lock();
        if (!self)
          return;
        {
          std::lock_guard hold{self->mutex_};
          self->write_pending_ = false;
        }
        self->feed();
      });
  }
}

} // namespace caisson::embedding
