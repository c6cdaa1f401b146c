"""examples/greeter: the same handler with a connection and without one."""

from __future__ import annotations

from typing import Any

MODELS = ("serial", "threading", "pool", "forking", "event", "asyncio", "gevent")


def test_names_are_greeted(model: str, run_example: Any) -> None:
    greeter = run_example(model)
    port, udp = greeter.ports("greeter", "greeter-udp")
    assert greeter.client(port, said="Ada\n\nGrace\n").splitlines() == [
        "Welcome!",
        "Hello, Ada!",
        "Hello, stranger!",
        "Hello, Grace!",
    ]
    assert greeter.client(port, said="Ada\nexit\nGrace\n").splitlines() == [
        "Welcome!",
        "Hello, Ada!",
        "(the server has hung up)",
    ]
    said = greeter.client(udp, said="Ada\n\nGrace\n", program="client_udp.py")
    assert said.splitlines() == ["Hello, Ada!", "Hello, stranger!", "Hello, Grace!"]
