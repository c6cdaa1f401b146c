"""What tests of the commands share: the real command, run to its end in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any, Protocol

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60  # seconds before a command counts as hung


class Command(Protocol):
    def __call__(
        self, *words: str, folder: Path = ..., **settings: Any
    ) -> subprocess.CompletedProcess[str]: ...


class Terminal(Protocol):
    def __call__(self, columns: int, *words: str) -> list[str]: ...


class Refused(Protocol):
    def __call__(self, status: int, *words: str, **settings: Any) -> list[str]: ...


@pytest.fixture
def srvkit(tmp_path: Path) -> Command:
    """`srvkit("check", "--explain")`: run the command in `tmp_path` until it ends."""

    def run(*words: str, folder: Path = tmp_path, **settings: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "srvkit", *words],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
            **({"stdin": subprocess.DEVNULL, "capture_output": True, "text": True} | settings),
            timeout=PATIENCE,
            check=False,
        )

    return run


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    """`terminal(80, "plugins")`: the lines that the command writes to a terminal of so many columns."""

    def run(columns: int, *words: str) -> list[str]:
        controller, screen = pty.openpty()
        termios.tcsetwinsize(screen, (50, columns))
        environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
        process = subprocess.Popen(
            [sys.executable, "-m", "srvkit", *words],
            cwd=tmp_path,
            env=environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"},
            stdin=screen,
            stdout=screen,
            stderr=screen,
        )
        os.close(screen)
        written = b""
        with open(controller, "rb", buffering=0) as file, contextlib.suppress(OSError):  # how a pty ends
            while data := file.read(65536):
                written += data
        assert process.wait(PATIENCE) == 0, written.decode()
        return written.decode().replace("\r\n", "\n").splitlines()

    return run


@pytest.fixture
def refused(srvkit: Command) -> Refused:
    """`refused(3, "run", "x.toml")`: the lines that a command which cannot do its work says instead."""

    def refused(status: int, *words: str, **settings: Any) -> list[str]:
        done = srvkit(*words, **settings)
        assert done.returncode == status, done
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert lines and all(line.startswith("srvkit: ") for line in lines), done.stderr
        return [line.removeprefix("srvkit: ") for line in lines]

    return refused
