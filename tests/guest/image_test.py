#!/usr/bin/env python3
"""guest/image/build, as far as it needs neither network nor kernel package."""

import gzip
import importlib.machinery
import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "guest/image/build"
sys.dont_write_bytecode = True
loader = importlib.machinery.SourceFileLoader("image_build", str(SCRIPT))
image = importlib.util.module_from_spec(importlib.util.spec_from_loader("image_build", loader))
loader.exec_module(image)
import kernel_source  # noqa: E402  the script has put its own directory on the path


def archive_bytes(fill):
    archive = image.Archive()
    fill(archive)
    out = io.BytesIO()
    archive.write(out)
    return out.getvalue()


def names_in(data):
    at, names = 0, []
    while True:
        size, name_size = int(data[at + 54:at + 62], 16), int(data[at + 94:at + 102], 16)
        name = data[at + 110:at + 110 + name_size - 1].decode()
        if name == "TRAILER!!!":
            return names
        names.append(name)
        at = (at + 110 + name_size + 3) & ~3
        at = (at + size + 3) & ~3


class ArchiveTest(unittest.TestCase):
    def test_bytes_depend_on_contents_alone(self):
        one = archive_bytes(lambda a: (a.file("b/c", b"1"), a.link("a", "b/c"), a.device("dev/null", 0o666, 1, 3)))
        two = archive_bytes(lambda a: (a.device("dev/null", 0o666, 1, 3), a.link("a", "b/c"), a.file("b/c", b"1")))
        self.assertEqual(one, two)
        self.assertEqual(len(one) % 512, 0)

    def test_directories_come_before_what_is_in_them(self):
        names = names_in(archive_bytes(lambda a: (a.file("usr/bin/env", b"x"), a.file("init", b"y"))))
        self.assertEqual(names, ["init", "usr", "usr/bin", "usr/bin/env"])


class KernelTest(unittest.TestCase):
    def test_refuses_what_is_no_bzimage(self):
        with self.assertRaisesRegex(image.BuildError, "no bzImage"):
            image.vmlinux_of(bytes(4096))

    def test_refuses_an_unknown_packing(self):
        data = bytearray(4096)
        data[0x202:0x206] = b"HdrS"
        data[0x1F1] = 1
        struct.pack_into("<II", data, 0x248, 0, 16)
        with self.assertRaisesRegex(image.BuildError, "packed in a way"):
            image.vmlinux_of(bytes(data))

    def test_parameters_do_not_weaken_the_guest(self):
        for parameter in ("mitigations=off", "nokaslr", "nosmap", "nosmep", "nopti"):
            for parameters in image.KERNEL_PARAMETERS.values():
                self.assertNotIn(parameter, parameters)

    def test_takes_a_plain_and_a_packed_arm64_kernel(self):
        kernel = bytes(0x38) + b"ARM\x64" + bytes(64)
        self.assertEqual(image.image_of(kernel), kernel)
        self.assertEqual(image.image_of(gzip.compress(kernel)), kernel)
        with self.assertRaisesRegex(image.BuildError, "no arm64 kernel"):
            image.image_of(bytes(4096))


    def test_a_kernel_from_source_is_for_arm64_and_has_what_it_is_for(self):
        with tempfile.TemporaryDirectory() as directory:
            done = subprocess.run([SCRIPT, "--kernel-source", "--out", f"{directory}/out"], capture_output=True, text=True,
                                  env={**os.environ, "CAISSON_CACHE_DIR": f"{directory}/cache"}, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("is for aarch64", done.stderr)
        options = kernel_source.options_of(kernel_source.FRAGMENT)
        self.assertEqual(len(options), len(set(options)))
        for option in ("ACPI_HOTPLUG_MEMORY", "MEMORY_HOTREMOVE", "VIRTIO_MEM", "VIRTIO_CONSOLE", "RANDOMIZE_BASE"):
            self.assertIn(f"CONFIG_{option}=y", options)


class OutputTest(unittest.TestCase):
    def test_is_replaced_in_one_step(self):
        with tempfile.TemporaryDirectory() as directory:
            new, final = Path(directory) / "new", Path(directory) / "final"
            for path, text in ((new, "new"), (final, "old")):
                path.mkdir()
                (path / "file").write_text(text)
            image.put_in_place(new, final)
            self.assertEqual((final / "file").read_text(), "new")

    def test_is_up_to_date_only_when_all_files_are_whole(self):
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory)
            self.assertFalse(image.up_to_date(out, {}))
            (out / "vmlinux").write_bytes(b"12345")
            (out / "manifest.json").write_text(json.dumps({"inputs": {"a": 1}, "files": {"vmlinux": {"bytes": 5}}}))
            self.assertTrue(image.up_to_date(out, {"a": 1}))
            self.assertFalse(image.up_to_date(out, {"a": 2}))
            (out / "vmlinux").write_bytes(b"123")
            self.assertFalse(image.up_to_date(out, {"a": 1}))

    def test_failure_says_why_and_leaves_nothing(self):
        with tempfile.TemporaryDirectory() as directory:
            for agent, reason in (("/no/such/agent", "build the target caisson-agent"), (os.fspath(SCRIPT), "no static")):
                done = subprocess.run([SCRIPT, "--agent", agent, "--out", f"{directory}/out"], capture_output=True,
                                      text=True, env={**os.environ, "CAISSON_CACHE_DIR": f"{directory}/cache"}, check=False)
                self.assertEqual(done.returncode, 1)
                self.assertIn(reason, done.stderr)
                self.assertFalse(Path(directory, "out").exists())


if __name__ == "__main__":
    unittest.main()
