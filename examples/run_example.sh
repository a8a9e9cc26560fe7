#!/bin/sh
# run_example.sh PROGRAM CONFIGURATION.TOML: runs it on the simulated hypervisor in a directory of its own.
set -eu
state=$(mktemp -d /tmp/csn-XXXXXX)
# The lock's second line is the run directory.
trap 'rm -rf "$(sed -n 2p "$state/state/engine.lock")" "$state"' EXIT
"$1" "$2" "$state/state" simulated
