#!/usr/bin/python3
"""A backend of Caisson in Python: it keeps processes that sleep and calls them VMs.

Written from backends/backend.hpp (what each verb means) and backends/host/wire.hpp (how it arrives) alone; the messages
come from protoc. It lives and dies as a real one: its VMs survive it and the engine, and the next one finds them."""

import argparse
import hashlib
import json
import os
import re
import selectors
import signal
import socket
import struct
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "python"))

from messages import backend_pb2 as pb  # noqa: E402  (protoc has made it)

CONTRACT_VERSION = 2
MOST_BYTES = 1 << 20
NOT_HERE = "a process that sleeps has no such thing; it is an example of a backend's life, not of its hotplug"


class Refusal(Exception):
    """`code` is the name of a row of messages/error.hpp."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


def process_stat(pid):
    """State letter and start time of a process; None where there is none."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rpartition(") ")[2].split()
        return fields[0], int(fields[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


class Vm:
    """One VM, and the file that tells the next process of it."""

    def __init__(self, directory, record):
        self.file = os.path.join(directory, record["id"] + ".json")
        self.record = record
        self.stop_reason = ""
        self.pidfd = None

    def alive(self):
        stat = process_stat(self.record["pid"])
        return stat is not None and stat[0] != "Z" and stat[1] == self.record["start_ticks"]

    def save(self):
        with open(self.file + ".new", "w") as out:
            json.dump(self.record, out)
        os.replace(self.file + ".new", self.file)

    def observed(self):
        seen = pb.VmObserved(
            state=pb.VM_STATE_RUNNING,
            boot_bytes=self.record["boot_bytes"],
            plugged_vcpus=self.record["vcpus"],
            max_vcpus=self.record["vcpus"],
            accelerator="none",
            vmm_version="sleep 1",
        )
        if not self.alive():
            seen.state = pb.VM_STATE_STOPPED
            seen.stop_reason = self.stop_reason or "vmm died: nobody was there to see how"
            return seen
        seen.vmm_pid = self.record["pid"]
        seen.vmm_start_ticks = self.record["start_ticks"]
        if process_stat(seen.vmm_pid)[0] in "Tt":
            seen.stale_reason = "the process is stopped by a signal; SIGCONT lets it go on"
        return seen


class Backend:
    def __init__(self, run_directory):
        self.engine = socket.socket(fileno=3)
        self.ready_to_read = selectors.DefaultSelector()
        self.directory = os.path.join(run_directory, "python-vms")
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        self.vms = {}
        for name in os.listdir(self.directory):
            if name.endswith(".json"):
                with open(os.path.join(self.directory, name)) as file:
                    self.adopt(Vm(self.directory, json.load(file)))

    def adopt(self, vm):
        self.vms[vm.record["id"]] = vm
        if vm.alive():
            vm.pidfd = os.pidfd_open(vm.record["pid"])
            self.ready_to_read.register(vm.pidfd, selectors.EVENT_READ, vm)

    def release(self, vm):
        if vm.pidfd is not None:
            self.ready_to_read.unregister(vm.pidfd)
            os.close(vm.pidfd)
            vm.pidfd = None

    # ---- the wire ----

    def say(self, **what):
        content = pb.BackendSays(**what).SerializeToString()
        self.engine.sendall(struct.pack(">I", len(content)) + content)

    def read(self, size):
        content = self.engine.recv(size, socket.MSG_WAITALL)
        if len(content) < size:
            sys.exit(0)  # the engine has ended; our VMs live on
        return content

    def serve(self):
        self.say(ready=pb.BackendReady(backend="python", contract_version=CONTRACT_VERSION, library_version="none"))
        self.ready_to_read.register(self.engine, selectors.EVENT_READ)
        while True:
            for key, _ in self.ready_to_read.select():
                if key.data is None:
                    (size,) = struct.unpack(">I", self.read(4))
                    if size > MOST_BYTES:
                        sys.exit("the engine has announced a message of more than 1 MiB")
                    self.answer(pb.BackendCall.FromString(self.read(size)))
                elif key.data.pidfd is not None:
                    self.died(key.data)

    def answer(self, call):
        answer = pb.BackendAnswer(id=call.id)
        verb = call.WhichOneof("verb")
        try:
            result = getattr(self, "do_" + verb, self.unsupported)(getattr(call, verb)) if verb else self.unsupported(call)
            {pb.VmObserved: answer.observed, pb.Capabilities: answer.capabilities, pb.VmList: answer.list}[
                type(result)
            ].CopyFrom(result)
        except Refusal as refusal:
            answer.error.code, answer.error.text = refusal.code, str(refusal)
        except Exception as fault:  # one call's fault is not the others'
            answer.error.code, answer.error.text = "internal", f"{verb}: {fault!r}"
        self.say(answer=answer)

    # ---- the verbs ----

    def do_describe(self, question):
        return pb.Capabilities(
            backend="python",
            architecture=question.architecture or "x86_64",
            dimm_why_not=NOT_HERE,
            virtio_mem_why_not=NOT_HERE,
            vcpu_plug_why_not=NOT_HERE,
            vcpu_unplug_why_not=NOT_HERE,
            devices_why_not=NOT_HERE,
            max_vcpus=64,
            modelled_memory=True,
            accelerator="none",
            accelerator_reason="a process that sleeps executes no guest",
            vmm_version="sleep 1",
        )

    def do_create(self, call):
        spec = call.spec
        where = f"VM of sandbox {spec.sandbox_id!r}: "
        if not re.fullmatch(r"[a-z0-9-]{1,32}", spec.sandbox_id):
            raise Refusal("invalid_argument", where + "the id must have 1 to 32 of a-z 0-9 -")
        digest = hashlib.sha256(spec.SerializeToString(deterministic=True)).hexdigest()
        there = self.vms.get(spec.sandbox_id)
        if there and there.alive():
            if there.record["digest"] != digest:
                raise Refusal("already_exists", where + "it runs already, made from another specification")
            return there.observed()
        if spec.boot_bytes == 0 or spec.max_bytes < spec.boot_bytes:
            raise Refusal("out_of_range", where + "expected 0 < boot_bytes <= max_bytes")
        if spec.max_bytes > spec.boot_bytes or spec.max_vcpus != spec.boot_vcpus or spec.boot_vcpus == 0:
            raise Refusal("unsupported", where + "it cannot grow: max_bytes = boot_bytes, max_vcpus = boot_vcpus")
        if spec.disks or spec.nets or spec.shares:
            raise Refusal("unsupported", where + NOT_HERE)
        if not os.path.isdir(spec.run_directory):
            raise Refusal("host_io", where + f"run directory {spec.run_directory!r} is not there")
        process = subprocess.Popen(
            [f"caisson-sleeping-vm {spec.run_directory}", "infinity"],
            executable="/bin/sleep",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        vm = Vm(
            self.directory,
            {
                "id": spec.sandbox_id,
                "digest": digest,
                "pid": process.pid,
                "start_ticks": process_stat(process.pid)[1],
                "boot_bytes": spec.boot_bytes,
                "vcpus": spec.boot_vcpus,
            },
        )
        vm.save()
        self.adopt(vm)
        return vm.observed()

    def do_inspect(self, call):
        vm = self.vms.get(call.sandbox_id)
        return vm.observed() if vm else pb.VmObserved(state=pb.VM_STATE_ABSENT, stop_reason="there is no such VM")

    def do_destroy(self, call):
        vm = self.vms.pop(call.sandbox_id, None)
        if vm:
            if vm.pidfd is not None:
                signal.pidfd_send_signal(vm.pidfd, signal.SIGKILL)
                gone = selectors.DefaultSelector()
                gone.register(vm.pidfd, selectors.EVENT_READ)
                gone.select()
            self.reap(vm)
            self.release(vm)
            os.unlink(vm.file)
        return pb.VmObserved(state=pb.VM_STATE_ABSENT, stop_reason="destroyed")

    def do_list(self, _):
        return pb.VmList(sandbox_ids=sorted(self.vms))

    def unsupported(self, _):
        raise Refusal("unsupported", NOT_HERE)

    # ---- what happens by itself ----

    def reap(self, vm):
        try:
            _, status = os.waitpid(vm.record["pid"], os.WNOHANG)
            return f"it was ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "it has exited"
        except ChildProcessError:
            return "it is gone"  # a child of an earlier backend

    def died(self, vm):
        vm.stop_reason = "vmm died: " + self.reap(vm)
        self.release(vm)
        self.say(
            event=pb.VmEvent(sandbox_id=vm.record["id"], kind=pb.VmEvent.KIND_VMM_DIED, text=vm.stop_reason)
        )


def main():
    where = argparse.ArgumentParser(description="Started by the engine, which speaks with it on descriptor 3.")
    for directory in ("state", "run", "cache", "log"):
        where.add_argument("--" + directory, required=True)
    Backend(where.parse_args().run).serve()


if __name__ == "__main__":
    main()
