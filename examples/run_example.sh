#!/bin/sh
# run_example.sh PROGRAM CONFIGURATION.TOML: runs it on the simulated hypervisor in a directory of its own.
set -eu
state=$(mktemp -d /tmp/csn-XXXXXX)
trap 'rm -rf "$state"' EXIT
"$1" "$2" "$state/state" simulated
