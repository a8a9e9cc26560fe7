#pragma once

/// A guest spoken to directly through a backend's own pipes: the host's end of the agent protocol, made blocking for
/// tests. It stands in the conformance body where the engine's guest_agent stands in production.

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>

#include "guest/protocol/host_session.hpp"
#include "messages/local.hpp"

namespace caisson::tests {

class guest_client {
public:
  explicit guest_client(pipe_opener& opener) : core_{std::make_shared<core>(opener)} {}
  ~guest_client() {
    core_->opener.runs_on().post([c = core_] { c->close(); });
  }
  guest_client(const guest_client&) = delete;
  guest_client& operator=(const guest_client&) = delete;

  /// Connects and waits for the guest's hello.
  std::optional<v1::AgentHello> open(const std::string& endpoint, std::chrono::seconds at_most) {
    core_->opener.runs_on().post([c = core_, endpoint] {
      c->opener.open(endpoint,
                     [c](std::unique_ptr<byte_pipe> pipe, std::string why) { c->begin(std::move(pipe), why); });
    });
    std::unique_lock lock{core_->mutex};
    core_->changed.wait_for(lock, at_most, [&] { return core_->hello || !core_->lost.empty(); });
    return core_->hello;
  }

  /// nullopt: no answer in that time, or the channel is lost.
  std::optional<v1::AgentReply> ask(v1::AgentRequest request, std::chrono::seconds at_most) {
    std::unique_lock lock{core_->mutex};
    const auto id = ++core_->last_id;
    request.set_id(id);
    core_->opener.runs_on().post([c = core_, request] { c->send(request); });
    core_->changed.wait_for(lock, at_most, [&] { return core_->replies.contains(id) || !core_->lost.empty(); });
    const auto it = core_->replies.find(id);
    if (it == core_->replies.end())
      return std::nullopt;
    return it->second;
  }

  /// Waits until MemTotal is in at_least..at_most (0: no mark) and says what it is.
  std::optional<v1::MemoryFacts> await_memory(std::uint64_t at_least, std::uint64_t at_most,
                                              std::chrono::seconds limit) {
    v1::AgentRequest r;
    r.mutable_await_memory()->set_mem_total_at_least_bytes(at_least);
    r.mutable_await_memory()->set_mem_total_at_most_bytes(at_most);
    r.mutable_await_memory()->set_wait_ms(static_cast<std::uint32_t>(limit.count() * 1000));
    const auto reply = ask(r, limit + std::chrono::seconds{30});
    if (!reply || !reply->has_facts())
      return std::nullopt;
    return reply->facts().memory();
  }

  std::optional<v1::CpuFacts> set_online_cpus(std::uint32_t count, std::chrono::seconds limit) {
    v1::AgentRequest r;
    r.mutable_set_online_cpus()->set_online(count);
    r.mutable_set_online_cpus()->set_wait_ms(static_cast<std::uint32_t>(limit.count() * 1000));
    const auto reply = ask(r, limit + std::chrono::seconds{30});
    if (!reply || !reply->has_facts())
      return std::nullopt;
    return reply->facts().cpus();
  }

  bool await_lost(std::chrono::seconds at_most) {
    std::unique_lock lock{core_->mutex};
    return core_->changed.wait_for(lock, at_most, [&] { return !core_->lost.empty(); });
  }

  std::string lost() {
    std::lock_guard lock{core_->mutex};
    return core_->lost;
  }

private:
  struct core : std::enable_shared_from_this<core> {
    explicit core(pipe_opener& o) : opener{o} {}

    void begin(std::unique_ptr<byte_pipe> opened, const std::string& why) {
      if (!opened)
        return lose(why.empty() ? "not opened" : why);
      pipe = std::move(opened);
      guest_protocol::host_events e;
      e.on_hello = [this](const v1::AgentHello& h) { note([&] { hello = h; }); };
      e.on_reply = [this](const v1::AgentReply& r) { note([&] { replies[r.id()] = r; }); };
      e.on_protocol_error = [this](const std::string& text) { lose(text); };
      session = std::make_unique<guest_protocol::host_session>(std::move(e));
      std::weak_ptr<core> weak = shared_from_this();
      byte_pipe::callbacks c;
      c.on_bytes = [weak](std::span<const std::byte> bytes) {
        if (auto self = weak.lock()) {
          self->session->feed(bytes);
          self->pump();
        }
      };
      c.on_closed = [weak](std::error_code ec) {
        if (auto self = weak.lock())
          self->lose("closed " + ec.message());
      };
      c.on_drained = [weak] {
        if (auto self = weak.lock())
          self->pump();
      };
      pipe->start(std::move(c));
      session->open(std::random_device{}() | 1u);
      pump();
    }

    void send(const v1::AgentRequest& request) {
      if (!session)
        return;
      if (auto why = session->send_request(request))
        lose(*why);
      pump();
    }

    void pump() {
      while (pipe && session->has_output()) {
        const auto bytes = session->take_output();
        if (bytes.empty())
          return;
        pipe->write(bytes);
      }
    }

    void close() {
      if (pipe)
        pipe->close();
      opener.runs_on().post([p = std::shared_ptr<byte_pipe>{std::move(pipe)}] {});
    }

    void lose(const std::string& why) {
      note([&] {
        if (lost.empty())
          lost = why;
      });
    }

    template <class F> void note(F f) {
      std::lock_guard lock{mutex};
      f();
      changed.notify_all();
    }

    pipe_opener& opener;
    std::unique_ptr<byte_pipe> pipe;
    std::unique_ptr<guest_protocol::host_session> session;
    std::mutex mutex;
    std::condition_variable changed;
    std::optional<v1::AgentHello> hello;
    std::map<std::uint64_t, v1::AgentReply> replies;
    std::string lost;
    std::uint64_t last_id = 0;
  };

  std::shared_ptr<core> core_;
};

} // namespace caisson::tests
