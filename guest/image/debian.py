"""Debian packages for the guest: taken with apt into a cache, never installed.

Packages of the host's own architecture come by the host's apt as it is. Those of another one come through a private
apt: its own state and cache below our cache directory, its own list of architectures, the host's Debian mirrors, proxies
and keys. The host's apt and dpkg are not changed.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

# How old the private apt's lists may be before they are asked for again.
LISTS_LAST_S = 24 * 3600


class BuildError(Exception):
    """Something that the caller can mend; the text says what, where and how."""


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def run(command, may_fail=False, **kwargs):
    try:
        return subprocess.run(command, check=not may_fail, capture_output=True, text=True, **kwargs).stdout
    except FileNotFoundError:
        name = os.fspath(command[0])
        package = "binutils-aarch64-linux-gnu" if name.startswith("aarch64-linux-gnu-") else "apt, dpkg or binutils"
        raise BuildError(f"{name} is not installed (package: {package})") from None
    except subprocess.CalledProcessError as error:
        raise BuildError(f"'{' '.join(map(str, command))}' failed: {(error.stderr or error.stdout).strip()[-2000:]}") from None


@contextlib.contextmanager
def locked(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def scratch(parent):
    """A directory beside the result, so that a rename finishes it; gone afterwards whatever happens."""
    parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=".making-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def default_cache():
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "caisson"
    return Path(os.environ.get("CAISSON_CACHE_DIR") or cache).resolve()


class Packages:
    """Packages of one Debian architecture. `cache` is locked by the caller."""

    def __init__(self, architecture, cache):
        self.cache = cache
        self.architecture = architecture
        self.foreign = architecture != run(["dpkg", "--print-architecture"]).strip()
        # As root apt would warn that its own user cannot write here.
        self.options = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
        self.mend = "run 'apt-get update' as root first"
        if self.foreign:
            self._prepare_private_apt()

    def record(self, name):
        """The candidate's fields from apt's lists; None when apt doesn't know the package."""
        record = {}
        shown = run(["apt-cache", *self.options, "--no-all-versions", "show", name], may_fail=True)
        for line in shown.splitlines():
            if match := re.match(r"(Package|Version|Architecture|Depends|SHA256): (.*)", line):
                record.setdefault(match[1], match[2])
        return record if "SHA256" in record else None

    def kernel(self, meta):
        """Name of the package with the kernel itself that the meta package stands for."""
        record = self.record(meta)
        if not record:
            raise BuildError(f"apt knows no package {meta}: {self.mend}; "
                             "Debian's main archive has to be in /etc/apt/sources.list")
        if not (match := re.search(r"linux-image-[^ ,|]+", record.get("Depends", ""))):
            raise BuildError(f"{meta} depends on no kernel package: {record.get('Depends')!r}")
        return match[0]

    def fetch(self, name):
        """The package's file in the cache and its record, downloaded by apt if it is not there."""
        record = self.record(name)
        if not record:
            raise BuildError(f"apt knows no package {name}: {self.mend}")
        kept = self.cache / "packages"
        final = kept / f"{name}_{record['Version'].replace(':', '%3a')}_{record['Architecture']}.deb"
        if final.exists() and sha256_of(final) == record["SHA256"]:
            return final, record
        with scratch(kept) as directory:
            print(f"downloading {name} {record['Version']}", flush=True)
            try:
                run(["apt-get", *self.options, "-q", "download", f"{name}={record['Version']}"], cwd=directory)
            except BuildError as error:
                raise BuildError(f"cannot download {name} {record['Version']}; if apt's lists are old, {self.mend}. "
                                 f"{error}") from None
            [downloaded] = directory.glob("*.deb")
            if sha256_of(downloaded) != record["SHA256"]:
                raise BuildError(f"{name} arrived with another sha256 than apt's list says: {downloaded.name}")
            os.replace(downloaded, final)
        return final, record

    def _prepare_private_apt(self):
        root = self.cache / f"apt-{self.architecture}"
        for part in ("state/lists/partial", "cache/archives/partial", "sources.d"):
            (root / part).mkdir(parents=True, exist_ok=True)
        (root / "status").touch()
        sources = "".join(f"deb [arch={self.architecture}] {uri} {suite} main\n" for uri, suite in debian_mirrors())
        changed = not (root / "sources.list").exists() or (root / "sources.list").read_text() != sources
        (root / "sources.list").write_text(sources)
        # On the command line, since these win over the host's apt.conf.d, which is kept for its proxies.
        settings = {"APT::Architecture": self.architecture, "APT::Architectures": self.architecture,
                    "Dir::State": root / "state", "Dir::State::status": root / "status", "Dir::Cache": root / "cache",
                    "Dir::Etc::sourcelist": root / "sources.list", "Dir::Etc::sourceparts": root / "sources.d",
                    "Acquire::Languages": "none", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
                    "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled": "false"}
        for key, value in settings.items():
            self.options += ["-o", f"{key}={value}"]
        stamp = root / "lists-from"
        self.mend = f"remove {stamp} and try again, so that the lists in {root} are asked for again"
        if not changed and stamp.exists() and time.time() - stamp.stat().st_mtime < LISTS_LAST_S:
            return
        print(f"asking Debian for its packages of {self.architecture} (a private apt in {root})", flush=True)
        try:
            run(["apt-get", *self.options, "-q", "update"])
        except BuildError as error:
            if changed or not stamp.exists():
                raise BuildError(f"the lists of Debian's {self.architecture} packages cannot be had: {error}") from None
            print("they cannot be had now; the older ones are used", flush=True)
            return
        stamp.touch()


def debian_mirrors():
    """(URI, suite) of every Debian main archive that the host's apt uses."""
    found, seen = [], None
    for line in run(["apt-cache", "policy"]).splitlines():
        if match := re.match(r"\s*-?\d+ (\S+) (\S+)/main \S+ Packages", line):
            seen = (match[1], match[2])
        elif seen and "o=Debian" in line and seen not in found:
            found.append(seen)
            seen = None
    if not found:
        raise BuildError("apt knows no Debian archive: run 'apt-get update' as root first; Debian's main archive has to be in "
                         "/etc/apt/sources.list")
    return found
