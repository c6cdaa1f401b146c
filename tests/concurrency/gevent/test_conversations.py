"""Conversations of greenlets: who writes to whom, who is waited for, and for how long."""

from __future__ import annotations

import logging
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

import srvkit
from tests.concurrency.gevent.conftest import Embedded
from tests.concurrency.gevent.greenlet_servers import (
    ANY,
    BIG,
    PATIENCE,
    Echo,
    GreenServer,
    Talk,
    ask,
    read_line,
)
from tests.conftest import Connect, Eventually, Serving

pytestmark = pytest.mark.usefixtures("nothing_is_patched")


def test_a_peer_that_does_not_read_holds_up_nobody_who_writes_to_it(
    embedded: Embedded, client: Connect
) -> None:
    """The lock under which a connection is written makes greenlets wait, and not their thread."""
    server = embedded(Talk)
    with client(server.address) as slow, client(server.address) as friend, client(server.address) as other:
        assert ask(slow, b"name slow\n") == b"hello slow\n"
        slow.sendall(b"big x\n")
        assert slow.recv(1) == b"x"  # it is being written
        friend.sendall(b"tell slow news\n")
        for _ in range(3):
            assert ask(other, b"echo hello\n") == b"hello\n"
        with slow.makefile("rb") as answers:
            assert answers.readline() == b"x" * (BIG - 1) + b"\n"
            assert read_line(friend) == b"told\n"
            assert answers.readline() == b"news\n"


def test_messages_are_sent_from_other_threads_whole_and_in_order(embedded: Embedded, client: Connect) -> None:
    server = embedded(Talk)
    with client(server.address) as slow, client(server.address) as other:
        assert ask(slow, b"name slow\n") == b"hello slow\n"
        slow.sendall(b"big x\n")
        assert slow.recv(1) == b"x"
        for number in range(100):
            Talk.NAMED[b"slow"].send(b"news %d" % number)
        assert ask(other, b"echo hello\n") == b"hello\n"
        with slow.makefile("rb") as answers:
            assert len(answers.readline()) == BIG
            assert [answers.readline() for _ in range(100)] == [b"news %d\n" % n for n in range(100)]


def test_what_a_thread_has_sent_is_out_before_the_end(embedded: Embedded, client: Connect) -> None:
    """Also where the handler's greenlet, and with it the loop, waits for that thread."""

    class Delegate(srvkit.MessageHandler):
        framing = srvkit.Lines()

        def handle_message(self, message: bytes) -> None:
            for part in (message, b"bye"):
                thread = threading.Thread(target=self.send, args=(part,))
                thread.start()
                thread.join()
            self.close()

    server = embedded(Delegate)
    with client(server.address) as sock, sock.makefile("rb") as answers:
        sock.sendall(b"hello\n")
        assert answers.read() == b"hello\nbye\n"


def test_sending_when_the_server_has_ended_is_nothing(embedded: Embedded, client: Connect) -> None:
    server = embedded(Talk)
    with client(server.address) as sock:
        ask(sock, b"name one\n")
        server.stop()
        Talk.NAMED[b"one"].send(b"is anybody there?")
        Talk.NAMED[b"one"].close()
        assert sock.recv(10) == b""


@pytest.mark.parametrize("by", ["a thread", "a greenlet"])
def test_a_conversation_is_ended_by_others(by: str, embedded: Embedded, client: Connect) -> None:
    server = embedded(Talk)
    with client(server.address) as sock, client(server.address) as other:
        ask(sock, b"name one\n")
        if by == "a thread":
            Talk.NAMED[b"one"].close()
        else:
            assert ask(other, b"dismiss one\n") == b"dismissed\n"
        assert sock.recv(10) == b""
    assert Talk.REASONS[0] == "closed"


def test_writing_to_a_peer_that_has_gone_does_not_concern_who_writes(
    embedded: Embedded, client: Connect
) -> None:
    server = embedded(Talk)
    with client(server.address) as gone, client(server.address) as friend:
        assert ask(gone, b"name gone\n") == b"hello gone\n"
        gone.sendall(b"big x\n")
        assert gone.recv(1) == b"x"
        friend.sendall(b"tell gone news\n")
        vanish(gone)
        assert read_line(friend) == b"told\n"
        assert ask(friend, b"echo still here\n") == b"still here\n"


# ---- limits


SILENCES = {
    "first-byte-timeout": ({"first_byte_timeout": 0.05}, b"", b""),
    "idle-timeout": ({"idle_timeout": 0.05}, b"echo hello\n", b"hello\n"),
    "request-timeout": ({"request_timeout": 0.05}, b"echo hel", b""),
    "write-timeout": ({"write_timeout": 0.05}, b"big x\n", None),
}


@pytest.mark.parametrize("outcome", SILENCES)
@pytest.mark.parametrize("kind", ["message", "blocking"])
def test_limits_end_a_connection_that_stands_still(
    kind: str,
    outcome: str,
    embedded: Embedded,
    client: Connect,
    caplog: pytest.LogCaptureFixture,
    eventually: Eventually,
) -> None:
    class Blocking(srvkit.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                self.wfile.write(b"x" * BIG if line.startswith(b"big") else line.partition(b" ")[2])

    limits, sent, answer = SILENCES[outcome]
    caplog.set_level(logging.INFO)
    server = embedded(Talk if kind == "message" else Blocking, limits=limits)
    with client(server.address) as sock:
        sock.sendall(sent)
        if answer is not None:
            assert read_line(sock) == answer
            assert sock.recv(10) == b""
        eventually(lambda: f"ended: {outcome}" in caplog.text)
        eventually(lambda: "0 of 1024 seats taken" in repr(server.server))
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_a_timeout_that_the_handler_sets_holds(serving: Serving, client: Connect) -> None:
    class Impatient(srvkit.StreamRequestHandler):
        timeout = 0.05

        def handle(self) -> None:
            try:
                self.rfile.readline()
            except TimeoutError:
                self.wfile.write(b"too late\n")

    server = serving(GreenServer(ANY, Impatient))
    with client(server.server_address) as sock:
        assert read_line(sock) == b"too late\n"


def test_connections_are_accounted_for(
    embedded: Embedded, client: Connect, eventually: Eventually, tmp_path: Path
) -> None:
    plugin = tmp_path / "watch.py"
    plugin.write_text(
        "from srvkit import hookimpl\nSEEN = []\n"
        "@hookimpl\ndef srvkit_connection_close(server, outcome, bytes_in, bytes_out):\n"
        "    server.seen.append((outcome, bytes_in, bytes_out))\n"
    )
    for handler in (Echo, Talk):
        server = embedded(handler, plugins=[str(plugin)])
        seen = server.server.seen = []
        with client(server.address) as sock:
            ask(sock, b"echo hello\n")
        eventually(seen.__len__)
        out = 11 if handler is Echo else 6
        assert seen == [("eof", 11, out)]


def vanish(sock: socket.socket) -> None:
    """End the connection by a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


@pytest.mark.parametrize("how", [socket.socket.close, vanish])
@pytest.mark.parametrize("handler", [Echo, Talk])
def test_peers_that_vanish_leave_no_greenlet(
    handler: Any, how: Any, embedded: Embedded, client: Connect, eventually: Eventually
) -> None:
    server = embedded(handler)
    at_work = server.server._greenlets
    for last in (b"", b"echo half a mess", b"echo hello\n", b"big x\n" * 3):
        sock = client(server.address)
        ask(sock, b"echo hello\n")
        assert len(at_work) == 1
        sock.sendall(last)
        how(sock)
        eventually(lambda: not len(at_work))


def test_what_another_thread_sends_to_one_that_does_not_read_is_bounded(client: Connect) -> None:
    """The thread never waits for a greenlet, so nothing else would bound it."""
    reasons: list[str] = []
    over = threading.Event()
    handlers: list[Any] = []
    met = threading.Event()

    class Met(srvkit.MessageHandler):
        framing = srvkit.Lines()

        def connected(self) -> bytes:
            handlers.append(self)
            met.set()
            return b"welcome"

        def disconnected(self, reason: str) -> None:
            reasons.append(reason)
            over.set()

    limits = {"write_timeout": 0, "first_byte_timeout": 0}
    with srvkit.serve(Met, "tcp://127.0.0.1:0", concurrency="gevent", limits=limits) as server:
        client(server.address)
        assert met.wait(PATIENCE)
        for _ in range(1000):
            handlers[0].send(bytes(65536))
            if over.is_set():
                break
        assert over.wait(PATIENCE)
    assert reasons == ["overflow"]
