#include "frontends/grpc/server.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include <grpc/support/log.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include "frontends/grpc/door_context.hpp"
#include "frontends/grpc/socket_uri.hpp"
#include "frontends/grpc/status.hpp"
#include "messages/doors.grpc.pb.h"

namespace caisson::door {
namespace {

using grpc::CallbackServerContext;
using grpc::ServerUnaryReactor;

// One plain call: the service's completion finishes it, or the client's going does. What comes after that goes to
// `late`.
template <class Response> class unary_call final : public ServerUnaryReactor {
public:
  using late_answer = std::function<void(const Response&)>;

  unary_call(std::shared_ptr<door_context> door, CallbackServerContext& context, Response& out, late_answer late)
      : door_{std::move(door)}, context_{context}, out_{out}, late_{std::move(late)} {}

  template <class Request>
  static ServerUnaryReactor*
  start(const std::shared_ptr<door_context>& door, CallbackServerContext* context, const Request* in, Response* out,
        void (engine::service::*verb)(Request, engine::done<Response>), late_answer late = {}) {
    auto self = std::make_shared<unary_call>(door, *context, *out, std::move(late));
    self->self_ = self;
    auto running = std::make_shared<activity>(door);
    (door->service.*verb)(*in, [self, running](engine::outcome<Response> o) mutable {
      self->answer(std::move(o));
      self.reset();
      running.reset();
    });
    return self.get();
  }

  void OnCancel() override {
    std::lock_guard hold{mutex_};
    if (std::exchange(finished_, true))
      return;
    Finish({grpc::StatusCode::CANCELLED, "the client has gone"});
    door_->log("a client has gone before its answer");
  }

  void OnDone() override { auto last = std::move(self_); }

private:
  void answer(engine::outcome<Response> outcome) {
    {
      std::lock_guard hold{mutex_};
      if (!std::exchange(finished_, true)) {
        auto status = grpc::Status::OK;
        if (auto* failure = std::get_if<v1::Error>(&outcome))
          status = to_status(std::move(*failure), context_);
        else
          out_ = std::move(std::get<Response>(outcome));
        Finish(status);
        return;
      }
    }
    if (late_ && outcome.index() == 0)
      late_(std::get<Response>(outcome));
  }

  std::shared_ptr<door_context> door_;
  CallbackServerContext& context_;
  Response& out_;
  late_answer late_;
  std::mutex mutex_;
  bool finished_ = false;
  std::shared_ptr<unary_call> self_;
};

template <class Request, class Response>
ServerUnaryReactor* unary(const std::shared_ptr<door_context>& door, CallbackServerContext* context, const Request* in,
                          Response* out, void (engine::service::*verb)(Request, engine::done<Response>)) {
  return unary_call<Response>::start(door, context, in, out, verb);
}

class sandboxes final : public v1::Sandboxes::CallbackService {
public:
  explicit sandboxes(std::shared_ptr<door_context> d) : door_{std::move(d)} {}
  using service = engine::service;

  ServerUnaryReactor* Create(CallbackServerContext* c, const v1::CreateSandbox* in, v1::SandboxStatus* out) override {
    // A sandbox whose client has gone before the answer is removed again: nobody knows of it.
    auto undo = [door = door_, keep = !in->idempotency_key().empty()](const v1::SandboxStatus& made) {
      if (keep)
        return;
      door->log("sandbox " + made.name() + " is removed again: its client has gone before the answer");
      remove_orphan(door, made.id(), [](std::string) {});
    };
    return unary_call<v1::SandboxStatus>::start(door_, c, in, out, &service::create, undo);
  }
  ServerUnaryReactor* Get(CallbackServerContext* c, const v1::GetSandbox* in, v1::SandboxStatus* out) override {
    return unary(door_, c, in, out, &service::get);
  }
  ServerUnaryReactor* List(CallbackServerContext* c, const v1::ListSandboxes* in, v1::SandboxList* out) override {
    return unary(door_, c, in, out, &service::list);
  }
  ServerUnaryReactor* Stop(CallbackServerContext* c, const v1::StopSandbox* in, v1::SandboxStatus* out) override {
    return unary(door_, c, in, out, &service::stop);
  }
  ServerUnaryReactor* Remove(CallbackServerContext* c, const v1::RemoveSandbox* in, v1::SandboxStatus* out) override {
    return unary(door_, c, in, out, &service::remove);
  }
  ServerUnaryReactor* Pause(CallbackServerContext* c, const v1::PauseSandbox* in, v1::SandboxStatus* out) override {
    return unary(door_, c, in, out, &service::pause);
  }
  ServerUnaryReactor* Resume(CallbackServerContext* c, const v1::ResumeSandbox* in, v1::SandboxStatus* out) override {
    return unary(door_, c, in, out, &service::resume);
  }
  ServerUnaryReactor* Resize(CallbackServerContext* c, const v1::ResizeSandbox* in, v1::Operation* out) override {
    return unary(door_, c, in, out, &service::resize);
  }
  ServerUnaryReactor* Console(CallbackServerContext* c, const v1::ConsoleRequest* in, v1::ConsoleText* out) override {
    return unary(door_, c, in, out, &service::console);
  }
  grpc::ServerBidiReactor<v1::ExecInput, v1::ExecOutput>* Exec(CallbackServerContext* c) override {
    return make_exec_call(door_, *c);
  }

private:
  std::shared_ptr<door_context> door_;
};

class operations final : public v1::Operations::CallbackService {
public:
  explicit operations(std::shared_ptr<door_context> d) : door_{std::move(d)} {}
  using service = engine::service;

  ServerUnaryReactor* Get(CallbackServerContext* c, const v1::GetOperation* in, v1::Operation* out) override {
    return unary(door_, c, in, out, &service::get_operation);
  }
  ServerUnaryReactor* Wait(CallbackServerContext* c, const v1::WaitOperation* in, v1::Operation* out) override {
    return unary(door_, c, in, out, &service::wait_operation);
  }
  ServerUnaryReactor* Cancel(CallbackServerContext* c, const v1::CancelOperation* in, v1::Operation* out) override {
    return unary(door_, c, in, out, &service::cancel_operation);
  }

private:
  std::shared_ptr<door_context> door_;
};

class events final : public v1::Events::CallbackService {
public:
  explicit events(std::shared_ptr<door_context> d) : door_{std::move(d)} {}

  grpc::ServerWriteReactor<v1::Event>* Watch(CallbackServerContext*, const v1::WatchEvents* in) override {
    return make_watch_call(door_, *in);
  }

private:
  std::shared_ptr<door_context> door_;
};

class engine_calls final : public v1::Engine::CallbackService {
public:
  explicit engine_calls(std::shared_ptr<door_context> d) : door_{std::move(d)} {}

  ServerUnaryReactor* Get(CallbackServerContext* c, const v1::GetEngine* in, v1::EngineStatus* out) override {
    return unary(door_, c, in, out, &engine::service::status);
  }
  ServerUnaryReactor* Describe(CallbackServerContext* c, const v1::DescribeHost* in, v1::Capabilities* out) override {
    return unary(door_, c, in, out, &engine::service::describe);
  }
  ServerUnaryReactor* ShutDown(CallbackServerContext* c, const v1::Empty*, v1::Empty*) override {
    auto* reactor = c->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    if (door_->options.on_shut_down)
      door_->options.on_shut_down();
    return reactor;
  }

private:
  std::shared_ptr<door_context> door_;
};

class grpc_server final : public server {
public:
  explicit grpc_server(std::shared_ptr<door_context> d)
      : door_{std::move(d)}, sandboxes_{door_}, operations_{door_}, events_{door_}, engine_{door_} {}

  ~grpc_server() override { stop(std::chrono::milliseconds{0}); }

  bool listen() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(socket_uri(door_->options.socket), grpc::InsecureServerCredentials());
    builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, max_metadata_bytes);
    // Clients notice a stopped engine by pings; they may send them while nothing else is said.
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
    builder.SetMaxReceiveMessageSize(4 * 1024 * 1024);
    builder.RegisterService(&sandboxes_);
    builder.RegisterService(&operations_);
    builder.RegisterService(&events_);
    builder.RegisterService(&engine_);
    server_ = builder.BuildAndStart();
    return server_ != nullptr;
  }

  void stop(std::chrono::milliseconds grace) override {
    if (!server_)
      return;
    server_->Shutdown(std::chrono::system_clock::now() + grace);
    server_.reset();
    ::unlink(door_->options.socket.c_str());
    if (!door_->wait_idle(std::chrono::seconds{30}))
      door_->log("calls that were cut off have not ended within 30 s");
  }

  std::uint32_t active_calls() const override { return door_->active(); }
  std::chrono::steady_clock::time_point last_activity() const override { return door_->last(); }

private:
  std::shared_ptr<door_context> door_;
  sandboxes sandboxes_;
  operations operations_;
  events events_;
  engine_calls engine_;
  std::unique_ptr<grpc::Server> server_;
};

} // namespace

std::variant<std::unique_ptr<server>, v1::Error> server::start(engine::service& service, server_options options) {
  auto socket = options.socket;
  auto made = std::make_unique<grpc_server>(std::make_shared<door_context>(service, std::move(options)));
  if (!made->listen())
    return make_error("host_io", "socket " + socket +
                                     ": the local door cannot listen there; its directory has to exist, be "
                                     "writable for this user, and the path has to stay under 108 bytes");
  if (::chmod(socket.c_str(), 0600) != 0)
    return make_error("host_io", "socket " + socket + ": its mode cannot be set to 0600: " + std::strerror(errno));
  return made;
}

} // namespace caisson::door
