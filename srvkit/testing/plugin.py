"""For tests of handlers: live servers, conversations without a socket, and one test for every model.

What pytest loads by itself is `srvkit_pytest` (`entry`), which comes here when a test asks for a server. The
rest is imported by its public name: `from srvkit.pytest_plugin import converse, srvkit_models`. It knows
servers by `process.embed` and the hooks only, as any program could.
PYTEST_DONT_REWRITE, so that `pytest_plugins` may name what a conftest.py has imported already.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

import pytest

from srvkit.config.handler_shape import runs_under
from srvkit.contracts import missing_packages
from srvkit.errors import PluginError
from srvkit.net import unixpath
from srvkit.net.event_loop import READ, WRITE, wait_for
from srvkit.plugins.manager import make_manager
from srvkit.process.embed import EmbeddedServer, start
from srvkit.testing.memory import converse
from srvkit.testing.recorder import Recorder

__all__ = ["LiveServer", "Servers", "converse", "srvkit_models"]

PATIENCE = 10.0  # seconds until a peer that says nothing fails the test
LAST_MOMENT = 1.0  # seconds that handlers have to end by themselves when the test is over
CHUNK = 65536  # bytes of one read
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # for Unix sockets where TMPDIR is too long for them
STREAMS = ("tcp", "unix")
TRANSPORTS = (*STREAMS, "udp", "unixgram")


def srvkit_models(handler: type[Any] | str, *, without: str | Sequence[str] = ()) -> pytest.MarkDecorator:
    """Run the decorated test once under each concurrency model that can run the handler.

    The fixture `srvkit_server` takes that model by default, `srvkit_model` is its name; the test has one
    of them as an argument. `handler` is a class, the name of an installed plugin or
    "package.module:Class". A model whose package is not installed is skipped, with what to install.
    `without` names models that are left out; raises ValueError for one that cannot run the handler anyway.
    """
    plugins = make_manager()
    if isinstance(handler, str) and ":" in handler:
        handler = plugins.import_handler(handler)
    elif isinstance(handler, str):
        if handler not in plugins.handlers:
            raise PluginError(handler, "no installed plugin offers a handler of this name")
        handler = plugins.handlers[handler].cls
    able = {name: offer.cls for name, offer in plugins.models.items() if runs_under(handler, offer.cls)}
    left_out = {without} if isinstance(without, str) else set(without)
    if unknown := left_out - set(able):
        raise ValueError(f"{handler.__name__} runs under {', '.join(able)}, not under {', '.join(unknown)}")
    names = [_parameter(name, model) for name, model in able.items() if name not in left_out]
    return pytest.mark.parametrize("srvkit_model", names)


def _parameter(name: str, model: Any) -> Any:
    missing = missing_packages(model)
    if not missing:
        return name
    reason = f"{name} needs the package {missing[0].name}: pip install {missing[0].install!r}"
    return pytest.param(name, marks=pytest.mark.skip(reason=reason))


class LiveServer:
    """A server in the middle of a test; `Servers.start` makes it, the end of the test stops it.

    `address` is (host, port), or the path of its socket; `server` is the server object, None where it
    runs in a process of its own (`forking`).
    """

    def __init__(
        self, embedded: EmbeddedServer, observer: Recorder, transport: str, model: str, folder: Path
    ) -> None:
        self.address = embedded.address
        self.server = embedded.server
        self._embedded = embedded
        self._observer = observer
        self._transport = transport
        self._model = model
        self._folder = folder
        self._open: list[socket.socket] = []
        self._names: set[str] = set()  # of its clients so far

    def __repr__(self) -> str:
        return f"<LiveServer {self._model} {self._transport} {self.address}>"

    @property
    def errors(self) -> list[BaseException]:
        """What the handler has raised and the test was not told of yet; clear it to have that forgiven."""
        self._observer.read()
        return self._observer.errors

    def connect(self, timeout: float = PATIENCE) -> socket.socket:
        """Return a connected socket, closed with the test at the latest; `timeout` in seconds for each call.

        Of datagrams it is a socket that sends to the server and gets its replies.
        """
        kind = socket.SOCK_STREAM if self._transport in STREAMS else socket.SOCK_DGRAM
        sock = socket.socket(socket.AF_UNIX if "unix" in self._transport else socket.AF_INET, kind)
        self._open.append(sock)
        sock.settimeout(timeout)
        if self._transport == "unixgram":
            sock.bind(str(self._folder / f"client-{len(self._open)}.sock"))  # or nobody could answer it
        elif self._transport != "unix":
            sock.bind((self.address[0], 0))
        # Before it connects: it may be refused, and its end known, before connect() returns.
        name = repr(sock.getsockname())
        self._observer.read()
        self._observer.ended.discard(name)  # an earlier client's, who had the same port
        self._names.add(name)
        sock.connect(self.address)
        return sock

    def exchange(self, data: bytes, timeout: float = PATIENCE) -> bytes:
        """Send `data` as a client of its own and return everything that comes back.

        On streams: connect, send, end the sending side, read to the end. On datagrams: send one, return
        the replies (joined, if there are several) once the handler is done with it; b"" if it has none.
        Raises what the handler raised meanwhile (under `forking` a RuntimeError in place of what cannot be
        pickled); TimeoutError when nothing moves for `timeout` seconds.
        """
        with self.connect(timeout) as sock:
            name = repr(sock.getsockname())
            received: list[bytes] = []
            try:
                if self._transport in STREAMS:
                    _talk(sock, data, received, timeout)
                else:
                    sock.send(data)
                if self._transport != "unix":  # whose clients have no name
                    self._observer.wait(lambda: name in self._observer.ended, timeout)
                if self._transport not in STREAMS:
                    _drain(sock, received)
            except TimeoutError as error:
                self._raise_errors()
                raise TimeoutError(f"{self!r}: {error}; received so far: {b''.join(received)!r}") from None
        self._raise_errors()
        return b"".join(received)

    @contextlib.contextmanager
    def expect(
        self,
        kind: type[BaseException] | tuple[type[BaseException], ...],
        *,
        match: str | re.Pattern[str] | None = None,
        timeout: float = PATIENCE,
    ) -> Iterator[pytest.ExceptionInfo[BaseException]]:
        """Expect the handler to raise `kind` in the block or, at most `timeout` seconds, after it.

        As `pytest.raises`, which does as well around `exchange`; this is for what `connect` started.
        """
        with pytest.raises(kind, match=match) as caught:  # noqa: PT012 - the block is the caller's
            yield caught
            with contextlib.suppress(TimeoutError):
                self._observer.wait(lambda: bool(self._observer.errors), timeout)
            self._raise_errors()

    def stop(self) -> None:
        """End the test's connections and the server, whatever it is doing; raise what the handler raised."""
        self._let_finish()
        for sock in self._open:
            sock.close()
        self._open.clear()
        self._embedded.stop(LAST_MOMENT)
        self._raise_errors()

    def _raise_errors(self) -> None:
        found = list(self.errors)
        self.errors.clear()
        if len(found) == 1:
            raise found[0]
        if found:
            raise BaseExceptionGroup("the handler raised", found)

    def _let_finish(self) -> None:
        """End the sending sides and wait a moment, so that everything the test has sent is handled."""
        deadline = monotonic() + LAST_MOMENT
        for sock in self._open if self._transport in STREAMS else ():
            _end_sending(sock)
        for sock in self._open if self._transport in STREAMS else ():
            with contextlib.suppress(OSError):
                sock.settimeout(max(0.001, deadline - monotonic()))
                while sock.recv(CHUNK) and monotonic() < deadline:
                    pass
        if self._transport == "tcp":  # clients on Unix sockets have no name
            with contextlib.suppress(TimeoutError):
                self._observer.wait(lambda: self._names <= self._observer.ended, deadline - monotonic())


class Servers:
    """All servers of one test: starts them, and stops them at its end. A context manager.

    With `may_skip` a test is skipped where the process cannot fork for `model`.
    """

    def __init__(self, model: str, *, may_skip: bool = False) -> None:
        self._model = model
        self._may_skip = may_skip
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Servers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def start(
        self,
        handler: type[Any] | str,
        concurrency: str | dict[str, Any] | None = None,
        transport: str = "tcp",
        **config: Any,
    ) -> LiveServer:
        """Start a server and return it, ready; the fixture `srvkit_server`.

        Raises ConfigError for what srvkit.toml would not allow, and whatever the handler's `startup`
        raises.
        """
        if transport not in TRANSPORTS:
            raise ValueError(f"transport is one of {', '.join(TRANSPORTS)}, not {transport!r}")
        if extra := {"listen", "workers"} & set(config):
            raise TypeError(
                f"{extra.pop()} is none of a test's settings: a server has one process and address"
            )
        model = self._model if concurrency is None else concurrency
        name = str(model.get("name") if isinstance(model, dict) else model)
        self._skip_unless_able_to_fork(concurrency, name)
        folder = self._folder() if "unix" in transport else self._temporary()
        address = f"{transport}:{folder}/server.sock" if "unix" in transport else f"{transport}://127.0.0.1:0"
        observer = self._stack.enter_context(contextlib.closing(Recorder(folder)))
        with warnings.catch_warnings():
            # From 3.12 on fork() warns of threads that are not Python's, too: of pytest-xdist's, say.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            options, plugins = config.pop("options", None), config.pop("plugins", ())
            settings = {"concurrency": model, **config}
            embedded = start(
                handler, [address], settings, options=options, plugins=plugins, observer=observer
            )
        live = LiveServer(embedded, observer, transport, name, folder)
        self._stack.callback(live.stop)
        return live

    def _temporary(self, within: str | None = None) -> Path:
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="srvkit-", dir=within)))

    def _folder(self) -> Path:
        """Make a folder whose files any client can name: TMPDIR may be too long for that (Nix, Bazel)."""
        usual = tempfile.gettempdir()
        for within in (usual, *SHORT_FOLDERS):
            room = unixpath.MAX_PATH - len(os.fsencode(within))
            if room >= len("/srvkit-12345678/client-12345.sock") and os.access(within, os.W_OK | os.X_OK):
                return self._temporary(within)
        folder = self._temporary(usual)
        if not os.path.isdir("/proc/self/fd"):
            return folder
        fd = os.open(folder, os.O_RDONLY)
        self._stack.callback(os.close, fd)
        return Path(f"/proc/self/fd/{fd}")

    def _skip_unless_able_to_fork(self, concurrency: object, name: str) -> None:
        others = [one.name for one in threading.enumerate() if one is not threading.main_thread()]
        if name == "forking" and concurrency is None and others and self._may_skip:
            pytest.skip(f"forking beside other threads ({', '.join(others)}) is not safe")


def _talk(sock: socket.socket, data: bytes, received: list[bytes], timeout: float) -> None:
    """Send all, end the sending side, and read to the end, both at once: either side may be the slower."""
    rest = memoryview(data)
    sock.setblocking(False)
    if not rest:
        _end_sending(sock)
    while True:
        if not wait_for(sock.fileno(), timeout, READ | (WRITE if rest else 0)):
            raise TimeoutError(f"no end of the reply, and nothing new for {timeout:g} s")
        if rest:
            with contextlib.suppress(BlockingIOError):
                try:
                    rest = rest[sock.send(rest) :]
                except ConnectionError:  # the server has closed without reading all; its reply may be here
                    rest = rest[:0]
            if not rest:
                _end_sending(sock)
        with contextlib.suppress(BlockingIOError):
            try:
                received.append(sock.recv(CHUNK))
            except ConnectionError:  # an end as well
                return
            if not received[-1]:
                return


def _end_sending(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed already, here or there
        sock.shutdown(socket.SHUT_WR)


def _drain(sock: socket.socket, received: list[bytes]) -> None:
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            received.append(sock.recv(CHUNK))
