"""USR2 from the last release to this version: it takes over, or says why not before anything is replaced.

Both are wheels, installed one after the other into one environment, as an operator does. The old one is built
from the history of this repository; about a minute.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LAST_RELEASE = "41ef959"
CONFIG = """\
[srvkit]
control = "control.sock"
drain_timeout = "2s"

[server.echo]
listen = ["tcp://127.0.0.1:0", "unix:echo.sock"]
handler = "echo"
concurrency = "event"
workers = 2
"""
PATIENCE = 60


def wheel_of(source: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(source)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("srvkit-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: Any) -> tuple[Path, Path]:
    """The wheel of the last release, and that of this version."""
    git = ["git", "-C", str(ROOT)]
    if subprocess.run([*git, "cat-file", "-e", f"{LAST_RELEASE}^{{commit}}"], check=False).returncode:
        pytest.skip("the history of the repository is not here")
    folder: Path = tmp_path_factory.mktemp("wheels")
    stashed = subprocess.run([*git, "stash", "create"], check=True, capture_output=True, text=True).stdout
    for name, commit in (("old", LAST_RELEASE), ("new", stashed.strip() or "HEAD")):
        archive = subprocess.run([*git, "archive", commit], check=True, capture_output=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder / name, filter="data")
        (folder / f"{name}.wheels").mkdir()
    old, new = (wheel_of(folder / name, folder / f"{name}.wheels") for name in ("old", "new"))
    return old, new


class Installed:
    """A srvkit that was installed from a wheel into an environment of its own, and runs."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder
        self.command = folder / "env/bin/srvkit"
        subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
        self.install(wheel)
        (folder / "srvkit.toml").write_text(CONFIG)
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen([self.command, "run"], cwd=folder, stdout=log, stderr=log)
        self.until("listening on")

    def install(self, wheel: Path) -> None:
        pip = [str(self.folder / "env/bin/python"), "-m", "pip", "install", "--quiet", "--force-reinstall"]
        subprocess.run([*pip, str(wheel)], check=True)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def until(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.log:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        sock.connect(os.path.relpath(self.folder / "echo.sock"))
        return sock

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.command, *words], cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE
        )


@pytest.fixture
def installed(wheels: tuple[Path, Path], tmp_path: Path, monkeypatch: Any) -> Iterator[Installed]:
    monkeypatch.chdir(tmp_path)
    one = Installed(tmp_path, wheels[0])
    yield one
    if one.process.poll() is None:
        one.process.send_signal(signal.SIGTERM)
        one.process.wait(PATIENCE)


def says(sock: socket.socket, word: bytes) -> bytes:
    sock.sendall(word)
    return sock.recv(100)


def test_usr2_serves_on_from_one_wheel_to_the_next(wheels: tuple[Path, Path], installed: Installed) -> None:
    with installed.connect() as early:
        assert says(early, b"before\n") == b"before\n"
        installed.install(wheels[1])
        assert says(early, b"meanwhile\n") == b"meanwhile\n"
        status = installed.ask("status")  # this command is the new one, and asks the old one
        assert (status.returncode, status.stderr) == (0, ""), status
        assert f"pid {installed.process.pid}" in status.stdout
        installed.process.send_signal(signal.SIGUSR2)
        installed.until("reloaded: this is generation 2")
        with installed.connect() as late:
            assert says(late, b"after\n") == b"after\n"
        status = installed.ask("status")
        assert "2 of 2 workers ready" in status.stdout
        assert installed.ask("reload").returncode == 0
    assert "Traceback" not in installed.log
    installed.process.send_signal(signal.SIGTERM)
    assert installed.process.wait(PATIENCE) == 0
