"""examples/several-servers: one protocol over streams and datagrams, in one file."""

from __future__ import annotations

import re
from typing import Any

MODELS = ("serial", "threading", "pool", "forking", "event", "asyncio", "gevent")


def test_every_socket_throws_dice(model: str, run_example: Any) -> None:
    dice = run_example(model)
    said = dice.client(*dice.ports("streams", "datagrams", "machines")).splitlines()
    throw = r"(\d) \+ (\d) = (\d+)"
    for way, line in zip(("tcp", "unix", "udp", "udp, the other", "unixgram"), said, strict=False):
        found = re.fullmatch(rf"{way} +{throw}", line)
        assert found and int(found[1]) + int(found[2]) == int(found[3])
    assert re.fullmatch(r"length prefix +(\d+)(?: \+ (\d+))? = \d+", said[5])
    assert len(said) == 6


def test_status_shows_each_server(run_example: Any) -> None:
    dice = run_example()
    dice.client(*dice.ports("streams", "datagrams", "machines"))
    shown = dice.srvkit("status")
    assert all(re.search(rf"\b{name}\b", shown) for name in ("streams", "datagrams", "machines"))
