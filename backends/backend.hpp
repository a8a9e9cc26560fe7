#pragma once

/// THE CONTRACT of a hypervisor backend.
///
/// A backend is a typed actor (messages/ports.hpp, `backend_actor`), one a sandbox, made by a provider, one an engine and
/// registry line. It drives one VM. It decides no policy, never retries, and never invents a number: after each verb it
/// answers with what it has *read back* from the VMM (VmObserved).
///
/// Every verb is submit-and-complete: answered exactly once, at the latest when its `deadline_ms` (0: 30 000) is over. Then
/// the answer is the error `outcome_unknown`, the verb may still take effect, and the truth is read by InspectVm. Waiting
/// for the guest is never part of a verb: a device that leaves, memory that comes online are VmEvents to the listener.
///
/// | verb            | sent                           | twice                           | unknown sandbox           | errors |
/// | DescribeBackend | before CreateVm                | the same answer                 | -                         | host_missing, host_denied, unsupported |
/// | CreateVm        | once in a sandbox's life       | same spec: success, observed    | makes it                  | backend_refused, already_exists, invalid_argument, out_of_range, host_*, unsupported, vmm_died (a DestroyVm meanwhile) |
/// | InspectVm       | any time, also during a verb   | fine                            | success, state ABSENT     | backend_lost, outcome_unknown |
/// | ApplyMemoryStep | one at a time, VM runs         | a DIMM id that is there: success; an unplug of one that is gone: success; the same virtio-mem size: success | vmm_died | backend_refused, out_of_range, vmm_died, unsupported |
/// | SetVmVcpus      | one at a time, VM runs         | success                         | vmm_died                  | backend_refused, out_of_range, vmm_died, unsupported |
/// | AttachDevice    | one at a time, VM runs         | the same device: success; another one under an id that is there: already_exists | vmm_died | backend_refused, already_exists, host_missing, host_denied, invalid_argument, vmm_died, unsupported |
/// | DetachDevice    | one at a time, VM runs         | still leaving, or gone: success | vmm_died                  | backend_refused, vmm_died, unsupported |
/// | PauseVm, ResumeVm | VM runs / is paused          | success                         | vmm_died                  | backend_refused, vmm_died, unsupported |
/// | DestroyVm       | any time, also during a verb   | success                         | success, state ABSENT     | backend_lost, outcome_unknown |
/// | ListVms         | at the engine's start          | fine                            | -                         | backend_lost |
/// | any verb        |                                |                                 |                           | invalid_argument (a bad id, a step that asks for nothing), outcome_unknown (the deadline, a lost reply), backend_lost (engine or backend end), internal (a fault of the backend: what it asks or reads is not understood) |
///
/// Devices: a disk is found in the guest by its serial, the first 20 bytes of its id. AttachDevice answers when the VMM
/// has the device, DetachDevice when the guest has been asked to let go; until KIND_DEVICE_REMOVED the device stays in
/// VmObserved.devices (`leaving`). What CreateVm brought can be detached as well, a share excepted where it says so.
///
/// Memory: the growth that is there after an ApplyMemoryStep of a DIMM is in plugged_bytes at once (the VMM's word); of
/// virtio-mem it is the size that the guest has taken so far. Not aligned, or above VmSpec.max_bytes: out_of_range or
/// backend_refused, and nothing changes.
///
/// A verb that fails leaves the VM as it was, except where it says `outcome_unknown`. A CreateVm that fails leaves nothing
/// behind: no process, file or socket outside VmSpec.run_directory (which its owner removes). DestroyVm ends with the VMM
/// gone (killed by pidfd where it stays silent) and answers the verbs that are pending on that VM with vmm_died.
///
/// The VM survives the backend and the engine. A new backend actor for the same sandbox_id finds it by InspectVm.

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "messages/ports.hpp"

namespace caisson::backends {

/// 2 has added AttachDevice, DetachDevice, VmSpec.disks, nets and shares, and VmObserved.devices.
inline constexpr std::uint32_t contract_version = 2;
inline constexpr std::uint32_t default_deadline_ms = 30'000;

/// What the composition root lends to providers. Everything outlives them.
struct environment {
  caf::actor_system* system = nullptr;
  pipe_opener* channels = nullptr;   ///< the shared reactor's opener and executor; null in a simulation
  std::string state_directory;       ///< on disk, 0700
  std::string run_directory;         ///< on a tmpfs, 0700: sockets, libvirt's root
  std::string cache_directory;       ///< shared by all engines of a user: probes, capabilities
  std::string log_directory;         ///< 0700
  std::string program_directory;     ///< where caisson-backend-* stand
  std::function<void(std::string_view)> log;  ///< one line, thread safe
};

/// What all VMs of one engine on one kind of hypervisor share: a process, connections, a probe's result.
class provider {
public:
  virtual ~provider() = default;
  /// The actor for one VM, existing or not. `listener` hears of that VM only.
  virtual backend_actor spawn(const std::string& sandbox_id, vm_listener listener) = 0;
  /// Opens what VmObserved.channels names.
  virtual pipe_opener& channels() = 0;
};

/// One line of the registry.
struct entry {
  std::string_view name;
  std::string_view title;
  std::span<const std::string_view> architectures;  ///< empty: whatever is asked
  std::unique_ptr<provider> (*make)(const environment&);
};

/// The one table (registry.cpp): explicit and ordered.
std::span<const entry> registry();

/// nullptr where no line has this name.
const entry* find(std::string_view name);

} // namespace caisson::backends
