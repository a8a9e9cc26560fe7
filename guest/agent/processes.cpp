#include "guest/agent/processes.hpp"

#include "guest/agent/spawn.hpp"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace caisson::agent {

namespace {

constexpr std::size_t piece_bytes = 32 * 1024;

v1::AgentFailure failure(int error_number, std::string text) {
  v1::AgentFailure f;
  f.set_guest_errno(error_number);
  if (error_number != 0)
    text += std::string{": "} + strerror(error_number);
  f.set_text(text.substr(0, 1024));
  return f;
}

} // namespace

std::variant<v1::ExecStarted, v1::AgentFailure> processes::start(const v1::ExecStart& request) {
  if (request.argv_size() == 0 || request.argv(0).empty())
    return failure(EINVAL, "the command is empty");
  const std::array streams{request.stdin_stream(), request.stdout_stream(), request.stderr_stream()};
  std::size_t added = 0;
  for (; added < streams.size(); ++added)
    if (!(added == 0 ? session_.add_input(streams[added]) : session_.add_output(streams[added])))
      break;
  const auto forget_streams = [&] {
    for (std::size_t i = 0; i < added; ++i)
      session_.forget(streams[i]);
  };
  if (added < streams.size()) {
    forget_streams();
    return failure(EINVAL, "a stream number is 0 or in use, or too many commands run");
  }
  auto child = spawn(request, cgroup_);
  if (child.pid < 0) {
    forget_streams();
    return failure(child.error_number, child.what);
  }
  process p;
  p.id = next_id_++;
  p.pid = child.pid;
  p.terminal = request.terminal();
  p.in = std::move(child.in);
  p.in_stream = streams[0];
  p.outputs[0].fd = std::move(child.out);
  p.outputs[0].stream = streams[1];
  p.outputs[1].fd = std::move(child.err);
  p.outputs[1].stream = streams[2];
  for (const auto stream : streams)
    by_stream_[stream] = p.id;
  const auto id = p.id;
  auto& placed = processes_[id] = std::move(p);
  watch_output(placed, 0);
  if (placed.terminal)
    end_output(placed, placed.outputs[1]);
  else
    watch_output(placed, 1);
  v1::ExecStarted started;
  started.set_exec_id(id);
  started.set_pid(child.pid);
  return started;
}

std::optional<v1::AgentFailure> processes::signal(const v1::ExecSignal& request) {
  const auto* p = find(request.exec_id());
  if (!p || p->exited)
    return failure(ESRCH, "command " + std::to_string(request.exec_id()) + " doesn't run");
  if (request.signal() < 1 || request.signal() > 64)
    return failure(EINVAL, "there is no signal " + std::to_string(request.signal()));
  if (::kill(-p->pid, request.signal()) != 0 && ::kill(p->pid, request.signal()) != 0)
    return failure(errno, "cannot signal command " + std::to_string(request.exec_id()));
  // A shell on a terminal gives each job a group of its own; the one in front is meant too.
  if (pid_t front = p->terminal ? ::tcgetpgrp(p->in.get()) : -1; front > 1 && front != p->pid)
    ::kill(-front, request.signal());
  return std::nullopt;
}

std::optional<v1::AgentFailure> processes::resize(const v1::ExecResize& request) {
  const auto* p = find(request.exec_id());
  if (!p || p->exited || !p->terminal || !p->outputs[0].fd)
    return failure(ENOTTY, "command " + std::to_string(request.exec_id()) + " has no terminal");
  winsize size{};
  size.ws_row = static_cast<unsigned short>(std::min(request.rows(), 65535u));
  size.ws_col = static_cast<unsigned short>(std::min(request.columns(), 65535u));
  if (::ioctl(p->outputs[0].fd.get(), TIOCSWINSZ, &size) != 0)
    return failure(errno, "cannot set the terminal's size");
  return std::nullopt;
}

processes::process* processes::find(std::uint64_t id) {
  const auto it = processes_.find(id);
  return it == processes_.end() ? nullptr : &it->second;
}

processes::process* processes::find_by_stream(std::uint32_t stream) {
  const auto it = by_stream_.find(stream);
  return it == by_stream_.end() ? nullptr : find(it->second);
}

void processes::watch_output(process& p, std::size_t which) {
  auto& o = p.outputs[which];
  if (o.done || o.watched)
    return;
  o.watched = loop_.watch(o.fd.get(), EPOLLIN, [this, id = p.id, which](std::uint32_t) { read_output(id, which); });
}

void processes::unwatch(output& o) {
  if (std::exchange(o.watched, false))
    loop_.forget(o.fd.get());
}

void processes::read_output(std::uint64_t id, std::size_t which) {
  auto* p = find(id);
  if (!p)
    return;
  auto& o = p->outputs[which];
  const auto room = session_.writable_bytes(o.stream);
  if (room == 0) {
    // Not just without EPOLLIN: a hang-up would be told for ever. on_writable watches it again.
    unwatch(o);
    return;
  }
  std::array<std::byte, piece_bytes> piece;
  const auto n = ::read(o.fd.get(), piece.data(), std::min(room, piece.size()));
  if (n > 0) {
    const auto bytes = static_cast<std::size_t>(n);
    session_.write(o.stream, std::span{piece}.first(bytes));
    const bool was_due = o.due > 0;
    o.due -= std::min(o.due, bytes);
    if (p->exited && was_due && o.due == 0)
      settle(id);
  } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) { // EIO: nobody has the terminal open any more
    end_output(*p, o);
    settle(id);
  }
}

void processes::end_output(process& p, output& o) {
  if (o.done)
    return;
  unwatch(o);
  o.fd.reset();
  o.done = true;
  o.due = 0;
  session_.close(o.stream);
  by_stream_.erase(o.stream);
  (void)p;
}

void processes::on_data(std::uint32_t stream, std::span<const std::byte> bytes) {
  auto* p = find_by_stream(stream);
  if (!p || !p->in)
    return;
  p->in_buffer.insert(p->in_buffer.end(), bytes.begin(), bytes.end());
  if (!p->in_watched)
    write_input(*p);
}

void processes::on_eof(std::uint32_t stream) {
  auto* p = find_by_stream(stream);
  if (!p || !p->in)
    return;
  p->in_eof = true;
  if (p->terminal) {
    // A terminal's input has no end; what ends it is the character that its reader takes for one.
    termios settings{};
    if (::tcgetattr(p->in.get(), &settings) == 0 && (settings.c_lflag & ICANON) != 0)
      p->in_buffer.push_back(static_cast<std::byte>(settings.c_cc[VEOF]));
  }
  if (!p->in_watched)
    write_input(*p);
}

void processes::write_input(process& p) {
  std::size_t done = 0;
  bool blocked = false;
  while (done < p.in_buffer.size() && !blocked) {
    const auto n = ::write(p.in.get(), p.in_buffer.data() + done, p.in_buffer.size() - done);
    if (n > 0) {
      done += static_cast<std::size_t>(n);
    } else if (errno == EAGAIN) {
      blocked = true;
    } else if (errno != EINTR) {
      session_.stop(p.in_stream);
      close_input(p);
      return;
    }
  }
  session_.consumed(p.in_stream, done);
  p.in_buffer.erase(p.in_buffer.begin(), p.in_buffer.begin() + static_cast<std::ptrdiff_t>(done));
  if (blocked && !p.in_watched) {
    p.in_watched = loop_.watch(p.in.get(), EPOLLOUT, [this, id = p.id](std::uint32_t) {
      if (auto* waiting = find(id))
        write_input(*waiting);
    });
  } else if (!blocked) {
    if (std::exchange(p.in_watched, false))
      loop_.forget(p.in.get());
    p.in_buffer = {};
    if (p.in_eof && !p.terminal)
      close_input(p);
  }
}

void processes::close_input(process& p) {
  if (std::exchange(p.in_watched, false))
    loop_.forget(p.in.get());
  p.in.reset();
  p.in_buffer = {};
}

void processes::on_writable(std::uint32_t stream) {
  if (auto* p = find_by_stream(stream))
    for (std::size_t i = 0; i < p->outputs.size(); ++i)
      if (p->outputs[i].stream == stream)
        watch_output(*p, i);
}

void processes::on_stopped(std::uint32_t stream) {
  auto* p = find_by_stream(stream);
  if (!p)
    return;
  const auto id = p->id;
  for (auto& o : p->outputs)
    if (o.stream == stream)
      end_output(*p, o);
  if (p->terminal)
    close_input(*p);
  settle(id);
}

bool processes::on_exit(pid_t pid, int status) {
  const auto it =
      std::find_if(processes_.begin(), processes_.end(), [&](auto& entry) { return entry.second.pid == pid; });
  if (it == processes_.end())
    return false;
  auto& p = it->second;
  p.exited = true;
  p.status = status;
  for (auto& o : p.outputs) {
    int bytes = 0;
    if (!o.done && ::ioctl(o.fd.get(), FIONREAD, &bytes) == 0 && bytes > 0)
      o.due = static_cast<std::size_t>(bytes);
  }
  settle(p.id);
  return true;
}

// Reports the exit when the output has ended, or gives what others still hold open its last moment.
void processes::settle(std::uint64_t id) {
  auto* p = find(id);
  if (!p || !p->exited)
    return;
  if (std::all_of(p->outputs.begin(), p->outputs.end(), [](const output& o) { return o.done; })) {
    if (p->linger_timer)
      loop_.cancel(*p->linger_timer);
    close_input(*p);
    session_.forget(p->in_stream);
    by_stream_.erase(p->in_stream);
    v1::AgentNotice notice;
    auto& exited = *notice.mutable_exec_exited();
    exited.set_exec_id(id);
    const int killed_by = WIFSIGNALED(p->status) ? WTERMSIG(p->status) : 0;
    exited.set_exit_code(killed_by != 0 ? 128 + killed_by : WEXITSTATUS(p->status));
    exited.set_signal(killed_by);
    session_.send_notice_after({p->outputs[0].stream, p->outputs[1].stream}, std::move(notice));
    processes_.erase(id);
    return;
  }
  const bool due = std::any_of(p->outputs.begin(), p->outputs.end(), [](const output& o) { return o.due > 0; });
  if (due || p->linger_timer)
    return;
  p->linger_timer = loop_.after(linger, [this, id] {
    auto* late = find(id);
    if (!late)
      return;
    late->linger_timer.reset();
    for (auto& o : late->outputs) {
      if (o.done)
        continue;
      unwatch(o);
      if (!late->terminal)
        drain_into_nothing(std::move(o.fd));
      end_output(*late, o);
    }
    settle(id);
  });
}

void processes::drain_into_nothing(unique_fd fd) {
  const int number = fd.get();
  if (!fd || orphans_.size() >= orphans_max)
    return;
  const bool watched = loop_.watch(number, EPOLLIN, [this, number](std::uint32_t) {
    std::array<std::byte, piece_bytes> nothing;
    const auto n = ::read(number, nothing.data(), nothing.size());
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
      loop_.forget(number);
      orphans_.erase(number);
    }
  });
  if (watched)
    orphans_[number] = std::move(fd);
}

void processes::detach_all() {
  for (auto& [id, p] : processes_) {
    if (p.linger_timer)
      loop_.cancel(*p.linger_timer);
    close_input(p);
    for (auto& o : p.outputs) {
      unwatch(o);
      if (!p.terminal)
        drain_into_nothing(std::move(o.fd));
      o.fd.reset();
    }
  }
  processes_.clear();
  by_stream_.clear();
}

} // namespace caisson::agent
