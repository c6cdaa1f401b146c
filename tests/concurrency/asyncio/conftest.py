"""What tests of asyncio share: a server in each loop, and what is noted of its connections."""

from __future__ import annotations

import importlib.util
from typing import Any, Protocol

import pytest

import srvkit
from srvkit.process.embed import EmbeddedServer
from tests.concurrency.asyncio.loop_servers import Server

HAS_UVLOOP = importlib.util.find_spec("uvloop") is not None
LOOPS = [
    "asyncio",
    pytest.param("uvloop", marks=pytest.mark.skipif(not HAS_UVLOOP, reason="uvloop is not installed")),
]


class Serve(Protocol):
    def __call__(
        self, handler: type, address: str = "tcp://127.0.0.1:0", **settings: Any
    ) -> EmbeddedServer: ...


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    """The name of each loop in turn."""
    return str(request.param)


@pytest.fixture
def server_class(loop: str) -> type[Server]:
    """A bare server class with this loop."""
    return type("Server", (Server,), {"loop": loop})


@pytest.fixture
def serve(loop: str) -> Serve:
    """`serve(handler, **settings)`: a server from settings, with this loop."""

    def begin(handler: type, address: str = "tcp://127.0.0.1:0", **settings: Any) -> EmbeddedServer:
        return srvkit.serve(handler, address, concurrency={"name": "asyncio", "loop": loop}, **settings)

    return begin


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What each connection's end was, how many bytes came in and went out."""
    seen: list[tuple[str, int, int]] = []
    shutdown_request = srvkit.TCPServer.shutdown_request

    def noting(self: Any, request: Any) -> None:
        seen.append((request.outcome, request.bytes_in, request.bytes_out))
        shutdown_request(self, request)

    monkeypatch.setattr(srvkit.TCPServer, "shutdown_request", noting)
    return seen
