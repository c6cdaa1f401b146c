"""Handlers that do their own I/O: which of their steps run, and what becomes of their files."""

from __future__ import annotations

import socket
from typing import Any

import pytest

import srvkit

ANY = ("127.0.0.1", 0)


class Steps(srvkit.StreamRequestHandler):
    """Note the steps; fail where the class says."""

    steps: list[str]
    fails = ""

    def note(self, step: str) -> None:
        self.steps.append(step)
        if step == self.fails:
            raise ValueError(f"{step} fails")

    def setup(self) -> None:
        self.note("setup")
        super().setup()

    def handle(self) -> None:
        self.note("handle")

    def finish(self) -> None:
        self.steps.append("finish")
        super().finish()


def steps_of(fails: str, server_of: Any, client: Any) -> list[str]:
    steps: list[str] = []
    handler = type("Steps", (Steps,), {"steps": steps, "fails": fails})
    with server_of(handler) as address, client(address) as sock:
        assert sock.recv(1) == b""
    return steps


@pytest.mark.parametrize(
    ("fails", "steps"),
    [
        ("", ["setup", "handle", "finish"]),
        ("handle", ["setup", "handle", "finish"]),
        ("setup", ["setup", "finish"]),
    ],
)
def test_under_srvkit_finish_always_runs(fails: str, steps: list[str], client: Any, caplog: Any) -> None:
    """Also where setup() failed, and there is nothing yet to finish; the error is setup's own."""
    import contextlib

    @contextlib.contextmanager
    def serve(handler: Any) -> Any:
        with srvkit.serve(handler, "tcp://127.0.0.1:0", concurrency="serial") as server:
            yield server.address

    assert steps_of(fails, serve, client) == steps
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == (
        [f"{fails} fails"] if fails else []
    )


@pytest.mark.parametrize(
    ("fails", "steps"),
    [("", ["setup", "handle", "finish"]), ("handle", ["setup", "handle", "finish"]), ("setup", ["setup"])],
)
def test_on_a_bare_server_finish_is_skipped_where_setup_fails(
    fails: str, steps: list[str], serving: Any, client: Any, capfd: Any
) -> None:
    """As in the standard library."""
    import contextlib

    @contextlib.contextmanager
    def serve(handler: Any) -> Any:
        yield serving(srvkit.TCPServer(ANY, handler)).server_address

    assert steps_of(fails, serve, client) == steps


@pytest.mark.parametrize("model", ["serial", "threading", "pool"])
def test_under_srvkit_a_datagrams_finish_survives_a_failed_setup(
    model: str, client: Any, caplog: Any, eventually: Any
) -> None:
    class Fails(srvkit.DatagramRequestHandler):
        def setup(self) -> None:
            if self.request[0] == b"fail":
                raise ValueError("a mistake")
            super().setup()

        def handle(self) -> None:
            self.wfile.write(b"hello")

    with (
        srvkit.serve(Fails, "udp://127.0.0.1:0", concurrency=model) as server,
        client(f"udp://127.0.0.1:{server.address[1]}") as sock,
    ):
        sock.send(b"fail")
        sock.send(b"well")
        assert sock.recv(100) == b"hello"
        eventually(lambda: caplog.records)
    assert [str(record.exc_info[1]) for record in caplog.records] == ["a mistake"]


def test_a_buffered_writer_is_flushed_at_the_end(client: Any) -> None:
    class Buffered(srvkit.StreamRequestHandler):
        wbufsize = -1

        def handle(self) -> None:
            self.wfile.write(b"one ")
            self.wfile.write(b"two")

    with (
        srvkit.serve(Buffered, "tcp://127.0.0.1:0") as server,
        client(server.address) as sock,
        sock.makefile("rb") as answers,
    ):
        assert answers.read() == b"one two"


def test_an_unbuffered_write_is_whole(client: Any) -> None:
    """However long, and whatever its type."""
    sizes = []

    class Long(srvkit.StreamRequestHandler):
        def handle(self) -> None:
            for data in (bytes(3_000_000), bytearray(10), memoryview(bytes(8)).cast("H")):
                sizes.append(self.wfile.write(data))

    with (
        srvkit.serve(Long, "tcp://127.0.0.1:0") as server,
        client(server.address) as sock,
        sock.makefile("rb") as answers,
    ):
        assert len(answers.read()) == 3_000_018
    assert sizes == [3_000_000, 10, 8]


def test_nagle_is_disabled_where_a_handler_wants_it(serving: Any, client: Any) -> None:
    class Quick(srvkit.StreamRequestHandler):
        disable_nagle_algorithm = True

        def handle(self) -> None:
            self.wfile.write(b"%d" % self.request.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    server = serving(srvkit.TCPServer(ANY, Quick))
    with client(server.server_address) as sock:
        assert sock.recv(10) == b"1"
