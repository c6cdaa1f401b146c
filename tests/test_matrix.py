"""Every kind of handler on every transport under every model; the model is one word of the configuration."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import srvkit

PLUGIN = Path(__file__).with_name("matrix_handlers.py")
BLOCKING = ("base-stream", "base-datagram", "stream", "datagram")
ASYNC = ("async",)
# The word in the configuration: the name by which its handlers know it, and the handlers it cannot run.
MODELS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "serial": (b"alone", ASYNC),
    "threading": (b"ThreadingMixIn", ASYNC),
    "pool": (b"ThreadPoolMixIn", ASYNC),
    "forking": (b"ForkingMixIn", ASYNC),
    "event": (b"EventMixIn", BLOCKING + ASYNC),
    "asyncio": (b"TaskMixIn", BLOCKING),
    "gevent": (b"GreenletMixIn", ASYNC),
}
TRANSPORTS = {
    "tcp": "tcp://127.0.0.1:0",
    "udp": "udp://127.0.0.1:0",
    "unix": "unix:{}.stream",
    "unixgram": "unixgram:{}.datagrams",
}
CELLS = [
    (transport, handler)
    for transport in TRANSPORTS
    for handler in (
        ("base-stream", "stream", "message", "async")
        if transport in ("tcp", "unix")
        else ("base-datagram", "datagram", "message", "async")
    )
]
TABLE = """
[server.{transport}-{handler}]
listen = "{listen}"
handler = "{handler}"
"""
RUNS = [(model, *cell) for model, (_, cannot) in MODELS.items() for cell in CELLS if cell[1] not in cannot]


def config(model: str) -> str:
    """The file for a model; between models nothing differs but the word, and what they cannot run."""
    return f'[srvkit]\nplugins = ["{PLUGIN}"]\n' + "".join(
        TABLE.format(transport=transport, handler=handler, listen=TRANSPORTS[transport].format(handler))
        + f'concurrency = "{model}"\n'
        for one, transport, handler in RUNS
        if one == model
    )


@pytest.fixture(scope="module")
def running(start: Any, tmp_path_factory: Any) -> Iterator[Callable[[str], Any]]:
    """`running(model)`: `srvkit run` with this model; one program for all tests of the model."""
    programs: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:

        def run(model: str) -> Any:
            if model == "gevent" and importlib.util.find_spec("gevent") is None:
                assert os.environ.get("SRVKIT_REQUIRE_TOOLS") != "1", "gevent is not installed"
                pytest.skip("gevent is not installed")
            if model not in programs:
                folder = tmp_path_factory.mktemp(model)
                (folder / "srvkit.toml").write_text(config(model))
                programs[model] = stack.enter_context(start("-m", "srvkit", "run", folder=folder))
            return programs[model]

        yield run
        for program in programs.values():
            end(program)


def end(program: Any) -> None:
    """Stop it; nothing may have gone wrong, and nothing stay behind."""
    assert program.end() == 0
    assert "Traceback" not in program.log
    assert [path.name for path in program.folder.iterdir()] == ["srvkit.toml"]


def ask(connect: Callable[[], socket.socket], line: bytes) -> bytes:
    with connect() as sock:
        sock.sendall(line)
        if sock.type == socket.SOCK_DGRAM:
            return sock.recv(100)
        with sock.makefile("rb") as answers:
            answer = answers.readline()
            sock.shutdown(socket.SHUT_WR)
            assert answers.read() == b""
            return answer


@pytest.mark.parametrize(("model", "transport", "handler"), RUNS)
def test_srvkit_run_serves_it(model: str, transport: str, handler: str, running: Any, client: Any) -> None:
    """One client after the other is answered, by the model that the configuration names."""
    program = running(model)
    (address,) = program.addresses(f"{transport}-{handler}")
    for word in (b"one", b"two", b"three"):
        reply = ask(lambda: client(address, program.folder), word + b"\n")
        assert reply == word.upper() + b" " + MODELS[model][0] + b"\n"


@pytest.mark.parametrize(
    ("model", "transport", "handler"), [run for run in RUNS if run[0] not in ("forking", "gevent")]
)
def test_a_program_embeds_it(transport: str, handler: str, model: str, client: Any, tmp_path: Path) -> None:
    """`srvkit.serve` gives the same answers, and leaves no file behind."""
    listen = TRANSPORTS[transport].format(tmp_path / handler)
    with srvkit.serve(handler, listen, concurrency=model, plugins=[str(PLUGIN)]) as server:
        host = server.address
        address = f"{transport}:{host}" if isinstance(host, str) else f"{transport}://{host[0]}:{host[1]}"
        for word in (b"one", b"two"):
            reply = ask(lambda: client(address), word + b"\n")
            assert reply == word.upper() + b" " + MODELS[model][0] + b"\n"
    assert list(tmp_path.iterdir()) == []
