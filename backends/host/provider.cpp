#include "backends/host/provider.hpp"

#include "backends/host/remote_backend.hpp"

namespace caisson::host {
namespace {

constexpr std::chrono::milliseconds end_within{2'000};

static_assert(wire_contract_version == backends::contract_version, "the wire carries the contract's version");

reactor::reactor* reactor_of(const backends::environment& e) {
  return dynamic_cast<reactor::reactor*>(e.channels);
}

} // namespace

process_settings settings_for(const std::string& name, const backends::environment& e) {
  process_settings out;
  out.name = name;
  out.program = e.program_directory + "/caisson-backend-" + name;
  out.arguments = {"--state", e.state_directory, "--run", e.run_directory,
                   "--cache", e.cache_directory, "--log", e.log_directory};
  out.pid_file = e.run_directory + "/caisson-backend-" + name + ".pid";
  out.log = e.log;
  return out;
}

provider::provider(const backends::environment& e, process_settings settings)
    : own_reactor_(reactor_of(e) ? nullptr : std::make_unique<reactor::reactor>(e.log)), system_(*e.system),
      channels_(e.channels ? e.channels : own_reactor_.get()),
      process_(std::make_shared<backend_process>(own_reactor_ ? *own_reactor_ : *reactor_of(e), std::move(settings))) {}

provider::~provider() {
  process_->shut_down(end_within);
}

backend_actor provider::spawn(const std::string& sandbox_id, vm_listener listener) {
  return system_.spawn(remote_backend, process_, sandbox_id, std::move(listener));
}

} // namespace caisson::host
