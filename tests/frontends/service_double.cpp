#include "tests/frontends/service_double.hpp"

#include <csignal>

namespace caisson::test {

constexpr std::uint64_t gib = 1ull << 30;

v1::Error some_error(std::string code, std::string text, int exit_code) {
  v1::Error e;
  e.set_code(std::move(code));
  e.set_text(std::move(text));
  e.set_exit_code(exit_code);
  return e;
}

// ---- process_double ----

process_double::process_double(service_double& owner, v1::ExecStart start, engine::exec_events events)
    : owner_{owner}, start_{std::move(start)}, events_{std::move(events)} {}

process_double::~process_double() {
  if (!ended_)
    owner_.note("hung up " + start_.argv(0));
}

void process_double::begin() {
  const auto& program = start_.argv(0);
  if (program == "missing") {
    events_.on_end(some_error("not_found", "no such sandbox", 125));
    ended_ = true;
    return;
  }
  events_.on_started();
  if (program == "args") {
    std::string all;
    for (const auto& a : start_.argv())
      all += a + "\n";
    events_.on_stdout(all);
    events_.on_stderr("done\n");
    end(0);
  } else if (program == "exit") {
    end(std::stoi(start_.argv(1)));
  } else if (program == "flood") {
    to_flood_ = std::stoul(start_.argv(1));
    flood();
  }
}

void process_double::write_stdin(std::string bytes, std::function<void()> taken) {
  owner_.note("stdin " + std::to_string(bytes.size()));
  if (start_.argv(0) == "deaf")
    return;
  if (start_.argv(0) == "cat")
    events_.on_stdout(bytes);
  taken();
}

void process_double::close_stdin() {
  owner_.note("stdin closed");
  if (start_.argv(0) == "cat")
    end(0);
}

void process_double::resize(std::uint32_t rows, std::uint32_t columns) {
  owner_.note("size " + std::to_string(rows) + "x" + std::to_string(columns));
}

void process_double::signal(int number) {
  owner_.note("signal " + std::to_string(number));
  if (start_.argv(0) != "stubborn")
    end(128 + number, number);
}

void process_double::consumed_stdout(std::size_t bytes) {
  {
    std::lock_guard hold{mutex_};
    credit_ += bytes;
  }
  flood();
}

void process_double::flood() {
  std::unique_lock hold{mutex_};
  if (start_.argv(0) != "flood" || std::exchange(flooding_, true))
    return;
  while (credit_ > 0 && to_flood_ > 0) {
    auto n = std::min({credit_, to_flood_, std::size_t{32 * 1024}});
    credit_ -= n;
    to_flood_ -= n;
    hold.unlock();
    events_.on_stdout(std::string(n, 'x'));
    owner_.add_flooded(n);
    hold.lock();
  }
  flooding_ = false;
  bool over = to_flood_ == 0;
  hold.unlock();
  if (over)
    end(0);
}

void process_double::end(int exit_code, int signal_number) {
  {
    std::lock_guard hold{mutex_};
    if (std::exchange(ended_, true))
      return;
  }
  v1::ExecExited exited;
  exited.set_exit_code(exit_code);
  exited.set_signal(signal_number);
  events_.on_end(exited);
}

// ---- service_double ----

void service_double::note(std::string what) {
  std::lock_guard hold{mutex_};
  notes_.push_back(std::move(what));
  changed_.notify_all();
}

bool service_double::wait_for(const std::string& begins, int at_most_ms) {
  std::unique_lock hold{mutex_};
  return changed_.wait_for(hold, std::chrono::milliseconds{at_most_ms}, [&] {
    return std::any_of(notes_.begin(), notes_.end(), [&](const auto& n) { return n.starts_with(begins); });
  });
}

bool service_double::noted(const std::string& begins) {
  return wait_for(begins, 0);
}

std::size_t service_double::flooded() {
  std::lock_guard hold{mutex_};
  return flooded_;
}

void service_double::add_flooded(std::size_t bytes) {
  std::lock_guard hold{mutex_};
  flooded_ += bytes;
  changed_.notify_all();
}

bool service_double::wait_flooded(std::size_t bytes, int at_most_ms) {
  std::unique_lock hold{mutex_};
  return changed_.wait_for(hold, std::chrono::milliseconds{at_most_ms}, [&] { return flooded_ >= bytes; });
}

engine::outcome<v1::SandboxStatus> service_double::find(const std::string& name) {
  std::lock_guard hold{mutex_};
  for (const auto& [id, s] : sandboxes_)
    if (id == name || s.name() == name)
      return s;
  return some_error("not_found", "sandbox " + name + ": there is none", 125);
}

void service_double::create(v1::CreateSandbox m, engine::done<v1::SandboxStatus> then) {
  note("create " + m.name() + " owner=" + m.owner());
  auto finish = [this, m, then] {
    if (create_error) {
      then(*create_error);
      return;
    }
    v1::SandboxStatus s;
    s.set_id("id-" + m.name());
    s.set_name(m.name());
    s.set_owner(m.owner());
    s.set_state(v1::SANDBOX_STATE_RUNNING);
    s.mutable_memory()->set_boot_bytes(2 * gib);
    s.mutable_memory()->set_target_bytes(2 * gib);
    s.set_config_path(m.config_path());
    {
      std::lock_guard hold{mutex_};
      sandboxes_[s.id()] = s;
    }
    then(s);
  };
  if (!hold_create) {
    finish();
    return;
  }
  std::lock_guard hold{mutex_};
  held_create_ = finish;
}

void service_double::release_create() {
  std::function<void()> finish;
  {
    std::lock_guard hold{mutex_};
    finish = std::exchange(held_create_, nullptr);
  }
  if (finish)
    finish();
}

void service_double::get(v1::GetSandbox m, engine::done<v1::SandboxStatus> then) {
  then(find(m.sandbox()));
}

void service_double::list(v1::ListSandboxes, engine::done<v1::SandboxList> then) {
  v1::SandboxList l;
  {
    std::lock_guard hold{mutex_};
    for (const auto& [id, s] : sandboxes_)
      *l.add_sandboxes() = s;
  }
  then(l);
}

void service_double::stop(v1::StopSandbox m, engine::done<v1::SandboxStatus> then) {
  note("stop " + m.sandbox());
  then(find(m.sandbox()));
}

void service_double::remove(v1::RemoveSandbox m, engine::done<v1::SandboxStatus> then) {
  auto found = find(m.sandbox());
  if (auto* s = std::get_if<v1::SandboxStatus>(&found)) {
    std::lock_guard hold{mutex_};
    sandboxes_.erase(s->id());
  }
  note("remove " + m.sandbox());
  then(found);
}

void service_double::pause(v1::PauseSandbox m, engine::done<v1::SandboxStatus> then) {
  then(find(m.sandbox()));
}

void service_double::resume(v1::ResumeSandbox m, engine::done<v1::SandboxStatus> then) {
  then(find(m.sandbox()));
}

void service_double::resize(v1::ResizeSandbox m, engine::done<v1::Operation> then) {
  note("resize " + m.sandbox() + " " + std::to_string(m.memory_bytes()) + " " + std::to_string(m.vcpus()));
  v1::Operation o;
  o.set_id("op-1");
  o.set_sandbox_id(m.sandbox());
  o.set_state(m.dry_run() ? v1::OPERATION_STATE_PLANNED : v1::OPERATION_STATE_RUNNING);
  o.set_memory_asked_bytes(m.memory_bytes());
  o.set_vcpus_asked(m.vcpus());
  then(o);
}

void service_double::get_operation(v1::GetOperation m, engine::done<v1::Operation> then) {
  v1::Operation o;
  o.set_id(m.operation_id());
  o.set_state(v1::OPERATION_STATE_CONVERGED);
  then(o);
}

void service_double::wait_operation(v1::WaitOperation m, engine::done<v1::Operation> then) {
  v1::Operation o;
  o.set_id(m.operation_id());
  o.set_memory_asked_bytes(3 * gib);
  o.mutable_memory()->set_boot_bytes(2 * gib);
  o.mutable_memory()->set_plugged_bytes(gib);
  o.mutable_memory()->set_guest_bytes(3 * gib - (128ull << 20));
  o.set_state(v1::OPERATION_STATE_CONVERGED);
  {
    std::lock_guard hold{mutex_};
    if (!waits.empty()) {
      o.set_state(waits.front());
      waits.erase(waits.begin());
    }
  }
  if (o.state() == v1::OPERATION_STATE_PARTLY)
    o.set_why("the guest has onlined 896 MiB of the 1 GiB that were plugged");
  then(o);
}

void service_double::cancel_operation(v1::CancelOperation m, engine::done<v1::Operation> then) {
  v1::Operation o;
  o.set_id(m.operation_id());
  o.set_state(v1::OPERATION_STATE_CANCELLED);
  then(o);
}

void service_double::console(v1::ConsoleRequest m, engine::done<v1::ConsoleText> then) {
  if (m.sandbox() == "failed") {
    auto e = some_error("boot_failed", "the guest has not come up", 125);
    for (int i = 0; i < 20; ++i)
      e.add_console_tail("line " + std::to_string(i) + " " + std::string(1000, 'k'));
    then(e);
    return;
  }
  v1::ConsoleText t;
  t.set_text("Linux version\n");
  then(t);
}

void service_double::status(v1::GetEngine, engine::done<v1::EngineStatus> then) {
  v1::EngineStatus s;
  s.set_version("double");
  then(s);
}

void service_double::describe(v1::DescribeHost m, engine::done<v1::Capabilities> then) {
  if (m.hypervisor() == "cloud-hypervisor")
    return then(some_error("host_missing", "there is no cloud-hypervisor in PATH", 125));
  v1::Capabilities c;
  c.set_backend(m.hypervisor().empty() ? "double" : m.hypervisor());
  c.set_architecture(m.architecture());
  then(c);
}

std::shared_ptr<engine::exec_session> service_double::exec(v1::ExecRequest m, engine::exec_events events) {
  note("exec " + m.sandbox() + " " + m.start().argv(0));
  auto process = std::make_shared<process_double>(*this, m.start(), std::move(events));
  process->begin();
  return process;
}

class subscription_double final : public engine::event_subscription {
public:
  subscription_double(service_double& s, int number) : service_{s}, number_{number} {}
  ~subscription_double() override {
    {
      std::lock_guard hold{service_.mutex_};
      service_.subscribers_.erase(number_);
    }
    service_.note("unsubscribed");
  }

private:
  service_double& service_;
  int number_;
};

std::unique_ptr<engine::event_subscription> service_double::watch(v1::WatchEvents m,
                                                                  std::function<void(const v1::Event&)> on_event,
                                                                  std::function<void()> on_caught_up) {
  for (const auto& e : old_events)
    if (m.from_seq() > 0 && e.seq() >= m.from_seq())
      on_event(e);
  on_caught_up();
  int number = 0;
  {
    std::lock_guard hold{mutex_};
    number = next_subscriber_++;
    if (m.follow())
      subscribers_[number] = on_event;
  }
  note("subscribed");
  return std::make_unique<subscription_double>(*this, number);
}

void service_double::emit(const v1::Event& e) {
  std::lock_guard hold{mutex_};
  for (auto& [number, on_event] : subscribers_)
    on_event(e);
}

} // namespace caisson::test
