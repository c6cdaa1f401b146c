"""Runs the suite on Pythons that this machine does not have: `python tests/long/pythons.py`, as root.

They are Debian unstable's, in a system of their own made by debootstrap, and for `3.14t` and the like a build
without the interpreter's lock from Debian's source package; where the archive has no source of that version,
the newest that there is takes its place, and that is said. Package indexes and archives are reached as this
machine does it: its settings of pip and apt, its certificates and its environment are carried over.

The tests run with nothing but the loopback interface. Mounts and processes end with the script, and so does
the system, unless `--folder` names a place to keep it: there it is made once, and used again.
Needs debootstrap, unshare and 4 GiB of disk; takes some 20 minutes, a build besides.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
VERSIONS = ["3.14", "3.15", "3.15t"]
GROUPS = ["test", "drop-in"]
CHECKOUT = "/root/srvkit"  # in that system

TOOLS = [
    "build-essential",
    "dpkg-dev",
    "ca-certificates",
    "curl",
    "fish",
    "git",
    "haproxy",
    "iproute2",
    "lsof",
    "netcat-openbsd",
    "openssl",
    "socat",
    "strace",
    "systemd",
    "zsh",
]
FOR_BUILDING = [
    "libbz2-dev",
    "libffi-dev",
    "liblzma-dev",
    "libsqlite3-dev",
    "libssl-dev",
    "uuid-dev",
    "zlib1g-dev",
]
CARRIED_OVER = [
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/pip.conf",
    "/etc/xdg/pip",
    str(Path.home() / ".config/pip"),
    str(Path.home() / ".pip"),
    "/etc/apt/auth.conf",
    "/etc/apt/auth.conf.d",
    "/etc/ssl/certs/ca-certificates.crt",
]
SETTINGS_OF_APT = re.compile(r"Acquire::(https?|Check-|Force|Retries)")

# argv: the root, and what is run in it. Nothing is left behind: processes and mounts live in namespaces.
ALONE = """
set -e
ip link set lo up
mount -t proc proc "$1/proc"
chroot "$@" && exit  # not in the shell's place: the first process of a namespace is treated differently
exit "$?"
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep the system here, and use what is here already")
    parser.add_argument("--python", action="append", metavar="X.Y[t]", help=f"default: {' '.join(VERSIONS)}")
    parser.add_argument("--jobs", default="2", help="processes that compile, and that test (default: 2)")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, after -- (default: the suite)")
    given = parser.parse_args()
    if os.environ.get("SRVKIT_PRIVATE_MOUNTS") != "1":  # those made below end with this process
        again = ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv]
        return subprocess.run(again, env=os.environ | {"SRVKIT_PRIVATE_MOUNTS": "1"}).returncode
    with ExitStack() as stack:
        if given.folder is None:
            given.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="srvkit-pythons-")))
            stack.callback(print, "removing the system", flush=True)
        system = System(given.folder.resolve(), given.jobs)
        system.make()
        stack.callback(system.unmount)
        results = {version: system.test(version, given.pytest) for version in given.python or VERSIONS}
    print("\n".join(f"Python {version}: {result}" for version, result in results.items()))
    return int(any(not result.startswith("passed") for result in results.values()))


class System:
    """Debian unstable in a folder."""

    def __init__(self, root: Path, jobs: str) -> None:
        self.root = root
        self.jobs = jobs
        self._mounted: list[Path] = []

    def make(self) -> None:
        """Make it, or go on with the one that is there; lay a copy of the checkout into it."""
        if not (self.root / "etc/debian_version").exists():
            say("Debian unstable")
            command = ["debootstrap", "--variant=minbase", "unstable", str(self.root), *own_mirror()]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for path in CARRIED_OVER:
            copy(Path(path), self.root / path.lstrip("/"))
        self.write("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n").chmod(0o755)  # no service is started
        settings = output("apt-config", "dump", "--format", '%F "%v";%n', "Acquire").splitlines()
        settings = [line for line in settings if SETTINGS_OF_APT.match(line)]
        self.write("etc/apt/apt.conf.d/99host", "\n".join([*settings, 'Acquire::Languages "none";', ""]))
        for sources in self.root.glob("etc/apt/sources.list*"):
            if sources.is_file():
                lines = [line for line in sources.read_text().splitlines() if line.startswith("deb ")]
                for_source = [line.replace("deb ", "deb-src ", 1) for line in lines]
                older = [line.replace(" unstable ", " testing ") for line in for_source]
                sources.write_text("\n".join([*lines, *for_source, *older, ""]))
        self.mount("--bind", "/dev", "dev")
        self.mount("-t", "devpts", "devpts", "dev/pts")
        self.mount("-t", "tmpfs", "tmpfs", "dev/shm")
        self.run("apt-get", "update", "-q")
        say("tools")
        self.install(TOOLS)
        shutil.rmtree(self.root / CHECKOUT.lstrip("/"), ignore_errors=True)
        listed = output("git", "-C", str(ROOT), "ls-files", "-coz", "--exclude-standard")
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).exists():
                copy(ROOT / name, self.root / CHECKOUT.lstrip("/") / name)

    def test(self, version: str, arguments: list[str]) -> str:
        """Run the suite on one Python; return how it went."""
        try:
            python = self.build(version) if version.endswith("t") else self.packaged(version)
            found = self.read(python, "-c", "import sys; print(sys.version, sys.abiflags)")
            say(f"Python {version}: {found}")
            without = self.environment(python, version)
        except subprocess.CalledProcessError as error:
            return f"could not be had: {error}"
        lock = self.read(self.bin(version, "python"), "-c", GIL)
        inside = [self.bin(version, "pytest"), "-q", "-n", self.jobs]
        inside += arguments or ["tests", "--ignore", "tests/long"]
        alone = [
            "unshare",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            ALONE,
            "sh",
            str(self.root),
        ]
        status = subprocess.run([*alone, "env", "-C", CHECKOUT, *inside], env=self.surroundings()).returncode
        missing = f", without {', '.join(without)}" if without else ""
        return f"{'passed' if not status else f'pytest ended with status {status}'} ({found}{lock}{missing})"

    def packaged(self, version: str) -> str:
        """Install Debian's Python of a version; return its path."""
        name = f"python{version}"
        self.install([name, f"{name}-venv", f"{name}-dev", f"lib{name}-testsuite"])
        return f"/usr/bin/{name}"

    def build(self, version: str) -> str:
        """Build a Python without the interpreter's lock, of this version or the newest before it."""
        minor = int(version.removesuffix("t").partition(".")[2])
        for candidate in (f"3.{number}" for number in range(minor, 13, -1)):  # msgspec has none for 3.13t
            python = f"/opt/python{candidate}t/bin/python3"
            if (self.root / python.lstrip("/")).exists() or self.built(candidate):
                return python
        raise subprocess.CalledProcessError(1, f"apt-get source python{version.removesuffix('t')}")

    def built(self, version: str) -> bool:
        """Build it, where the archive has a source package of it."""
        self.install(FOR_BUILDING)
        sources = self.read("apt-cache", "showsrc", f"python{version}")
        known = dict.fromkeys(re.findall(r"^Version: (.*)$", sources, re.MULTILINE))
        for package in (f"python{version}={number}" for number in known):
            say(f"building {package}")
            folder = Path("/usr/src") / package
            (self.root / folder.relative_to("/")).mkdir(exist_ok=True)
            try:
                self.run("apt-get", "source", "-q", "--download-only", package, cwd=folder)
            except subprocess.CalledProcessError:
                say(f"the archive does not have {package}")
                continue
            self.run("sh", "-c", "exec dpkg-source --skip-patches -x *.dsc source", cwd=folder)
            here = folder / "source"
            self.run("./configure", "-q", "--disable-gil", f"--prefix=/opt/python{version}t", cwd=here)
            self.run("make", "-s", f"-j{self.jobs}", cwd=here)
            self.run("make", "-s", "install", cwd=here)
            return True
        return False

    def environment(self, python: str, version: str) -> list[str]:
        """Make an environment with all that the tests use; return what cannot be had on this Python."""
        self.run(python, "-m", "venv", "--clear", f"/venv{version}")
        pip = [self.bin(version, "pip"), "install", "--quiet"]
        self.run(*pip, "--upgrade", "pip")
        self.run(*pip, "--editable", CHECKOUT)
        groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
        without = []
        for requirement in dict.fromkeys(one for group in GROUPS for one in groups[group]):
            try:
                self.run(*pip, requirement)
            except subprocess.CalledProcessError:
                without.append(requirement)
        return without

    # ---- what is done in it

    def bin(self, version: str, name: str) -> str:
        return f"/venv{version}/bin/{name}"

    def install(self, packages: Iterable[str]) -> None:
        self.run("apt-get", "install", "-y", "-q", "--no-install-recommends", *packages)

    def run(self, *command: str, cwd: Path | str = "/") -> None:
        """Run a command in the system, quietly unless it fails."""
        done = self._run(command, cwd)
        if done.returncode:
            print(done.stdout[-5000:], flush=True)
            done.check_returncode()

    def read(self, *command: str) -> str:
        """Return what a command prints."""
        return self._run(command, "/").stdout.strip()

    def _run(self, command: Iterable[str], cwd: Path | str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["chroot", self.root, "env", "-C", cwd, *command],
            env=self.surroundings(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def surroundings(self) -> dict[str, str]:
        """Return this environment, proxies and settings of pip included, with that system's paths."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYENV", "VIRTUAL_"))}
        paths = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "TMPDIR": "/tmp"}
        return kept | paths | {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.write_text(text)
        return path

    def mount(self, *arguments: str) -> None:
        *source, name = arguments
        if not os.path.ismount(self.root / name):
            subprocess.run(["mount", *source, self.root / name], check=True)
            self._mounted.append(self.root / name)

    def unmount(self) -> None:
        """Take the mounts away, so that nothing of this machine's is in the folder any more."""
        while self._mounted:
            subprocess.run(["umount", self._mounted.pop()], check=True)


# On a build without it, an extension that does not say that it can do without brings the lock back.
GIL = """
import sys, srvkit.config.convert
enabled = getattr(sys, "_is_gil_enabled", bool)()
print("; with the interpreter's lock back" if enabled and "t" in sys.abiflags else "")
"""


def own_mirror() -> list[str]:
    """Return the archive that this machine's apt uses, if it is a Debian's."""
    uris = output("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split()
    return [uri for uri in uris if uri.rstrip("/").endswith("/debian")][:1]


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def say(text: str) -> None:
    print(f"== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
