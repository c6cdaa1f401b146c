"""examples/ipv6: one socket for both versions, and each client by its own address."""

from __future__ import annotations

import socket
from typing import Any

import pytest

MODELS = ("serial", "threading", "pool", "forking", "event", "asyncio", "gevent")


@pytest.fixture(autouse=True)
def _needs_ipv6() -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6")


def test_clients_are_seen_under_their_own_address(model: str, run_example: Any) -> None:
    who = run_example(model)
    by_ipv4, by_ipv6, by_name = who.client(*who.ports("who")).splitlines()
    assert by_ipv4.startswith("127.0.0.1: you are 127.0.0.1, port ") and by_ipv4.endswith(", IPv4")
    assert by_ipv6.startswith("::1: you are ::1, port ") and by_ipv6.endswith(", IPv6")
    assert by_name.startswith(("localhost: you are 127.0.0.1", "localhost: you are ::1"))
