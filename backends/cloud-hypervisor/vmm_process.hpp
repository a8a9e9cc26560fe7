#pragma once

/// The VMM as a process: how it is started, found again, and what it has left behind in files. No CAF.

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "messages/backend.pb.h"
#include "reactor/reactor.hpp"

namespace caisson::cloud_hypervisor {

/// With its API socket in the run directory and its events in that file. `log_fd` becomes its standard error.
reactor::program vmm_program(const v1::VmSpec& spec, const std::string& event_file, int log_fd);

/// The process that has this API socket on its command line; 0: none. For an engine that was killed between a VMM's
/// start and the record of its pid.
pid_t find_vmm(const std::string& api_socket);

/// The letter of /proc/PID/stat: 'R', 'S', 'T' (stopped by a signal), 'Z', ...; 0: there is no such process.
char process_state(pid_t pid);

/// Opens (and makes, 0600) the file for appending; -1 and errno where it cannot be.
int open_log(const std::string& path);
/// Cuts a file that has grown beyond 1 MiB to nothing: the VMM appends.
void bound_log(const std::string& path);
/// Its last lines, escaped, at most 600 bytes; "" where there are none.
std::string last_words(const std::string& path);

/// Somebody is bound to this socket. Asked without connecting, since a virtio-fs daemon serves one connection and ends
/// with it. "" or what is wrong.
std::string socket_problem(const std::string& path);

/// The files that a VM has in its run directory, and with `directory_too` the directory where nothing else is in it.
void remove_run_files(const std::string& run_directory, bool directory_too);

/// firmware = "auto": where Cloud Hypervisor's UEFI firmware usually lies. "" where it does not; `looked` then has the
/// names.
std::string find_firmware(const std::string& architecture, std::string& looked);

} // namespace caisson::cloud_hypervisor
