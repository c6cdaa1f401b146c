"""Limits: how many at once, how long, how much; each ends one connection with one line of the log."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

import srvkit

PATIENCE = 30
MODELS = ["serial", "threading", "pool"]
REASONS: list[str] = []


class Lines(srvkit.MessageHandler):
    """Echo lines; remember why connections ended."""

    framing = srvkit.Lines()

    def handle_message(self, message: bytes) -> bytes:
        return b"x" * 50_000_000 if message == b"flood" else message

    def disconnected(self, reason: str) -> None:
        REASONS.append(reason)


class Blocking(srvkit.StreamRequestHandler):
    """Echo lines; remember what ended it."""

    def handle(self) -> None:
        try:
            for line in self.rfile:
                self.wfile.write(b"x" * 50_000_000 if line == b"flood\n" else line)
        except OSError as error:
            REASONS.append(type(error).__name__)
            raise
        REASONS.append("eof")


@pytest.fixture(autouse=True)
def reasons() -> list[str]:
    REASONS.clear()
    return REASONS


def ask(sock: socket.socket, line: bytes = b"hello\n") -> bytes:
    sock.sendall(line)
    with sock.makefile("rb") as answers:
        return answers.readline()


def serve(handler: Any, model: str = "threading", **limits: Any) -> Any:
    return srvkit.serve(handler, "tcp://127.0.0.1:0", concurrency=model, limits=limits)


# How many


@pytest.mark.parametrize("model", ["threading", "pool"])
@pytest.mark.parametrize("handler", [Lines, Blocking])
def test_beyond_max_connections_clients_wait_their_turn(model: str, handler: Any, client: Any) -> None:
    with (
        serve(handler, model, max_connections=2) as server,
        client(server.address) as one,
        client(server.address) as two,
    ):
        ask(one)
        ask(two)
        with client(server.address) as three:
            three.sendall(b"me too\n")
            ask(one)
            assert "paused by max_connections, 2 of 2 seats taken" in repr(server.server)
            one.close()
            assert three.recv(100) == b"me too\n"


@pytest.mark.parametrize("model", ["threading", "pool"])
@pytest.mark.parametrize("handler", [Lines, Blocking])
def test_or_they_are_closed(model: str, handler: Any, client: Any, caplog: Any, eventually: Any) -> None:
    with serve(handler, model, max_connections=1, when_full="close") as server:
        with client(server.address) as one:
            ask(one)
            for _ in range(3):
                with client(server.address) as two:
                    host, port = two.getsockname()
                    assert two.recv(1) == b""
                assert caplog.messages[-1] == f"embedded: connection limit reached: closed {host}:{port}"
            assert ask(one) == b"hello\n"
        eventually(lambda: "0 of 1 seats taken" in repr(server.server))
        with client(server.address) as three:
            assert ask(three) == b"hello\n"


@pytest.mark.parametrize("when_full", ["wait", "close"])
def test_children_count_too(when_full: str, run_srvkit: Any, client: Any) -> None:
    program = run_srvkit(
        '[server.test]\nlisten = "tcp://127.0.0.1:0"\nhandler = "echo"\nconcurrency = "forking"\n'
        f'limits = {{ max_connections = 1, when_full = "{when_full}" }}\n'
    )
    (address,) = program.addresses("test")
    with client(address) as one:
        ask(one)
        with client(address) as two:
            two.sendall(b"me too\n") if when_full == "wait" else None
            if when_full == "close":
                assert two.recv(1) == b""
            ask(one)
            one.close()
            if when_full == "wait":
                assert two.recv(100) == b"me too\n"


def test_a_seat_is_given_back_whatever_happened(client: Any, eventually: Any) -> None:
    class Fails(srvkit.BaseRequestHandler):
        def setup(self) -> None:
            raise ValueError("a mistake")

    with serve(Fails, max_connections=1) as server:
        for _ in range(5):
            with client(server.address) as sock:
                assert sock.recv(1) == b""
        eventually(lambda: "0 of 1 seats taken" in repr(server.server))


# How long

TIMEOUTS = [
    ("first_byte_timeout", b"", "first-byte-timeout"),
    ("idle_timeout", b"hello\n", "idle-timeout"),
    ("idle_timeout", b"hello\nhalf a li", "idle-timeout"),
    ("request_timeout", b"hello\nhalf a li", "request-timeout"),
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("limit", "said", "reason"), TIMEOUTS)
def test_a_silent_client_of_a_message_handler_is_let_go(
    limit: str, said: bytes, reason: str, model: str, client: Any, caplog: Any, reasons: list[str]
) -> None:
    caplog.set_level("INFO", "srvkit.server")
    with serve(Lines, model, **{limit: "200ms"}) as server, client(server.address) as sock:
        sock.sendall(said)
        with sock.makefile("rb") as answers:
            assert answers.read() == (b"hello\n" if said else b"")
        host, port = sock.getsockname()
    assert reasons == [reason]
    assert caplog.messages == [f"embedded: {host}:{port} ended: {reason}"]


@pytest.mark.parametrize("model", [*MODELS, "event", "asyncio"])
@pytest.mark.parametrize("said", [b"hello\n", b"hello\nhalf a li"])
def test_the_idle_limit_needs_none_for_the_first_byte(
    said: bytes, model: str, client: Any, reasons: list[str]
) -> None:
    """A connection that was looked at while it was silent is looked at again in time."""
    limits = {"first_byte_timeout": "0s", "idle_timeout": "200ms"}
    with serve(Lines, model, **limits) as server, client(server.address) as sock:
        sock.settimeout(1)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(PATIENCE)
        sock.sendall(said)
        with sock.makefile("rb") as answers:
            assert answers.read() == b"hello\n"
    assert reasons == ["idle-timeout"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("limit", "said", "reason"), TIMEOUTS)
def test_a_silent_client_of_a_blocking_handler_is_let_go(
    limit: str, said: bytes, reason: str, model: str, client: Any, caplog: Any, reasons: list[str]
) -> None:
    """readline() raises TimeoutError, and does not pretend that half a line was the end."""
    caplog.set_level("INFO", "srvkit.server")
    with serve(Blocking, model, **{limit: "200ms"}) as server, client(server.address) as sock:
        sock.sendall(said)
        with sock.makefile("rb") as answers:
            assert answers.read() == (b"hello\n" if said else b"")
        host, port = sock.getsockname()
    assert reasons == ["TimeoutError"]
    (message,) = caplog.messages
    assert message.startswith(f"embedded: {host}:{port} ended: {reason}")


@pytest.mark.parametrize("limit", ["first_byte_timeout", "idle_timeout"])
def test_children_keep_the_timeouts_too(limit: str, run_srvkit: Any, client: Any) -> None:
    program = run_srvkit(
        '[server.test]\nlisten = "tcp://127.0.0.1:0"\nhandler = "echo"\nconcurrency = "forking"\n'
        f'limits = {{ {limit} = "200ms" }}\n'
    )
    with client(program.addresses("test")[0]) as sock:
        if limit == "idle_timeout":
            assert ask(sock) == b"hello\n"
        assert sock.recv(1) == b""
    program.wait_for("ended: " + limit.replace("_", "-"))


@pytest.mark.parametrize("handler", [Lines, Blocking])
def test_a_client_that_trickles_does_not_escape_request_timeout(
    handler: Any, client: Any, reasons: list[str]
) -> None:
    """Every byte is new, the request is not."""
    stop = threading.Event()

    def trickle(sock: socket.socket) -> None:
        with sock:
            try:
                while not stop.wait(0.02):
                    sock.send(b"x")
            except OSError:
                pass

    with (
        serve(handler, request_timeout="300ms", idle_timeout="1h") as server,
        client(server.address) as sock,
    ):
        thread = threading.Thread(target=trickle, args=(sock.dup(),))
        thread.start()
        try:
            assert sock.recv(1) == b""
        except ConnectionResetError:
            pass  # the bytes that were not read any more
        finally:
            stop.set()
            thread.join()
    assert reasons == ["request-timeout" if handler is Lines else "TimeoutError"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("handler", [Lines, Blocking])
def test_a_client_that_does_not_read_is_let_go(
    handler: Any, model: str, client: Any, caplog: Any, reasons: list[str], eventually: Any
) -> None:
    caplog.set_level("INFO", "srvkit.server")
    with serve(handler, model, write_timeout="200ms") as server, client(server.address) as sock:
        sock.sendall(b"flood\n")
        eventually(lambda: caplog.messages)
        host, port = sock.getsockname()
    assert reasons == ["write-timeout" if handler is Lines else "TimeoutError"]
    (message,) = caplog.messages
    assert message.startswith(f"embedded: {host}:{port} ended: write-timeout")


def test_a_handlers_own_timeout_holds_instead(client: Any, reasons: list[str]) -> None:
    class Own(Blocking):
        timeout = 0.1

    with serve(Own, first_byte_timeout="1h", idle_timeout="1h") as server, client(server.address) as sock:
        assert sock.recv(1) == b""
    assert reasons == ["TimeoutError"]


def test_a_timeout_of_zero_is_none(client: Any) -> None:
    with (
        serve(Lines, first_byte_timeout=0, idle_timeout=0, write_timeout=0) as server,
        client(server.address) as sock,
    ):
        assert ask(sock) == b"hello\n"


# How much


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("said", [b"12345678901", b"12345678901\n", b"12345678901" * 1000])
def test_a_message_that_is_too_long_ends_its_connection(
    said: bytes, model: str, client: Any, caplog: Any, reasons: list[str], eventually: Any
) -> None:
    """What came before it is answered."""
    caplog.set_level("INFO", "srvkit.server")
    with serve(Lines, model, max_message=10) as server:
        with client(server.address) as sock:
            assert ask(sock, b"1234567890\n") == b"1234567890\n"
            host, port = sock.getsockname()
            sock.sendall(said)
            eventually(lambda: reasons)
        with client(server.address) as sock:
            assert ask(sock) == b"hello\n"
    assert reasons[0] == "bad-message"
    assert caplog.messages == [f"embedded: {host}:{port} ended: bad-message: line longer than 10 bytes"]


def test_in_a_datagram_it_is_not_handled(caplog: Any, client: Any) -> None:
    caplog.set_level("INFO", "srvkit.server")
    with (
        srvkit.serve(Lines, "udp://127.0.0.1:0", limits={"max_message": 10}) as server,
        client(f"udp://127.0.0.1:{server.address[1]}") as sock,
    ):
        sock.send(b"12345\n12345678901\n")
        assert sock.recv(100) == b"12345\n"
        sock.send(b"hello")
        assert sock.recv(100) == b"hello\n"
    (message,) = caplog.messages
    assert message.endswith(": bad-message: line longer than 10 bytes")
