#pragma once

// A double of the engine's service: answers from a small table, keeps what it was asked. Programs that it "runs" are
// chosen by argv[0]: cat, args, exit N, flood BYTES, hold, deaf (never takes its standard input), missing.

#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "engine/service.hpp"

namespace caisson::test {

class service_double;

class process_double final : public engine::exec_session {
public:
  process_double(service_double& owner, v1::ExecStart start, engine::exec_events events);
  ~process_double() override;
  void begin();

  void write_stdin(std::string bytes, std::function<void()> taken) override;
  void close_stdin() override;
  void resize(std::uint32_t rows, std::uint32_t columns) override;
  void signal(int number) override;
  void consumed_stdout(std::size_t bytes) override;
  void consumed_stderr(std::size_t) override {}

private:
  void end(int exit_code, int signal_number = 0);
  void flood();

  service_double& owner_;
  v1::ExecStart start_;
  engine::exec_events events_;
  std::mutex mutex_;
  std::size_t credit_ = 64 * 1024;
  std::size_t to_flood_ = 0;
  bool flooding_ = false, ended_ = false;
};

class service_double : public engine::service {
public:
  /// Says that something happened, for wait_for().
  void note(std::string what);
  /// True once a note begins with this; waits at most ten seconds.
  bool wait_for(const std::string& begins, int at_most_ms = 10'000);
  bool noted(const std::string& begins);
  std::size_t flooded();
  void add_flooded(std::size_t bytes);
  /// Waits until so much was flooded, at most so long.
  bool wait_flooded(std::size_t bytes, int at_most_ms);

  v1::Error* create_error = nullptr; ///< answered by create
  bool hold_create = false;          ///< create waits for release_create()
  void release_create();
  std::vector<v1::OperationState> waits; ///< what wait_operation answers, one after another
  std::vector<v1::Event> old_events;     ///< old ones

  void create(v1::CreateSandbox, engine::done<v1::SandboxStatus>) override;
  void get(v1::GetSandbox, engine::done<v1::SandboxStatus>) override;
  void list(v1::ListSandboxes, engine::done<v1::SandboxList>) override;
  void stop(v1::StopSandbox, engine::done<v1::SandboxStatus>) override;
  void remove(v1::RemoveSandbox, engine::done<v1::SandboxStatus>) override;
  void pause(v1::PauseSandbox, engine::done<v1::SandboxStatus>) override;
  void resume(v1::ResumeSandbox, engine::done<v1::SandboxStatus>) override;
  void resize(v1::ResizeSandbox, engine::done<v1::Operation>) override;
  void get_operation(v1::GetOperation, engine::done<v1::Operation>) override;
  void wait_operation(v1::WaitOperation, engine::done<v1::Operation>) override;
  void cancel_operation(v1::CancelOperation, engine::done<v1::Operation>) override;
  void console(v1::ConsoleRequest, engine::done<v1::ConsoleText>) override;
  void status(v1::GetEngine, engine::done<v1::EngineStatus>) override;
  void describe(v1::DescribeHost, engine::done<v1::Capabilities>) override;
  std::shared_ptr<engine::exec_session> exec(v1::ExecRequest, engine::exec_events) override;
  std::unique_ptr<engine::event_subscription> watch(v1::WatchEvents, std::function<void(const v1::Event&)>,
                                                    std::function<void()>) override;
  std::uint32_t sandbox_count() const override { return 0; }

  /// To every subscriber that follows.
  void emit(const v1::Event& e);

private:
  engine::outcome<v1::SandboxStatus> find(const std::string& name);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> notes_;
  std::size_t flooded_ = 0;
  std::map<std::string, v1::SandboxStatus> sandboxes_;
  std::map<int, std::function<void(const v1::Event&)>> subscribers_;
  int next_subscriber_ = 0;
  std::function<void()> held_create_;
  friend class subscription_double;
};

/// An error with figures as the engine gives them.
v1::Error some_error(std::string code, std::string text, int exit_code);

} // namespace caisson::test
