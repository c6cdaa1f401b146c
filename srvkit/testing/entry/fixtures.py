"""The fixtures of srvkit's pytest plugin; what they do is in `srvkit.testing.plugin`.

pytest loads this in every project of an environment that has srvkit, so srvkit itself is imported only
inside the functions: when a test uses them. PYTEST_DONT_REWRITE, since it may be loaded by name, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from srvkit.testing.plugin import LiveServer


@pytest.fixture
def srvkit_model() -> str:
    """The concurrency model of the test: "threading", or each in turn by the decorator `srvkit_models`."""
    return "threading"


@pytest.fixture
def srvkit_server(request: pytest.FixtureRequest, srvkit_model: str) -> Iterator[Callable[..., LiveServer]]:
    """Start servers: `srvkit_server(Handler, concurrency="threading", transport="tcp", **config)`.

    The server listens on a free port of 127.0.0.1 (or a socket in a folder of its own) and is ready; it
    stops with the test. `transport` is "tcp", "udp", "unix" or "unixgram"; `config` are the keys of a
    server table in srvkit.toml, and `options` of the handler: `limits={"idle_timeout": 1}`.

    The server has `address`, `connect()`, `exchange(b"...")`, `errors` and `expect(ValueError)`. What the
    handler raises and nobody expects fails the test.
    """
    from srvkit.testing.plugin import Servers

    callspec = getattr(request.node, "callspec", None)
    one_of_all = callspec is not None and "srvkit_model" in callspec.params
    with Servers(srvkit_model, may_skip=one_of_all) as servers:
        yield servers.start
