// caisson/engine.hpp over the handler table of service.hpp.

#include "engine/embed_calls.hpp"
#include "engine/embed_convert.hpp"
#include "engine/embed_exec.hpp"

#include <exception>
#include <future>

#ifndef CAISSON_VERSION
#error "CAISSON_VERSION comes from the build"
#endif

namespace caisson {
namespace embedding {
namespace {

thread_local int callbacks_entered = 0;

/// One subscriber. Held by the subscription; the engine ends it when it goes first.
struct feed {
  gate door;
  std::mutex mutex;
  std::unique_ptr<event_subscription> inner;

  void end() {
    door.close();
    std::unique_ptr<event_subscription> gone;
    {
      std::lock_guard hold{mutex};
      gone.swap(inner);
    }
    gone.reset();
    door.wait();
  }
};

class feed_subscription final : public subscription {
public:
  explicit feed_subscription(std::shared_ptr<feed> f) : feed_(std::move(f)) {}
  ~feed_subscription() override { feed_->end(); }

private:
  std::shared_ptr<feed> feed_;
};

error refused_inside_callback() {
  return make_public_error("conflict", "a blocking call was made inside a callback of the engine, where it would wait for "
                                       "itself; use the call with a completion callback there");
}

} // namespace

bool inside_callback() noexcept {
  return callbacks_entered != 0;
}

void run_callback(const std::function<void()>& callback,
                  const std::function<void(const std::string&)>& complain) noexcept {
  ++callbacks_entered;
  try {
    try {
      callback();
    } catch (const std::exception& e) {
      complain(std::string{"a callback of the embedding program has thrown: "} + e.what());
    } catch (...) {
      complain("a callback of the embedding program has thrown something");
    }
  } catch (...) {  // the complaint itself
  }
  --callbacks_entered;
}

} // namespace embedding

inline namespace abi0 {

using namespace embedding;

std::string_view version() noexcept {
  return CAISSON_VERSION;
}

std::string_view to_string(sandbox_state s) noexcept {
  switch (s) {
  case sandbox_state::creating: return "creating";
  case sandbox_state::running: return "running";
  case sandbox_state::paused: return "paused";
  case sandbox_state::stopping: return "stopping";
  case sandbox_state::stopped: return "stopped";
  case sandbox_state::failed: return "failed";
  case sandbox_state::removed: return "removed";
  case sandbox_state::recovering: return "recovering";
  }
  return "unknown";
}

std::string_view to_string(operation_state s) noexcept {
  switch (s) {
  case operation_state::planned: return "planned";
  case operation_state::running: return "running";
  case operation_state::converged: return "converged";
  case operation_state::partly: return "partly";
  case operation_state::failed: return "failed";
  case operation_state::cancelled: return "cancelled";
  }
  return "unknown";
}

class __attribute__((visibility("hidden"))) engine::impl {
public:
  explicit impl(std::function<void(std::string_view)> to)
      : log_gate(std::make_shared<gate>()), log(guarded(std::move(to), log_gate)),
        calls(std::make_shared<open_calls>(log)) {}

  ~impl() {
    calls->close();
    for (auto& weak : feeds)
      if (auto f = weak.lock())
        f->end();
    // The engine's threads cannot wait for themselves.
    if (inside_callback())
      std::thread{[s = std::move(back)]() mutable { s.reset(); }}.detach();
    back.reset();
    log_gate->close();
    log_gate->wait();
  }

  /// A completion for the handler table that answers `then` in std types, once, or not any more.
  template <class Public, class Proto> std::function<void(outcome<Proto>)> answering(done<Public> then) {
    auto call = std::make_shared<const done<Public>>(std::move(then));
    auto id = begin<Public>(call);
    return [calls = calls, call, id](outcome<Proto> reply) {
      calls->finish(id, [&] {
        if (auto* why = std::get_if<v1::Error>(&reply))
          (*call)(to_public(*why));
        else
          (*call)(to_public(std::get<Proto>(reply)));
      });
    };
  }

  template <class Public>
  std::uint64_t begin(const std::shared_ptr<const done<Public>>& call, std::function<void()> also = nullptr) {
    auto cancel = [call, also = std::move(also)] {
      if (also)
        also();
      (*call)(make_public_error("cancelled", "the engine was closed before the answer was there; what was asked may still "
                                             "happen, and the next engine over this state directory knows"));
    };
    auto id = calls->begin(cancel);
    if (id == 0)  // asked inside the last callbacks of an engine that is going
      run_callback(cancel, log);
    return id;
  }

  /// An answer that needs no engine, on this thread.
  template <class Public> void refuse(const done<Public>& then, error why) {
    run_callback([&] { then(std::move(why)); }, log);
  }

  static std::function<void(std::string_view)> guarded(std::function<void(std::string_view)> to,
                                                       std::shared_ptr<gate> door) {
    return [to = std::move(to), door = std::move(door)](std::string_view line) {
      if (!to || !door->enter())
        return;
      run_callback([&] { to(line); }, [](const std::string&) {});
      door->leave();
    };
  }

  std::shared_ptr<gate> log_gate;
  std::function<void(std::string_view)> log;
  std::shared_ptr<open_calls> calls;
  std::unique_ptr<service> back;
  std::mutex feeds_mutex;
  std::vector<std::weak_ptr<feed>> feeds;
};

namespace {

/// The blocking twin of a call that takes a completion.
template <class T, class F> result<T> waited_for(F&& call) {
  if (inside_callback())
    return refused_inside_callback();
  auto answer = std::make_shared<std::promise<result<T>>>();
  auto there = answer->get_future();
  call([answer](result<T> r) { answer->set_value(std::move(r)); });
  return there.get();
}

} // namespace

engine::engine(std::unique_ptr<impl> i) : impl_(std::move(i)) {}
engine::~engine() = default;

result<std::unique_ptr<engine>> engine::open(engine_options options) {
  auto made = std::make_unique<impl>(std::move(options.log));
  service_options o;
  o.state_directory = std::move(options.state_directory);
  o.run_directory = std::move(options.run_directory);
  o.cache_directory = std::move(options.cache_directory);
  o.guest_directory = std::move(options.guest_directory);
  o.program_directory = std::move(options.program_directory);
  o.log = made->log;
  try {
    auto opened = open_service(std::move(o));
    if (auto* why = std::get_if<v1::Error>(&opened))
      return to_public(*why);
    made->back = std::get<std::unique_ptr<service>>(std::move(opened));
  } catch (const std::exception& e) {
    return make_public_error("internal", std::string{"the engine could not be started: "} + e.what());
  }
  return std::unique_ptr<engine>{new engine{std::move(made)}};
}

void engine::create(sandbox_options options, done<sandbox_status> then) {
  if (auto why = check_texts(options); !why.code.empty())
    return impl_->refuse(then, std::move(why));
  impl_->back->create(to_proto(options), impl_->answering<sandbox_status, v1::SandboxStatus>(std::move(then)));
}

void engine::get(std::string sandbox, done<sandbox_status> then) {
  if (auto why = check_text("sandbox", sandbox); !why.code.empty())
    return impl_->refuse(then, std::move(why));
  v1::GetSandbox m;
  m.set_sandbox(std::move(sandbox));
  impl_->back->get(std::move(m), impl_->answering<sandbox_status, v1::SandboxStatus>(std::move(then)));
}

void engine::list(done<std::vector<sandbox_status>> then) {
  impl_->back->list({}, impl_->answering<std::vector<sandbox_status>, v1::SandboxList>(std::move(then)));
}

void engine::resize(std::string sandbox, resize_request request, done<operation> then) {
  if (auto why = check_text("sandbox", sandbox); !why.code.empty())
    return impl_->refuse(then, std::move(why));
  impl_->back->resize(to_proto(sandbox, request), impl_->answering<operation, v1::Operation>(std::move(then)));
}

void engine::wait(std::string operation_id, std::chrono::milliseconds at_most, done<operation> then) {
  if (auto why = check_text("operation", operation_id); !why.code.empty())
    return impl_->refuse(then, std::move(why));
  using std::chrono::milliseconds;
  v1::WaitOperation m;
  m.set_operation_id(std::move(operation_id));
  m.set_wait_ms(static_cast<std::uint32_t>(std::clamp(at_most, milliseconds{0}, milliseconds{3'600'000}).count()));
  impl_->back->wait_operation(std::move(m), impl_->answering<operation, v1::Operation>(std::move(then)));
}

void engine::exec(std::string sandbox, exec_request request, done<exec_result> then) {
  if (auto why = check_texts(sandbox, request); !why.code.empty())
    return impl_->refuse(then, std::move(why));
  auto call = std::make_shared<const done<exec_result>>(std::move(then));
  auto id = std::make_shared<std::uint64_t>(0);
  auto process = std::make_shared<collected_exec>(std::move(request.stdin_bytes),
                                                  [calls = impl_->calls, call, id](result<exec_result> r) {
                                                    calls->finish(*id, [&] { (*call)(std::move(r)); });
                                                  });
  *id = impl_->begin<exec_result>(call, [process] { process->hang_up(); });
  process->start(*impl_->back, to_proto(sandbox, request));
}

void engine::stop(std::string sandbox, done<sandbox_status> then) {
  if (auto why = check_text("sandbox", sandbox); !why.code.empty())
    return impl_->refuse(then, std::move(why));
  v1::StopSandbox m;
  m.set_sandbox(std::move(sandbox));
  impl_->back->stop(std::move(m), impl_->answering<sandbox_status, v1::SandboxStatus>(std::move(then)));
}

void engine::remove(std::string sandbox, bool force, done<sandbox_status> then) {
  if (auto why = check_text("sandbox", sandbox); !why.code.empty())
    return impl_->refuse(then, std::move(why));
  v1::RemoveSandbox m;
  m.set_sandbox(std::move(sandbox));
  m.set_force(force);
  impl_->back->remove(std::move(m), impl_->answering<sandbox_status, v1::SandboxStatus>(std::move(then)));
}

result<sandbox_status> engine::create(sandbox_options options) {
  return waited_for<sandbox_status>([&](auto then) { create(std::move(options), then); });
}

result<sandbox_status> engine::get(std::string sandbox) {
  return waited_for<sandbox_status>([&](auto then) { get(std::move(sandbox), then); });
}

result<std::vector<sandbox_status>> engine::list() {
  return waited_for<std::vector<sandbox_status>>([&](auto then) { list(then); });
}

result<operation> engine::resize(std::string sandbox, resize_request request) {
  auto now = waited_for<operation>([&](auto then) { resize(std::move(sandbox), request, then); });
  // The engine ends every operation at its deadline.
  while (now.ok() && !now.value().ended())
    now = waited_for<operation>([&](auto then) { wait(now.value().id, std::chrono::minutes{1}, then); });
  return now;
}

result<exec_result> engine::exec(std::string sandbox, exec_request request) {
  return waited_for<exec_result>([&](auto then) { exec(std::move(sandbox), std::move(request), then); });
}

result<sandbox_status> engine::stop(std::string sandbox) {
  return waited_for<sandbox_status>([&](auto then) { stop(std::move(sandbox), then); });
}

result<sandbox_status> engine::remove(std::string sandbox, bool force) {
  return waited_for<sandbox_status>([&](auto then) { remove(std::move(sandbox), force, then); });
}

std::unique_ptr<subscription> engine::subscribe(std::uint64_t from_seq, std::function<void(const event&)> on_event) {
  auto made = std::make_shared<feed>();
  v1::WatchEvents m;
  m.set_from_seq(from_seq);
  m.set_follow(true);
  auto hear = [weak = std::weak_ptr{made}, on_event = std::move(on_event), say = impl_->log](const v1::Event& e) {
    auto f = weak.lock();
    if (!f || !f->door.enter())
      return;
    run_callback([&] { on_event(to_public(e)); }, say);
    f->door.leave();
  };
  auto inner = impl_->back->watch(std::move(m), std::move(hear), nullptr);
  {
    std::lock_guard hold{made->mutex};
    made->inner.swap(inner);
  }
  {
    std::lock_guard hold{impl_->feeds_mutex};
    std::erase_if(impl_->feeds, [](const auto& weak) { return weak.expired(); });
    impl_->feeds.push_back(made);
  }
  return std::make_unique<feed_subscription>(std::move(made));
}

} // namespace abi0
} // namespace caisson
