// A backend's process for the tests: the name of the sandbox in a call says what becomes of it, the file STATE/mode
// what becomes of the process. Each start leaves a line in STATE/starts.

#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <iostream>
#include <vector>

#include "backends/host/server.hpp"

using namespace caisson;

namespace {

class scripted final : public host::driver {
public:
  explicit scripted(std::string mode) : mode_(std::move(mode)) {}

  v1::BackendReady start(std::shared_ptr<host::emitter> out) override {
    out_ = std::move(out);
    out_->log_line("scripted\x1b[31m backend");
    v1::BackendReady ready;
    ready.set_backend("scripted");
    ready.set_contract_version(mode_ == "version" ? 99 : mode_ == "version_1" ? 1 : 0);
    ready.set_library_version("none");
    return ready;
  }

  void submit(v1::BackendCall call, host::answer_function answer) override {
    auto sandbox = host::sandbox_of(call);
    if (call.has_list()) {
      if (mode_ == "mute")
        return kept_.push_back(std::move(answer));
      v1::VmList list;
      list.add_sandbox_ids("ok");
      return answer(host::success(list));
    }
    if (call.has_describe()) {
      v1::Capabilities what;
      what.set_backend("scripted");
      return answer(host::success(what));
    }
    if (sandbox == "dies")
      ::_exit(3);
    if (sandbox == "stops")
      ::raise(SIGSTOP);
    if (sandbox == "breaks") [[maybe_unused]]
      auto n = ::send(host::protocol_fd, "\xff\xff\xff\xff", 4, MSG_NOSIGNAL);
    if (sandbox == "drops")
      return;
    if (sandbox == "never" && !call.has_inspect() && !call.has_destroy())
      return kept_.push_back(std::move(answer));
    if (sandbox == "refused")
      return answer(host::failure("backend_refused", "the script says no"));
    if (sandbox == "mistaken")
      return answer(host::success(v1::VmList{}));
    if (sandbox == "release") {
      for (auto& late : kept_)
        late(observed("late"));
      kept_.clear();
    }
    if (sandbox.starts_with("news")) {
      v1::VmEvent event;
      event.set_sandbox_id(sandbox);
      event.set_kind(v1::VmEvent::KIND_DEVICE_REMOVED);
      event.set_device_id("dimm0");
      out_->event(event);
    }
    answer(observed(sandbox));
  }

private:
  static v1::BackendAnswer observed(const std::string& text) {
    v1::VmObserved seen;
    seen.set_state(v1::VM_STATE_RUNNING);
    seen.set_vmm_pid(::getpid());
    seen.set_vmm_version(text);
    return host::success(seen);
  }

  std::string mode_;
  std::shared_ptr<host::emitter> out_;
  std::vector<host::answer_function> kept_;
};

} // namespace

int main(int argc, char** argv) {
  std::string error;
  auto where = host::parse_arguments(argc, argv, error);
  if (!where) {
    std::cerr << error << '\n';
    return 2;
  }
  std::ofstream{where->state_directory + "/starts", std::ios::app} << ::getpid() << '\n';
  std::string mode;
  std::ifstream{where->state_directory + "/mode"} >> mode;
  if (mode == "exits") {
    std::cerr << "cannot open the library: it is not there\n";
    return 4;
  }
  if (mode == "silent")
    for (;;)
      ::pause();
  scripted driver{mode};
  ::_exit(host::serve(host::protocol_fd, driver));
}
