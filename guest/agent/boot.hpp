#pragma once

/// What has to be done once, as process 1, before the agent can serve: the file systems, the kernel modules.
namespace caisson::agent {

/// Mounts everything and makes / a mount that can be left by pivot_root (a container runtime needs it).
void mount_file_systems();

/// Inserts the modules of /etc/caisson/modules, one path a line, in that order. A module that fails is reported and
/// passed over: whether the machine can do without it shows when the agent looks for its port.
void load_modules();

/// Memory that is plugged from now on comes online by itself, see online_as() in facts.hpp.
void online_new_memory();

/// Host name, loopback interface, control groups, room for descriptors.
void set_up_machine();

} // namespace caisson::agent
