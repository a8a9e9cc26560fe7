#include "frontends/grpc/client.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include <grpcpp/channel.h>
#include <grpcpp/create_channel_posix.h>
#include <grpcpp/support/channel_arguments.h>

#include "frontends/grpc/status.hpp"
#include "messages/doors.grpc.pb.h"

namespace caisson::door {
namespace {

using std::chrono::minutes;
using std::chrono::seconds;

// The first call of a connection, one that only looks at what the engine knows, and one that waits for a VM. The
// engine's own deadlines are shorter.
constexpr seconds greeting{30};
constexpr seconds look{60};
constexpr minutes work{20};

class grpc_exec final : public exec_stream {
public:
  grpc_exec(v1::Sandboxes::Stub& stub, std::string socket)
      : socket_{std::move(socket)}, stream_{stub.Exec(&context_)} {}

  bool write(const v1::ExecInput& in) override { return stream_->Write(in); }
  bool read(v1::ExecOutput& out) override { return stream_->Read(&out); }
  std::optional<v1::Error> finish() override {
    auto status = stream_->Finish();
    if (status.ok())
      return std::nullopt;
    return from_status(status, context_, socket_);
  }
  void cancel() override { context_.TryCancel(); }

private:
  std::string socket_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::ExecInput, v1::ExecOutput>> stream_;
};

class grpc_client final : public client {
public:
  grpc_client(std::string socket, std::shared_ptr<grpc::Channel> channel)
      : socket_{std::move(socket)}, channel_{std::move(channel)}, sandboxes_{channel_},
        operations_{channel_}, events_{channel_}, engine_{channel_} {}

  const v1::EngineStatus& engine() const override { return greeting_; }

  std::optional<v1::Error> greet() {
    auto got = call(engine_, &v1::Engine::Stub::Get, v1::GetEngine{}, greeting);
    if (auto* e = std::get_if<v1::Error>(&got))
      return std::move(*e);
    greeting_ = std::move(std::get<v1::EngineStatus>(got));
    return std::nullopt;
  }

  answer<v1::SandboxStatus> create(const v1::CreateSandbox& m) override {
    return call(sandboxes_, &v1::Sandboxes::Stub::Create, m, work);
  }
  answer<v1::SandboxStatus> get(const v1::GetSandbox& m) override {
    return call(sandboxes_, &v1::Sandboxes::Stub::Get, m, look);
  }
  answer<v1::SandboxList> list(const v1::ListSandboxes& m) override {
    return call(sandboxes_, &v1::Sandboxes::Stub::List, m, look);
  }
  answer<v1::SandboxStatus> stop(const v1::StopSandbox& m) override {
    return call(sandboxes_, &v1::Sandboxes::Stub::Stop, m, work);
  }
  answer<v1::SandboxStatus> remove(const v1::RemoveSandbox& m) override {
    return call(sandboxes_, &v1::Sandboxes::Stub::Remove, m, work);
  }
  answer<v1::SandboxStatus> pause(const v1::PauseSandbox& m) override {
    return call(sandboxes_, &v1::Sandboxes::Stub::Pause, m, work);
  }
  answer<v1::SandboxStatus> resume(const v1::ResumeSandbox& m) override {
    return call(sandboxes_, &v1::Sandboxes::Stub::Resume, m, work);
  }
  answer<v1::Operation> resize(const v1::ResizeSandbox& m) override {
    return call(sandboxes_, &v1::Sandboxes::Stub::Resize, m, work);
  }
  answer<v1::Operation> get_operation(const v1::GetOperation& m) override {
    return call(operations_, &v1::Operations::Stub::Get, m, look);
  }
  answer<v1::Operation> wait_operation(const v1::WaitOperation& m) override {
    return call(operations_, &v1::Operations::Stub::Wait, m, look + std::chrono::milliseconds{m.wait_ms()});
  }
  answer<v1::Operation> cancel_operation(const v1::CancelOperation& m) override {
    return call(operations_, &v1::Operations::Stub::Cancel, m, look);
  }
  answer<v1::ConsoleText> console(const v1::ConsoleRequest& m) override {
    return call(sandboxes_, &v1::Sandboxes::Stub::Console, m, look);
  }
  answer<v1::EngineStatus> status(const v1::GetEngine& m) override {
    return call(engine_, &v1::Engine::Stub::Get, m, look);
  }
  answer<v1::Capabilities> describe(const v1::DescribeHost& m) override {
    return call(engine_, &v1::Engine::Stub::Describe, m, work);
  }
  answer<v1::Empty> shut_down() override { return call(engine_, &v1::Engine::Stub::ShutDown, v1::Empty{}, look); }

  std::unique_ptr<exec_stream> exec() override { return std::make_unique<grpc_exec>(sandboxes_, socket_); }

  std::optional<v1::Error> watch(const v1::WatchEvents& request,
                                 const std::function<bool(const v1::Event&)>& on_event) override {
    grpc::ClientContext context;
    auto reader = events_.Watch(&context, request);
    v1::Event e;
    while (reader->Read(&e))
      if (!on_event(e)) {
        context.TryCancel();
        while (reader->Read(&e)) {
        }
        reader->Finish();
        return std::nullopt;
      }
    auto status = reader->Finish();
    if (status.ok())
      return std::nullopt;
    return from_status(status, context, socket_);
  }

private:
  template <class Stub, class Request, class Response>
  answer<Response> call(Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                        const Request& request, std::chrono::milliseconds at_most) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + at_most);
    Response out;
    auto status = (stub.*method)(&context, request, &out);
    if (status.ok())
      return out;
    return from_status(status, context, socket_);
  }

  std::string socket_;
  std::shared_ptr<grpc::Channel> channel_;
  v1::Sandboxes::Stub sandboxes_;
  v1::Operations::Stub operations_;
  v1::Events::Stub events_;
  v1::Engine::Stub engine_;
  v1::EngineStatus greeting_;
};

// -1: nobody listens. -2: `why` says what is wrong.
int open_socket(const std::string& path, v1::Error& why) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    why = make_error("configuration",
                     "socket " + path + ": " + std::to_string(path.size()) +
                         " bytes are too long for a socket's path (at most 107); give a shorter --run-dir");
    return -2;
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) {
    why = make_error("host_resources", std::string{"no socket can be made: "} + std::strerror(errno));
    return -2;
  }
  if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    int error = errno;
    ::close(fd);
    if (error == ENOENT || error == ECONNREFUSED)
      return -1;
    why = make_error(error == EACCES || error == EPERM ? "host_denied" : "host_io",
                     "socket " + path + ": " + std::strerror(error) +
                         "; it belongs to the engine of this state directory: "
                         "use the user that started it, or another --state-dir");
    return -2;
  }
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || (peer.uid != ::geteuid() && peer.uid != 0)) {
    ::close(fd);
    why = make_error("host_denied", "socket " + path + ": its listener runs as user " + std::to_string(peer.uid) +
                                        ", which is neither you nor root; it is not trusted");
    return -2;
  }
  ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK); // as gRPC wants it
  return fd;
}

} // namespace

std::optional<answer<std::unique_ptr<client>>> client::connect(const std::string& socket) {
  v1::Error why;
  int fd = open_socket(socket, why);
  if (fd == -1)
    return std::nullopt;
  if (fd < 0)
    return answer<std::unique_ptr<client>>{why};
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_MAX_METADATA_SIZE, max_metadata_bytes);
  // A stopped engine (SIGSTOP, or its host) is noticed within 40 s, also in the middle of a stream.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 30'000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  auto made = std::make_unique<grpc_client>(socket, grpc::CreateCustomInsecureChannelFromFd("engine", fd, arguments));
  if (auto e = made->greet()) {
    if (e->code() == "backend_lost") // it ended just now
      return std::nullopt;
    return answer<std::unique_ptr<client>>{std::move(*e)};
  }
  return answer<std::unique_ptr<client>>{std::move(made)};
}

} // namespace caisson::door
