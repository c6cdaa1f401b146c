"""What tests of running servers share: programs, clients, and loops in threads, all ended with the test."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import hypothesis
import pytest

if TYPE_CHECKING:
    import trustme

hypothesis.settings.register_profile(
    "srvkit", deadline=None
)  # how long an example takes is the machine's affair
hypothesis.settings.load_profile("srvkit")

ROOT = Path(__file__).resolve().parent.parent
collect_ignore = ["long"]  # what takes minutes runs where it is named: pytest -n 2 tests/long
# What is ignored here, by nohup say, would be ignored by all programs that tests start.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sample",
        type=int,
        default=0,
        metavar="N",
        help="run at most N of the parameter sets of each test, others on each version of Python",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    most: int = config.getoption("sample")
    if not most:
        return
    by_test: dict[str, list[pytest.Item]] = {}
    for item in items:
        by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)

    def lot(item: pytest.Item) -> bytes:
        return hashlib.sha256(f"{sys.version_info[:2]} {item.nodeid}".encode()).digest()

    chosen = {item for some in by_test.values() for item in sorted(some, key=lot)[:most]}
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]


PATIENCE = 30  # seconds before something counts as hung; nothing waits that long when all is well
Value = TypeVar("Value")
Loop = TypeVar("Loop", bound="Servable")


class Program:
    """A process of ours; `log` is what it has printed so far, errors included."""

    def __init__(self, command: list[str], folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.log = ""
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | settings.pop("environ", {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="surrogateescape",
            **({"stdin": subprocess.DEVNULL} | settings),
        )
        self.pid = self.process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def wait_for(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait until the log has `pattern` so many times; return the last match."""

        def found() -> bool:
            return len(re.findall(pattern, self.log, re.MULTILINE)) >= times or not self._reader.is_alive()

        with self._news:
            self._news.wait_for(found, PATIENCE)
        matches = list(re.finditer(pattern, self.log, re.MULTILINE))
        assert len(matches) >= times, f"{pattern!r} is not {times} times in this log:\n{self.log}"
        return matches[-1]

    def say(self, text: str) -> None:
        """Type this; for a program started with `stdin=subprocess.PIPE`."""
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def addresses(self, server: str) -> list[str]:
        """Wait until this server of a configuration listens; return its addresses."""
        return self.wait_for(rf" {re.escape(server)}: listening on (.+)$")[1].split(", ")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit status."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """Wait for the end and for the last of the log; return the exit status."""
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.log += line
                self._news.notify_all()
        with self._news:
            self._news.notify_all()


class Start(Protocol):
    def __call__(
        self, *command: str, folder: Path, **settings: Any
    ) -> contextlib.AbstractContextManager[Program]: ...


class RunSrvkit(Protocol):
    def __call__(self, config: str, plugin: str = "", *arguments: str, **settings: Any) -> Program: ...


class RunCode(Protocol):
    def __call__(self, code: str, **settings: Any) -> Program: ...


class Connect(Protocol):
    def __call__(self, address: Any, folder: Path = ...) -> socket.socket: ...


class Servable(Protocol):
    def serve_forever(self) -> None: ...
    def shutdown(self) -> None: ...
    def server_close(self) -> None: ...


class Serving(Protocol):
    def __call__(self, server: Loop) -> Loop: ...


class Eventually(Protocol):
    def __call__(self, condition: Callable[..., Value], *arguments: Any) -> Value: ...


Tool = Callable[[str], None]


class RevocationList(Protocol):
    def __call__(
        self, ca: trustme.CA, *revoked: trustme.Blob, days: float = 30, begins: float = -1
    ) -> bytes: ...


@contextlib.contextmanager
def _start(*command: str, folder: Path, **settings: Any) -> Iterator[Program]:
    with Program([sys.executable, *command], folder, **settings) as program:
        yield program


@pytest.fixture(scope="session")
def start() -> Start:
    """`with start("-m", "srvkit", ..., folder=folder) as program`: Python with these arguments."""
    return _start


@pytest.fixture
def run_srvkit(tmp_path: Path) -> Iterator[RunSrvkit]:
    """`run_srvkit(config, plugin)`: the command in a folder with this srvkit.toml and plugin.py."""
    with contextlib.ExitStack() as stack:

        def run(config: str, plugin: str = "", *arguments: str, **settings: Any) -> Program:
            if plugin:
                (tmp_path / "plugin.py").write_text(plugin)
                config = f'[srvkit]\nplugins = ["plugin.py"]\ndrain_timeout = "20s"\n{config}'
            (tmp_path / "srvkit.toml").write_text(config)
            command = ("-m", "srvkit", "run", "srvkit.toml", *arguments)
            return stack.enter_context(_start(*command, folder=tmp_path, **settings))

        yield run


@pytest.fixture
def run_code(tmp_path: Path) -> Iterator[RunCode]:
    """`run_code(text)`: a Python program of its own, where a test process with its threads will not do."""
    with contextlib.ExitStack() as stack:
        yield lambda code, **settings: stack.enter_context(_start("-c", code, folder=tmp_path, **settings))


@pytest.fixture
def _connected() -> list[socket.socket]:
    return []


@pytest.fixture
def client(_connected: list[socket.socket]) -> Iterator[Connect]:
    """`client(address)`: a socket connected to "tcp://127.0.0.1:7007", "unix:PATH", a pair or a path."""

    def connect(address: Any, folder: Path = Path()) -> socket.socket:
        scheme, target = "", address
        if isinstance(address, str) and re.match(r"(tcp|udp|unix|unixgram):", address):
            scheme, target = address.split(":", 1)
        if target is not address and scheme in ("tcp", "udp"):
            host, port = target.removeprefix("//").rsplit(":", 1)
            target = host.strip("[]"), int(port)
        kind = socket.SOCK_DGRAM if scheme in ("udp", "unixgram") else socket.SOCK_STREAM
        if isinstance(target, str):
            sock = socket.socket(socket.AF_UNIX, kind)
            target = str(folder / target)
        else:
            sock = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET, kind)
        sock.settimeout(PATIENCE)
        try:
            if scheme == "unixgram":
                sock.bind("")  # an abstract name of the kernel's choice, so that there is whom to answer
            sock.connect(target)
        except BaseException:
            sock.close()
            raise
        _connected.append(sock)
        return sock

    yield connect
    for sock in _connected:
        sock.close()


@pytest.fixture
def serving(_connected: list[socket.socket]) -> Iterator[Serving]:
    """`serving(server)`: the server, its loop in a thread; shut down and closed with the test."""
    with contextlib.ExitStack() as stack:

        def begin(server: Loop) -> Loop:
            loop = threading.Thread(target=server.serve_forever, daemon=True)
            stack.callback(server.server_close)
            stack.callback(loop.join, PATIENCE)
            stack.callback(server.shutdown)
            loop.start()
            return server

        yield begin
        for sock in _connected:  # a server's threads may wait for a client that a failed test left behind
            sock.close()


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    """`eventually(condition, *arguments)`: return its value once it is true; for what nobody announces."""

    def wait(condition: Callable[..., Value], *arguments: Any) -> Value:
        deadline = time.monotonic() + PATIENCE
        while not (value := condition(*arguments)):
            assert time.monotonic() < deadline, f"never true: {condition} {arguments}"
            time.sleep(0.005)
        return value

    return wait


@pytest.fixture(scope="session")
def tool() -> Tool:
    """`tool("strace")`: skip where the machine lacks it; fail under SRVKIT_REQUIRE_TOOLS=1."""
    from shutil import which

    def need(name: str) -> None:
        if which(name) is None:
            reason = f"{name} is not installed"
            pytest.fail(reason) if os.environ.get("SRVKIT_REQUIRE_TOOLS") == "1" else pytest.skip(reason)

    return need


@pytest.fixture(scope="session")
def revocation_list() -> RevocationList:
    """`revocation_list(ca, *issued, days=30)`: a list of an authority of trustme's, in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    def make(ca: trustme.CA, *revoked: trustme.Blob, days: float = 30, begins: float = -1) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        authority = x509.load_pem_x509_certificate(ca.cert_pem.bytes())
        key: Any = serialization.load_pem_private_key(ca.private_key_pem.bytes(), None)
        builder = x509.CertificateRevocationListBuilder(
            authority.subject, now + datetime.timedelta(days=begins), now + datetime.timedelta(days=days)
        )
        for one in revoked:
            number = x509.load_pem_x509_certificate(one.bytes()).serial_number
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder(number, now - datetime.timedelta(days=1)).build()
            )
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    return make
