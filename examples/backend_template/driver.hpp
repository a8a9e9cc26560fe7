#pragma once

/// The part that knows the contract (backends/backend.hpp): it sorts calls in, keeps the VMs, and reads back.
///
/// Threads: serve()'s thread only starts one for each call. The verbs of a VM run one after another (`order`); inspect and
/// destroy do not wait for them. One thread a VM listens to its VMM and sees it end.

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "backends/host/server.hpp"
#include "examples/backend_template/vmm.hpp"

namespace backend_template {

namespace v1 = caisson::v1;

struct vm {
  explicit vm(std::string sandbox_id) : id(std::move(sandbox_id)) {}

  const std::string id;
  std::timed_mutex order;  ///< held by the verb that is under way

  std::mutex mutex;  ///< of everything below; never held while the VMM is asked
  std::condition_variable ended_now;
  std::string run_directory, spec_digest;
  process vmm;               ///< pid 0: not started yet
  bool ended = false;        ///< it has been, and is no more
  bool destroying = false;
  std::string stop_reason;
  vmm_status last;           ///< for the time when it does not answer

  std::string socket_path() const { return run_directory + "/vmm.sock"; }
};

using vm_ptr = std::shared_ptr<vm>;

class driver : public caisson::host::driver {
public:
  explicit driver(caisson::host::arguments where) : directory_(where.run_directory + "/template-vms") {}

  v1::BackendReady start(std::shared_ptr<caisson::host::emitter> out) override;
  void submit(v1::BackendCall call, caisson::host::answer_function answer) override;

private:
  v1::BackendAnswer work(const v1::BackendCall& call, deadline until);
  v1::Capabilities describe(const v1::DescribeBackend& question) const;
  v1::VmList list();
  v1::VmObserved create(const v1::VmSpec& spec, deadline until);
  v1::VmObserved inspect(const std::string& id, deadline until);
  v1::VmObserved destroy(const std::string& id, deadline until);
  /// The verbs that need a VM which runs.
  v1::VmObserved change(const vm_ptr& vm, const v1::BackendCall& call, deadline until);
  void memory_step(const vm_ptr& vm, const v1::ApplyMemoryStep& step, deadline until);
  void attach(const vm_ptr& vm, const v1::AttachDevice& call, deadline until);

  v1::VmObserved read_back(const vm_ptr& vm, deadline until);
  vm_ptr find(const std::string& id);
  void adopt(const std::string& id);
  /// `watched`: of begin_watch(); below 0 where the VMM did not let us.
  void listen_to(const vm_ptr& vm, int watched);
  void tell(const std::string& id, v1::VmEvent::Kind kind, std::string text, std::string device = {},
            std::uint64_t bytes = 0);
  std::string record_of(const std::string& id) const { return directory_ + "/" + id; }

  const std::string directory_;  ///< a file a VM: what the next process of this backend has to know
  std::shared_ptr<caisson::host::emitter> out_;
  std::mutex vms_mutex_;
  std::map<std::string, vm_ptr> vms_;
};

} // namespace backend_template
