#!/usr/bin/env python3
"""The programs as a user calls them, with real guests under KVM: one sandbox a memory method, its memory and processors up and
down, the engine killed in between, nothing left at the end.

    system_test.py --programs DIR --hypervisor cloud-hypervisor|qemu

Runs in the machine that tests/nested/run makes. Where CH_BIN is set it stands for the cloud-hypervisor on the PATH.
"""

import argparse
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

MIB = 1 << 20
OPTIONS = None


class SandboxTest(unittest.TestCase):
    method = None

    @classmethod
    def setUpClass(cls):
        if cls.method is None:
            raise unittest.SkipTest("a base")
        cls.directory = Path(tempfile.mkdtemp(prefix="cs-", dir="/dev/shm"))
        cls.environment = dict(os.environ, CAISSON_IDLE_EXIT_S="5")
        if binary := os.environ.get("CH_BIN"):
            (cls.directory / "bin").mkdir()
            (cls.directory / "bin/cloud-hypervisor").symlink_to(binary)
            cls.environment["PATH"] = f"{cls.directory}/bin:{os.environ['PATH']}"

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.directory, ignore_errors=True)

    def caisson(self, *words, status=0, within_s=300):
        command = [Path(OPTIONS.programs) / "caisson", "--state-dir", self.directory / "state",
                   "--run-dir", self.directory / "run", *words]
        began = time.monotonic()
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=within_s, check=False,
                              stdin=subprocess.DEVNULL)
        print(f"    {time.monotonic() - began:6.2f} s  caisson {' '.join(map(str, words))}", flush=True)
        if status is not None:
            self.assertEqual(done.returncode, status, f"{words}: {done.stdout} {done.stderr}")
        return done

    def status(self):
        return json.loads(self.caisson("status", "a", "--json").stdout)

    def memory(self):
        return {name: int(value) for name, value in self.status()["memory"].items() if str(value).isdigit()}

    def plugged(self):
        return self.memory().get("plugged_bytes", 0)

    def in_guest(self, *command):
        return self.caisson("exec", "a", "--", *command).stdout.strip()

    def guest_total(self):
        return int(self.in_guest("awk", "/MemTotal/ {print $2}", "/proc/meminfo")) * 1024

    def processors(self):
        return int(self.in_guest("nproc"))

    def resize(self, *words, status=0):
        return json.loads(self.caisson("resize", "a", *words, "--json", status=status).stdout or "{}")

    def engine_pid(self):
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    line = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if b"caissond" in line.split(b"\0")[0] and os.fsencode(self.directory) in line:
                    return int(entry.name)
        self.fail("there is no engine")

    def kill_engine(self):
        pid = self.engine_pid()
        watched = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        self.assertTrue(select.select([watched], [], [], 60)[0])
        os.close(watched)

    def boot(self, *more):
        made = self.caisson("run", "--detach", "--name", "a", "--hypervisor", OPTIONS.hypervisor, "--memory", "512M",
                            *more, "--memory-method", self.method, status=None)
        if made.returncode != 0 and f"hotplug by {self.method} does not work with" in made.stderr:
            self.skipTest(made.stderr.strip())
        self.assertEqual(made.returncode, 0, made.stdout + made.stderr)
        seen = self.status()
        self.assertEqual(seen["state"], "SANDBOX_STATE_RUNNING")
        self.assertEqual(seen["accelerator"], "kvm")
        self.assertTrue(Path(f"/proc/{seen['vmm_pid']}").exists())
        self.assertEqual(self.caisson("exec", "a", "--", "sh", "-c", "echo hello; exit 7", status=7).stdout, "hello\n")
        return seen

    def grow_and_lose_the_engine(self, seen):
        before = self.guest_total()
        self.assertEqual(self.resize("--memory", "768M")["state"], "OPERATION_STATE_CONVERGED")
        self.assertEqual(self.plugged(), 256 * MIB)
        self.assertEqual(self.guest_total(), before + 256 * MIB)
        self.kill_engine()
        # A command waits for the new engine to have found the VM again; a status shows how far it is.
        self.caisson("exec", "a", "--", "true")
        again = self.status()
        self.assertEqual(again["vmm_pid"], seen["vmm_pid"])
        self.assertEqual(self.plugged(), 256 * MIB)
        self.assertEqual(self.resize("--memory", "1536M")["state"], "OPERATION_STATE_CONVERGED")
        self.assertEqual(self.guest_total(), before + 1024 * MIB)
        return before

    def move_processors(self):
        # The most by default is what the host has, and the nested machine has two.
        self.assertEqual(self.resize("--cpus", "2")["state"], "OPERATION_STATE_CONVERGED")
        self.assertEqual(self.processors(), 2)
        self.give_processors_back()
        self.resize("--cpus", "2")
        self.assertEqual(self.processors(), 2)

    def give_processors_back(self):
        self.assertEqual(self.resize("--cpus", "1")["state"], "OPERATION_STATE_CONVERGED")
        self.assertEqual(self.processors(), 1)
        vcpus = self.status()["vcpus"]
        print(f"    processors given back: {vcpus}")
        if OPTIONS.hypervisor == "qemu":
            self.assertEqual(vcpus["plugged"], 1)

    def remove(self, seen):
        self.caisson("rm", "a")
        self.assertFalse(Path(f"/proc/{seen['vmm_pid']}").exists())
        self.assertNotIn('"a"', self.caisson("list", "--json").stdout)


class VirtioMemTest(SandboxTest):
    method = "virtio-mem"

    def test_a_life(self):
        seen = self.boot()
        before = self.grow_and_lose_the_engine(seen)
        self.assertEqual(self.resize("--memory", "512M")["state"], "OPERATION_STATE_CONVERGED")
        self.assertEqual(self.plugged(), 0)
        self.assertEqual(self.guest_total(), before)
        self.move_processors()
        self.caisson("stop", "a")
        self.assertEqual(self.status()["state"], "SANDBOX_STATE_STOPPED")
        self.remove(seen)


class ProcessorTest(SandboxTest):
    """Of several at boot all but the first can leave, again and again, and with another engine than the one that plugged."""

    method = "virtio-mem"

    def test_a_life(self):
        if OPTIONS.hypervisor != "qemu":
            self.skipTest("QEMU's; the other lives move Cloud Hypervisor's processors")
        seen = self.boot("--cpus", "2")
        self.assertEqual(self.processors(), 2)
        for _ in range(5):
            self.give_processors_back()
            self.assertEqual(self.resize("--cpus", "2")["state"], "OPERATION_STATE_CONVERGED")
            self.assertEqual(self.processors(), 2)
        self.kill_engine()
        self.caisson("exec", "a", "--", "true")
        self.give_processors_back()
        self.remove(seen)


class DimmTest(SandboxTest):
    method = "dimm"

    def test_a_life(self):
        seen = self.boot()
        before = self.grow_and_lose_the_engine(seen)
        down = self.caisson("resize", "a", "--memory", "512M", status=None)
        print(f"    down by DIMM: {down.returncode} {down.stdout.strip()} {down.stderr.strip()}")
        gone = 1024 * MIB - self.plugged()
        self.assertEqual(self.guest_total(), before + 1024 * MIB - gone)
        self.assertEqual(self.caisson("exec", "a", "--", "true").returncode, 0)
        self.move_processors()
        self.remove(seen)


def main():
    global OPTIONS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", required=True)
    parser.add_argument("--hypervisor", default="cloud-hypervisor")
    OPTIONS, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest], verbosity=2)


if __name__ == "__main__":
    main()
