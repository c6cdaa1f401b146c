"""What tests of plugins share: plugins that are written, installed and loaded, and srvkit that runs them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, Protocol

import pytest

from srvkit.plugins.manager import Plugins, make_manager
from tests.conftest import Connect, Program, Start


class Write(Protocol):
    def __call__(self, name: str, source: str = "", header: str = ...) -> Path: ...


class Make(Protocol):
    def __call__(self, *plugins: str, **more: Any) -> Plugins: ...


class Install(Protocol):
    def __call__(self, name: str, points: str, **modules: str) -> None: ...


class Watched(Protocol):
    def __call__(
        self,
        hooks: str,
        model: str = ...,
        handler: str = ...,
        listen: str = ...,
        also: str = ...,
        more: str = ...,
    ) -> Program: ...


Notes = Callable[[], list[list[str]]]
Worker = Callable[[Program], str]


class Ask(Protocol):
    def __call__(self, data: bytes, address: str = "unix:a.sock") -> bytes: ...


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A configuration's folder; what is imported from it is forgotten afterwards."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = dict(sys.modules)
    yield folder
    for name, module in list(sys.modules.items()):
        places = [str(getattr(module, "__file__", "")), *map(str, getattr(module, "__path__", ()))]
        if name not in before and any(place.startswith(str(tmp_path)) for place in places):
            del sys.modules[name]


@pytest.fixture
def write(project: Path) -> Write:
    """Write a file below the configuration's folder, `hookimpl` already imported on its first line."""

    def write(
        name: str, source: str = "", header: str = "from srvkit.plugins.hookspecs import hookimpl\n"
    ) -> Path:
        file = project / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(header + dedent(source).lstrip("\n"))
        return file

    return write


@pytest.fixture
def make(project: Path) -> Make:
    """Load plugins as the configuration in this folder names them."""

    def make(*plugins: str, **more: Any) -> Plugins:
        return make_manager(plugins, folder=project, **more)

    return make


@pytest.fixture
def install(tmp_path: Path, project: Path) -> Install:
    """Install a distribution with one module and entry points in group "srvkit"."""

    def install(name: str, points: str, **modules: str) -> None:
        site = tmp_path / "site"
        info = site / f"{name}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[srvkit]\n{points}\n")
        for module, source in modules.items():
            (site / f"{module}.py").write_text(dedent(source).lstrip("\n"))
        if str(site) not in sys.path:
            sys.path.append(str(site))

    return install


WATCHER = """
import os, sys, threading
from srvkit import BaseRequestHandler, Lines, MessageHandler, hookimpl

def note(*what):
    with open("notes", "a") as notes:
        notes.write(" ".join(map(str, what)) + "\\n")

def place():
    return f"{os.getpid()} {threading.current_thread() is threading.main_thread()}"

class Echo(MessageHandler):
    framing = Lines()
    def handle_message(self, message):
        if message == b"fail":
            raise LookupError("as wished")
        return message

class Blocking(BaseRequestHandler):
    def handle(self):
        if isinstance(self.request, tuple):
            self.request[1].sendto(b"blocking", self.client_address)
        else:
            self.request.sendall(self.request.recv(100))

@hookimpl
def srvkit_handlers():
    return {"watched": Echo, "blocking": Blocking}
"""


@pytest.fixture
def watched(tmp_path: Path, start: Start) -> Iterator[Watched]:
    """`watched(hooks, model)`: `srvkit run` with a plugin of these hooks and a server named a."""
    with contextlib.ExitStack() as stack:

        def watched(
            hooks: str,
            model: str = "threading",
            handler: str = "watched",
            listen: str = "unix:a.sock",
            also: str = "",
            more: str = "",
        ) -> Program:
            (tmp_path / "watcher.py").write_text(dedent(WATCHER) + dedent(hooks))
            (tmp_path / "srvkit.toml").write_text(
                f'[srvkit]\nplugins = ["watcher.py", {also}]\n[server.a]\nlisten = "{listen}"\n'
                f'handler = "{handler}"\nconcurrency = "{model}"\n{more}\n'
            )
            return stack.enter_context(start("-m", "srvkit", "run", folder=tmp_path))

        yield watched


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    """What the hooks have noted, in words."""
    return lambda: [line.split(" ") for line in (tmp_path / "notes").read_text().splitlines()]


@pytest.fixture
def worker() -> Worker:
    """`worker(program)`: the number of the process that serves, once it does."""

    def worker(program: Program) -> str:
        program.addresses("a")
        (child,) = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
        return child

    return worker


@pytest.fixture
def ask(client: Connect, tmp_path: Path) -> Ask:
    """`ask(data)`: say something to the server and return all that it answers."""

    def ask(data: bytes, address: str = "unix:a.sock") -> bytes:
        with client(address, tmp_path) as sock:
            sock.sendall(data)
            if address.startswith(("udp", "unixgram")):
                return bytes(sock.recv(100))
            sock.shutdown(1)
            with sock.makefile("rb") as file:
                return bytes(file.read())

    return ask
