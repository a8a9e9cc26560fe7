#include "engine/exec_bridge.hpp"

#include <string_view>
#include <utility>

namespace caisson::engine {
namespace {

std::string_view text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

class session final : public exec_session {
public:
  explicit session(std::shared_ptr<exec_bridge> bridge) : bridge_{std::move(bridge)} {}
  ~session() override { bridge_->hang_up(); }

  void write_stdin(std::string bytes, std::function<void()> taken) override {
    bridge_->with_exec(
        [bytes = std::move(bytes), taken = std::move(taken)](guest_exec& e) { e.write_stdin(bytes, taken); });
  }
  void close_stdin() override {
    bridge_->with_exec([](guest_exec& e) { e.close_stdin(); });
  }
  void resize(std::uint32_t rows, std::uint32_t columns) override {
    bridge_->with_exec([rows, columns](guest_exec& e) { e.resize(rows, columns); });
  }
  void signal(int number) override {
    bridge_->with_exec([number](guest_exec& e) { e.signal(number); });
  }
  void consumed_stdout(std::size_t bytes) override {
    bridge_->with_exec([bytes](guest_exec& e) { e.consumed_stdout(bytes); });
  }
  void consumed_stderr(std::size_t bytes) override {
    bridge_->with_exec([bytes](guest_exec& e) { e.consumed_stderr(bytes); });
  }

private:
  std::shared_ptr<exec_bridge> bridge_;
};

} // namespace

void exec_bridge::start(guest_link& link, v1::ExecStart what) {
  auto self = shared_from_this();
  auto exec = link.exec(std::move(what),
                        {.on_started =
                             [self] {
                               if (self->events_.on_started)
                                 self->events_.on_started();
                             },
                         .on_stdout = [self](std::span<const std::byte> b) { self->events_.on_stdout(text(b)); },
                         .on_stderr = [self](std::span<const std::byte> b) { self->events_.on_stderr(text(b)); },
                         .on_end =
                             [self](std::variant<v1::ExecExited, v1::Error> how) {
                               if (auto* exited = std::get_if<v1::ExecExited>(&how))
                                 self->end(*exited);
                               else
                                 self->end(std::get<v1::Error>(how));
                             }});
  std::vector<std::function<void(guest_exec&)>> early;
  {
    std::lock_guard lock{mutex_};
    if (ended_ || hung_up_)
      return; // `exec` goes here: the command is hung up
    exec_ = exec;
    early = std::exchange(early_, {});
  }
  for (auto& work : early)
    work(*exec);
}

void exec_bridge::fail(const v1::Error& why) {
  end(why);
}

void exec_bridge::end(outcome<v1::ExecExited> how) {
  std::function<void(outcome<v1::ExecExited>)> tell;
  std::shared_ptr<guest_exec> gone;
  {
    std::lock_guard lock{mutex_};
    if (std::exchange(ended_, true))
      return;
    tell = events_.on_end;
    gone = std::exchange(exec_, nullptr);
    early_.clear();
  }
  if (tell)
    tell(std::move(how));
}

void exec_bridge::with_exec(std::function<void(guest_exec&)> work) {
  std::shared_ptr<guest_exec> exec;
  {
    std::lock_guard lock{mutex_};
    if (ended_ || hung_up_)
      return;
    if (!exec_) {
      constexpr std::size_t most_early = 256;
      if (early_.size() < most_early)
        early_.push_back(std::move(work));
      return;
    }
    exec = exec_;
  }
  work(*exec);
}

void exec_bridge::hang_up() {
  std::shared_ptr<guest_exec> gone;
  std::lock_guard lock{mutex_};
  hung_up_ = true;
  early_.clear();
  gone = std::exchange(exec_, nullptr);
}

std::shared_ptr<exec_session> session_of(std::shared_ptr<exec_bridge> bridge) {
  return std::make_shared<session>(std::move(bridge));
}

} // namespace caisson::engine
