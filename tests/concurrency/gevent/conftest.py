"""What tests of gevent share: a server from settings, and that nothing is patched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import pytest

import srvkit
from srvkit.process.embed import EmbeddedServer


class Embedded(Protocol):
    def __call__(
        self, handler: type, address: str = "tcp://127.0.0.1:0", **settings: Any
    ) -> EmbeddedServer: ...


@pytest.fixture
def nothing_is_patched() -> Iterator[None]:
    """See that modules are as they were; nobody has a name and nobody has left before the test."""
    from gevent import monkey  # here: what is tested without gevent has this file too

    from tests.concurrency.gevent.greenlet_servers import Talk

    Talk.NAMED.clear()
    Talk.REASONS.clear()
    yield
    assert not monkey.saved, "something was patched"


@pytest.fixture
def embedded() -> Iterator[Embedded]:
    """`embedded(handler, **settings)`: a server from settings, as `srvkit run` composes it."""
    running: list[EmbeddedServer] = []

    def serve(handler: type, address: str = "tcp://127.0.0.1:0", **settings: Any) -> EmbeddedServer:
        running.append(srvkit.serve(handler, address, concurrency="gevent", **settings))
        return running[-1]

    yield serve
    for server in running:
        server.stop()
