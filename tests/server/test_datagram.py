"""Datagrams: whole or not at all, answered where there is somebody, and from the right address."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import srvkit
from srvkit.concurrency.events import EventMixIn

ANY = ("127.0.0.1", 0)
PATIENCE = 30


class Length(srvkit.BaseRequestHandler):
    """Answer with how long the datagram was."""

    def handle(self) -> None:
        data, sock = self.request
        sock.sendto(b"%d" % len(data), self.client_address)


class Upper(srvkit.DatagramRequestHandler):
    """Answer in capitals; what is empty or says nothing gets no answer."""

    def handle(self) -> None:
        if self.packet != b"say nothing":
            self.wfile.write(self.packet.upper())


class Shout(srvkit.MessageHandler):
    framing = srvkit.Lines()

    def handle_message(self, message: bytes) -> bytes | None:
        return None if message == b"say nothing" else message.upper()


def udp(address: Any) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(PATIENCE)
    sock.connect(address)
    return sock


# How long


def test_a_bare_server_cuts_what_is_longer_than_max_packet_size(serving: Any) -> None:
    """8192 bytes unless it says otherwise, as in the standard library."""
    server = serving(srvkit.UDPServer(ANY, Length))
    with udp(server.server_address) as sock:
        sock.send(bytes(9000))
        assert sock.recv(100) == b"8192"


def test_under_srvkit_the_longest_datagram_arrives_whole() -> None:
    with srvkit.serve(Length, "udp://127.0.0.1:0") as server, udp(server.address) as sock:
        sock.send(bytes(65507))  # what IPv4 leaves of 65535
        assert sock.recv(100) == b"65507"


def test_what_had_to_be_cut_is_dropped_and_said(serving: Any, caplog: Any) -> None:
    """Half a datagram is worse than none."""

    class Dropping(srvkit.UDPServer):
        max_packet_size = 10
        drop_truncated = True
        dropped = 0

        def datagram_dropped(self) -> None:
            self.dropped += 1

    caplog.set_level("INFO", "srvkit.server")
    server = serving(Dropping(ANY, Length))
    with udp(server.server_address) as sock:
        for length in (11, 10):
            sock.send(bytes(length))
        assert sock.recv(100) == b"10"
        assert server.dropped == 1
        host, port = sock.getsockname()
    assert [record.getMessage() for record in caplog.records] == [
        f"Dropping: dropped a datagram of {host}:{port}, longer than 10 bytes"
    ]


# Whether to answer


def test_a_bare_server_answers_even_where_nothing_was_written(serving: Any) -> None:
    server = serving(srvkit.UDPServer(ANY, Upper))
    with udp(server.server_address) as sock:
        sock.send(b"say nothing")
        assert sock.recv(100) == b""


@pytest.mark.parametrize("handler", [Upper, Shout])
@pytest.mark.parametrize("model", ["serial", "threading", "pool"])
def test_under_srvkit_no_answer_is_sent_where_none_was_written(handler: Any, model: str) -> None:
    """The next answer is the next thing that arrives."""
    with (
        srvkit.serve(handler, "udp://127.0.0.1:0", concurrency=model) as server,
        udp(server.address) as sock,
    ):
        for _ in range(20):
            sock.send(b"say nothing")
            sock.send(b"hello")
            assert sock.recv(100).strip() == b"HELLO"


@pytest.mark.parametrize("handler", [Upper, Shout])
def test_a_client_without_an_address_is_not_answered(handler: Any, tmp_path: Path, caplog: Any) -> None:
    """A Unix socket that is not bound has none; that is no error."""
    path = str(tmp_path / "datagrams")
    handled = threading.Semaphore(0)

    class Counting(handler):  # type: ignore[misc]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            handled.release()

    with srvkit.serve(Counting, f"unixgram:{path}") as server:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless:
            nameless.connect(path)
            nameless.send(b"hello")
            assert handled.acquire(timeout=PATIENCE)
        assert server.server is not None
    assert caplog.records == []


def test_a_bare_server_fails_to_answer_a_client_without_an_address(
    serving: Any, tmp_path: Path, capfd: Any, eventually: Any
) -> None:
    path = str(tmp_path / "datagrams")
    errors = []

    class Noting(srvkit.UnixDatagramServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            import sys

            errors.append(sys.exception())

    serving(Noting(path, Upper))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless:
        nameless.connect(path)
        nameless.send(b"hello")
        eventually(lambda: errors)
    assert [type(error) for error in errors] == [TypeError]


@pytest.mark.parametrize("handler", [Upper, Shout])
def test_a_client_that_has_gone_is_one_line_and_no_traceback(
    handler: Any, tmp_path: Path, caplog: Any
) -> None:
    handling, gone, handled = threading.Event(), threading.Event(), threading.Event()

    class Slow(handler):  # type: ignore[misc]
        def __init__(self, *args: Any) -> None:
            handling.set()
            gone.wait(PATIENCE)
            try:
                super().__init__(*args)
            finally:
                handled.set()

    caplog.set_level("INFO", "srvkit.server")
    path, own = str(tmp_path / "datagrams"), str(tmp_path / "client")
    with srvkit.serve(Slow, f"unixgram:{path}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(own)
            sock.connect(path)
            sock.send(b"hello")
            assert handling.wait(PATIENCE)
        gone.set()
        assert handled.wait(PATIENCE)
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert own in record.getMessage()
    assert record.exc_info is None


def test_answers_of_a_bare_server_wait_for_room(serving: Any, tmp_path: Path, capfd: Any) -> None:
    """The socket a handler answers with blocks, as in the standard library: nothing is lost."""
    path = str(tmp_path / "datagrams")
    serving(srvkit.ThreadingUnixDatagramServer(path, Upper))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.bind(str(tmp_path / "client"))  # not connected: between a pair of those there is no bound
        for number in range(200):  # many times what the kernel keeps for one that does not read
            sock.sendto(b"a%d" % number, path)
        answers = {sock.recv(100) for _ in range(200)}
    assert len(answers) == 200
    assert capfd.readouterr().err == ""


# From where


@pytest.mark.parametrize("handler", [Length, Upper, Shout])
@pytest.mark.parametrize("listen", ["udp://0.0.0.0:0", "udp://[::]:0"])
def test_the_answer_comes_from_the_address_that_was_asked(handler: Any, listen: str) -> None:
    """Also where the kernel's own choice would be another: a connected client takes no other."""
    with srvkit.serve(handler, listen) as server:
        port = server.address[1]
        for host in ("127.0.0.1", "127.0.0.2", *(["::1"] if "[::]" in listen else [])):
            with udp((host, port)) as sock:
                sock.send(b"hello")
                assert sock.recv(100).strip() in (b"5", b"HELLO")


def test_an_ipv4_client_of_a_dual_stack_server_has_its_ipv4_address() -> None:
    class Who(srvkit.DatagramRequestHandler):
        def handle(self) -> None:
            self.wfile.write(repr(self.client_address).encode())

    with srvkit.serve(Who, "udp://[::]:0") as server, udp(("127.0.0.1", server.address[1])) as sock:
        sock.send(b"hello")
        assert sock.recv(100).decode() == repr(sock.getsockname())


def test_a_bare_server_serves_ipv6_by_its_address_alone(serving: Any) -> None:
    server = serving(srvkit.UDPServer(("::1", 0), Upper))
    with udp(server.server_address[:2]) as sock:
        sock.send(b"hello")
        assert sock.recv(100) == b"HELLO"


# Several, and limits


def test_several_addresses_are_one_server(tmp_path: Path) -> None:
    path = str(tmp_path / "datagrams")
    with srvkit.serve(Upper, "udp://127.0.0.1:0", "udp://[::1]:0", f"unixgram:{path}") as server:
        for address in server.addresses[:2]:
            with udp(address) as sock:
                sock.send(b"hello")
                assert sock.recv(100) == b"HELLO"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE)
            sock.bind("")
            sock.connect(path)
            sock.send(b"hello")
            assert sock.recv(100) == b"HELLO"


def test_max_connections_bounds_the_datagrams_being_handled() -> None:
    busy: list[bytes] = []
    most = []
    release = threading.Semaphore(0)

    class Hold(srvkit.DatagramRequestHandler):
        def handle(self) -> None:
            busy.append(self.packet)
            most.append(len(busy))
            release.acquire(timeout=PATIENCE)
            busy.remove(self.packet)
            self.wfile.write(self.packet)

    with (
        srvkit.serve(Hold, "udp://127.0.0.1:0", limits={"max_connections": 2}) as server,
        udp(server.address) as sock,
    ):
        for number in range(10):
            sock.send(b"%d" % number)
        answers = set()
        for _ in range(10):
            release.release()
            answers.add(sock.recv(10))
    assert answers == {b"%d" % number for number in range(10)}
    assert max(most) <= 2


# Steps


class Picky(srvkit.BaseRequestHandler):
    """Answer, raise, or leave the process, as the datagram says."""

    def handle(self) -> None:
        data, sock = self.request
        if data == b"raise":
            raise ValueError("as told")
        if data == b"leave":
            sys.exit(1)
        sock.sendto(data, self.client_address)


SAID = (b"one", b"raise", b"two", b"leave", b"three")
STEPS = (
    "verify_request",
    "process_request",
    "finish_request",
    "shutdown_request",
    "close_request",
    "request_done",
)


@pytest.mark.parametrize("overridden", [None, *STEPS])
@pytest.mark.parametrize("model", [None, EventMixIn])
def test_an_overridden_step_is_called_once_for_each_datagram(
    serving: Any, model: Any, overridden: str | None
) -> None:
    """And replies and reported errors are the same as where none is overridden."""
    steps: list[str] = []
    failed: list[str] = []

    class Server(srvkit.UDPServer):
        contain_exit = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            failed.append(f"{request[0].decode()} {type(sys.exception()).__name__}")

    bases = (Server,) if model is None else (model, Server)
    body: dict[str, Any] = {}
    if overridden is not None:

        def step(self: Any, *args: Any) -> Any:
            steps.append(overridden)
            return getattr(super(made, self), overridden)(*args)

        body[overridden] = step
    made: Any = type("Made", bases, body)
    server = serving(made(ANY, Picky))
    with udp(server.server_address) as sock:
        for said in SAID:
            sock.send(said)
        assert [sock.recv(10) for _ in range(3)] == [b"one", b"two", b"three"]
        server.shutdown()
    assert failed == ["raise ValueError", "leave EscapedError"]
    assert steps == [overridden] * len(SAID) * (overridden is not None)


def test_a_step_put_on_the_server_itself_is_called(serving: Any) -> None:
    server: Any = srvkit.UDPServer(ANY, Picky)
    server.verify_request = lambda request, client_address: request[0] != b"refused"
    serving(server)
    with udp(server.server_address) as sock:
        sock.send(b"refused")
        sock.send(b"hello")
        assert sock.recv(10) == b"hello"


@pytest.mark.parametrize("model", ["serial", "event"])
def test_a_datagram_being_handled_counts_among_what_is_cut_off(model: str) -> None:
    held, release = threading.Event(), threading.Event()

    class Hold(srvkit.MessageHandler):
        def handle_message(self, message: bytes) -> bytes:
            held.set()
            release.wait(PATIENCE)
            return message

    with srvkit.serve(Hold, "udp://127.0.0.1:0", concurrency=model) as server, udp(server.address) as sock:
        sock.send(b"hello")
        assert held.wait(PATIENCE)
        cut = server.server.abort_all()
        release.set()
        assert cut == 1
        assert sock.recv(10) == b"hello"


@pytest.mark.parametrize("model", ["serial", "event", "threading"])
def test_what_has_arrived_is_answered_when_the_server_drains(model: str) -> None:
    """All of it, be it several bursts."""
    held, release = threading.Event(), threading.Event()

    class Hold(srvkit.MessageHandler):
        def handle_message(self, message: bytes) -> bytes:
            held.set()
            release.wait(PATIENCE)
            return message

    with srvkit.serve(Hold, "udp://127.0.0.1:0", concurrency=model) as server, udp(server.address) as sock:
        sock.send(b"0")
        assert held.wait(PATIENCE)
        for number in range(1, 200):
            sock.send(b"%d" % number)
        server.server.drain()
        release.set()
        assert {sock.recv(10) for _ in range(200)} == {b"%d" % number for number in range(200)}


# Replies that nobody gets


class Answers(srvkit.BaseRequestHandler):
    """Answers by itself, as programs for the standard library do."""

    def handle(self) -> None:
        data, sock = self.request
        assert sock.sendto(data, self.client_address) == len(data)


BLOCKING_MODELS = ("serial", "threading", "pool")


@pytest.mark.parametrize("model", BLOCKING_MODELS)
def test_a_handlers_own_reply_never_waits_and_is_lost_where_nobody_reads(
    model: str, tmp_path: Path, caplog: Any
) -> None:
    """Unread, gone or without an address: one line each, and the next client is answered."""
    caplog.set_level("INFO", "srvkit.server")
    path, deaf = str(tmp_path / "datagrams"), str(tmp_path / "deaf")
    with (
        srvkit.serve(Answers, f"unixgram:{path}", concurrency=model),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless,
    ):
        other.bind(deaf)
        for _ in range(100):  # many times what the kernel keeps for one that does not read
            other.sendto(b"hello", path)
        nameless.sendto(b"hello", path)
        reader.settimeout(PATIENCE)
        reader.bind(str(tmp_path / "reader"))
        reader.sendto(b"still there", path)
        assert reader.recv(100) == b"still there"
    assert {record.levelname for record in caplog.records} == {"INFO"}
    assert all(f"reply to {deaf} lost" in record.getMessage() for record in caplog.records)
    assert len(caplog.records) >= 50


@pytest.mark.parametrize("model", BLOCKING_MODELS)
@pytest.mark.parametrize("listen", ["udp://127.0.0.1:0", "udp://0.0.0.0:0"])
def test_a_reply_that_the_kernel_refuses_is_the_clients_fault(
    model: str, listen: str, caplog: Any, eventually: Any
) -> None:
    """A forged sender may have port 0, to which nothing can be sent (EINVAL)."""
    caplog.set_level("INFO", "srvkit.server")

    class Forged(Answers):
        def setup(self) -> None:
            if self.request[0] == b"forged":
                self.client_address = "127.0.0.1", 0

    with srvkit.serve(Forged, listen, concurrency=model) as server, udp(server.address) as sock:
        sock.send(b"forged")
        sock.send(b"hello")
        assert sock.recv(100) == b"hello"
        eventually(lambda: caplog.records)
    (record,) = caplog.records
    assert (record.levelname, record.exc_info) == ("INFO", None)
    assert "127.0.0.1:0" in record.getMessage()
