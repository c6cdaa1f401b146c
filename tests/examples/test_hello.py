"""examples/hello: the client reads to the end."""

from __future__ import annotations

from typing import Any

MODELS = ("serial", "threading", "pool", "forking", "event", "asyncio", "gevent")


def test_the_client_puts_the_pieces_together(model: str, run_example: Any) -> None:
    hello = run_example(model)
    said = hello.client(*hello.ports("hello")).splitlines()
    assert said[0] == "received b'hell'"
    assert said[-1] == "the end: hello world"
