# fish completion for caisson

function __caisson_sandboxes
    caisson list 2>/dev/null | awk 'NR > 1 { print $1 }'
end

set -l verbs run exec console status list stop rm pause resume resize operation events check backends config firmware
complete -c caisson -f
complete -c caisson -l state-dir -r -a '(__fish_complete_directories)' -d 'Where sandboxes are remembered'
complete -c caisson -l run-dir -r -a '(__fish_complete_directories)' -d 'Where sockets are made'
complete -c caisson -l json -d 'Results and errors as JSON'
complete -c caisson -s h -l help -d 'What is expected'

set -l none "not __fish_seen_subcommand_from $verbs"
complete -c caisson -n $none -l version -d 'The version'
complete -c caisson -n $none -a run -d 'Boot a sandbox'
complete -c caisson -n $none -a exec -d 'Run a command in a sandbox'
complete -c caisson -n $none -a console -d 'Show the console'
complete -c caisson -n $none -a status -d 'Show a sandbox'
complete -c caisson -n $none -a list -d 'List sandboxes'
complete -c caisson -n $none -a stop -d 'End virtual machines'
complete -c caisson -n $none -a rm -d 'Remove sandboxes'
complete -c caisson -n $none -a pause -d 'Hold a sandbox'
complete -c caisson -n $none -a resume -d 'Let a sandbox go on'
complete -c caisson -n $none -a resize -d 'Change memory and processors'
complete -c caisson -n $none -a operation -d 'Read a resize again'
complete -c caisson -n $none -a events -d 'Show what has happened'
complete -c caisson -n $none -a check -d 'Tell what this host can do'
complete -c caisson -n $none -a backends -d 'List the hypervisor backends'
complete -c caisson -n $none -a config -d 'Work on configuration files'
complete -c caisson -n $none -a firmware -d 'Show, check and prepare firmware'

complete -c caisson -n '__fish_seen_subcommand_from exec console status stop rm pause resume resize' -a '(__caisson_sandboxes)'
complete -c caisson -n '__fish_seen_subcommand_from run check backends' -s c -l config -r -F -d 'configuration.toml'
complete -c caisson -n '__fish_seen_subcommand_from run' -s n -l name -x -d 'Name'
complete -c caisson -n '__fish_seen_subcommand_from run' -s d -l detach -d 'Leave it running'
complete -c caisson -n '__fish_seen_subcommand_from run resize' -s m -l memory -x -d 'Memory'
complete -c caisson -n '__fish_seen_subcommand_from run resize' -l cpus -x -d 'Processors'
complete -c caisson -n '__fish_seen_subcommand_from run' -l memory-method -x -a 'auto dimm virtio-mem' -d 'How memory is plugged'
complete -c caisson -n '__fish_seen_subcommand_from run' -l arch -x -a 'x86_64 aarch64' -d 'Guest architecture'
complete -c caisson -n '__fish_seen_subcommand_from run' -l hypervisor -x -d 'Hypervisor'
complete -c caisson -n '__fish_seen_subcommand_from run' -l no-guest-build -d 'Make no missing guest'
complete -c caisson -n '__fish_seen_subcommand_from run' -l annotation -x -d 'KEY=VALUE'
complete -c caisson -n '__fish_seen_subcommand_from run exec' -s i -l interactive -d 'Pass standard input on'
complete -c caisson -n '__fish_seen_subcommand_from run exec' -s t -l terminal -d 'Give the command a terminal'
complete -c caisson -n '__fish_seen_subcommand_from run exec' -s e -l env -x -d 'NAME=VALUE'
complete -c caisson -n '__fish_seen_subcommand_from run exec' -s w -l workdir -x -d 'Working directory'
complete -c caisson -n '__fish_seen_subcommand_from resize' -l deadline-ms -x -d 'How long it may take'
complete -c caisson -n '__fish_seen_subcommand_from resize' -l dry-run -d 'Show the plan'
complete -c caisson -n '__fish_seen_subcommand_from resize' -l no-wait -d 'Return at once'
complete -c caisson -n '__fish_seen_subcommand_from operation' -l cancel -d 'Stop it where it is'
complete -c caisson -n '__fish_seen_subcommand_from stop' -l grace-ms -x -d 'Time to power off'
complete -c caisson -n '__fish_seen_subcommand_from rm' -l only-stopped -d 'Refuse a running one'
complete -c caisson -n '__fish_seen_subcommand_from events' -l from -x -d 'First sequence number'
complete -c caisson -n '__fish_seen_subcommand_from events' -s f -l follow -d 'Go on with what happens'
complete -c caisson -n '__fish_seen_subcommand_from config' -F
complete -c caisson -n '__fish_seen_subcommand_from backends' -a 'qemu cloud-hypervisor simulated'
complete -c caisson -n '__fish_seen_subcommand_from firmware' -a 'list check prepare'
