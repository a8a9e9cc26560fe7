"""A small ARM64 kernel from Debian's linux-source, cross-compiled: with the memory hotplug by ACPI that Debian's own has not.

Takes long (a quarter of an hour and more on two processors), runs at the lowest priority, and is kept in the cache.
"""

import json
import os
import re
import shutil
from pathlib import Path

from debian import BuildError, Packages, run, scratch, sha256_of

SOURCE = "linux-source-6.1"
FRAGMENT = Path(__file__).resolve().parent / "kernel-aarch64.config"
CROSS = "aarch64-linux-gnu-"
TOOLS = {"make": "make", "flex": "flex", "bison": "bison", "bc": "bc", CROSS + "gcc": "gcc-aarch64-linux-gnu", "tar": "tar",
         "xz": "xz-utils", "nice": "coreutils"}
# A kernel that says when and where it was built differs with every build.
NAMELESS = ["KBUILD_BUILD_TIMESTAMP=1970-01-01", "KBUILD_BUILD_USER=caisson", "KBUILD_BUILD_HOST=caisson"]


def options_of(fragment):
    return [line for line in fragment.read_text().splitlines() if line.startswith("CONFIG_")]


def kernel_from_source(native, cache):
    """A directory with Image, config, facts.json and no modules; and the record of the source package."""
    missing = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
    if missing:
        raise BuildError(f"a kernel from source needs more packages: apt-get install {' '.join(missing)}")
    deb, record = Packages(native, cache).fetch(SOURCE)
    compiler = run([CROSS + "gcc", "--version"]).splitlines()[0]
    name = f"{record['SHA256'][:16]}-{sha256_of(FRAGMENT)[:8]}"
    final = cache / f"source-kernel-aarch64-{name}"
    if final.exists():
        return final, record
    with scratch(cache) as directory:
        print(f"building a kernel of {SOURCE} {record['Version']} with {compiler}; this takes a while", flush=True)
        run(["dpkg-deb", "-x", deb, directory])
        run(["tar", "-xf", directory / f"usr/src/{SOURCE}.tar.xz", "-C", directory])
        tree, out, made = directory / SOURCE, directory / "out", directory / "made"
        make = ["nice", "-n", "19", "make", "-s", "-C", tree, f"O={out}", "ARCH=arm64", f"CROSS_COMPILE={CROSS}", *NAMELESS]
        out.mkdir()
        run([*make, f"KCONFIG_ALLCONFIG={FRAGMENT}", "allnoconfig"])
        config = (out / ".config").read_text()
        lost = [option for option in options_of(FRAGMENT) if option not in config.splitlines()]
        if lost:
            raise BuildError(f"{SOURCE} does not take these options of {FRAGMENT}: {', '.join(lost)}")
        run([*make, f"-j{len(os.sched_getaffinity(0))}", "Image"])
        release = run([*make, "kernelrelease"]).strip().splitlines()[-1]
        made.mkdir()
        (made / "modules").mkdir()
        shutil.copyfile(out / "arch/arm64/boot/Image", made / "Image")
        (made / "config").write_text("".join(re.findall(r"^CONFIG_\w+=[ym]\n", config, re.M)))
        (made / "facts.json").write_text(json.dumps({"release": release, "modules": []}))
        os.rename(made, final)
    for path in cache.glob("source-kernel-aarch64-*"):
        if path != final:
            shutil.rmtree(path, ignore_errors=True)
    return final, record
