"""Greenlets: blocking handlers, unchanged, many at once in one thread, with nothing patched."""

from __future__ import annotations

import contextlib
import contextvars
import errno
import logging
import os
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

import srvkit
from srvkit.concurrency.gevent import model as greenlets
from srvkit.config import loader
from srvkit.errors import ConfigError

gevent = pytest.importorskip("gevent")
event = pytest.importorskip("gevent.event")
monkey = pytest.importorskip("gevent.monkey")
green = pytest.importorskip("gevent.socket")

PATIENCE = 30
ANY = ("127.0.0.1", 0)
TCP = "tcp://127.0.0.1:0"
BIG = 8 << 20  # bytes, more than the buffers of a connection hold


class GreenServer(srvkit.GreenletMixIn, srvkit.TCPServer):
    request_queue_size = 100


class GreenDatagrams(srvkit.GreenletMixIn, srvkit.UDPServer):
    pass


class Echo(srvkit.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


class Talk(srvkit.MessageHandler):
    """Do what the client says; `NAMED` are those who gave themselves a name."""

    framing = srvkit.Lines()
    NAMED: ClassVar[dict[bytes, Talk]] = {}
    REASONS: ClassVar[list[str]] = []

    def handle_message(self, message: bytes) -> Any:
        word, _, rest = message.partition(b" ")
        return getattr(self, word.decode())(rest)

    def disconnected(self, reason: str) -> None:
        self.REASONS.append(reason)

    def echo(self, rest: bytes) -> bytes:
        return rest

    def name(self, rest: bytes) -> bytes:
        self.NAMED[rest] = self
        return b"hello " + rest

    def tell(self, rest: bytes) -> bytes:
        name, _, text = rest.partition(b" ")
        self.NAMED[name].send(text)
        return b"told"

    def dismiss(self, rest: bytes) -> bytes:
        self.NAMED[rest].close()
        return b"dismissed"

    def big(self, rest: bytes) -> bytes:
        return rest * BIG

    def sleep(self, rest: bytes) -> bytes:
        self.NAMED[b"asleep"] = self
        gevent.sleep(PATIENCE)
        return b"slept"


@pytest.fixture(autouse=True)
def _strangers() -> Iterator[None]:
    Talk.NAMED.clear()
    Talk.REASONS.clear()
    yield
    assert not monkey.saved, "something was patched"


@pytest.fixture
def embedded() -> Iterator[Callable[..., Any]]:
    """`embedded(handler, **settings)`: a server from settings, as `srvkit run` composes it."""
    running = []

    def serve(handler: Any, address: str = TCP, **settings: Any) -> Any:
        running.append(srvkit.serve(handler, address, concurrency="gevent", **settings))
        return running[-1]

    yield serve
    for server in running:
        server.stop()


def ask(sock: socket.socket, line: bytes) -> bytes:
    sock.sendall(line)
    return read_line(sock)


def read_line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        data = sock.recv(1 << 20)
        if not data:
            break
        line += data
    return line


# ---- what it costs others: nothing


def test_importing_and_using_it_patches_nothing(run_code: Any) -> None:
    """And it imports gevent only where it is used."""
    program = run_code(
        "import _socket, select, socket, ssl, sys, threading, time\n"
        "before = [dict(vars(m)) for m in (_socket, select, socket, ssl, threading, time)]\n"
        "import srvkit, srvkit.plugins.builtin\n"
        "mixin = srvkit.GreenletMixIn\n"
        "assert 'gevent' not in sys.modules\n"
        "class Echo(srvkit.BaseRequestHandler):\n"
        "    def handle(self): self.request.sendall(self.request.recv(10))\n"
        "with srvkit.serve(Echo, 'tcp://127.0.0.1:0', concurrency='gevent') as server:\n"
        "    with socket.create_connection(server.address) as sock:\n"
        "        sock.sendall(b'hello')\n"
        "        assert sock.recv(10) == b'hello'\n"
        "import gevent\n"
        "assert gevent.get_hub().main_hub\n"
        "assert before == [dict(vars(m)) for m in (_socket, select, socket, ssl, threading, time)]\n"
        "print('untouched')\n"
    )
    assert program.ended() == 0, program.log
    assert program.log == "untouched\n"


def test_servers_of_other_threads_and_models_go_on_beside_it(serving: Any, client: Any) -> None:
    servers = [
        serving(GreenServer(ANY, Echo)),
        serving(GreenServer(ANY, Echo)),
        serving(srvkit.ThreadingTCPServer(ANY, Echo)),
    ]
    socks = [client(server.server_address) for server in servers for _ in range(3)]
    for word in (b"one\n", b"two\n"):
        assert [ask(sock, word) for sock in socks] == [word] * 9
    for sock in socks:
        sock.close()


def test_a_server_leaves_no_descriptor_and_no_thread_behind(client: Any) -> None:
    def once() -> None:
        with GreenServer(ANY, Echo) as server:
            loop = threading.Thread(target=server.serve_forever)
            loop.start()
            with client(server.server_address) as sock:
                assert ask(sock, b"hello\n") == b"hello\n"
            server.shutdown()
        loop.join(PATIENCE)

    once()
    before = os.listdir("/proc/self/fd") if sys.platform == "linux" else []
    threads = threading.active_count()
    for _ in range(3):
        once()
    assert threading.active_count() == threads
    if before:
        assert len(os.listdir("/proc/self/fd")) == len(before)


# ---- many at once


def test_handlers_that_block_do_not_hold_each_other_up_and_share_a_thread(serving: Any, client: Any) -> None:
    class Who(srvkit.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"%d\n" % threading.get_ident())

    server = serving(GreenServer(ANY, Who))
    socks = [client(server.server_address) for _ in range(50)]
    answers = {ask(sock, b"who\n") for sock in reversed(socks)}
    assert len(answers) == 1
    assert answers != {b"%d\n" % threading.get_ident()}
    for sock in socks:
        sock.close()


def test_each_connection_has_a_fresh_context(serving: Any, client: Any) -> None:
    seen = contextvars.ContextVar("seen", default=b"nothing")

    class Remember(srvkit.StreamRequestHandler):
        def handle(self) -> None:
            before = seen.get()
            seen.set(self.rfile.readline())
            self.wfile.write(before + b"\n")

    server = GreenServer(ANY, Remember)
    contextvars.copy_context().run(lambda: (seen.set(b"the program's"), serving(server)))
    for _ in range(3):
        with client(server.server_address) as sock:
            assert ask(sock, b"something\n") == b"nothing\n"


def test_steps_are_taken_once_per_connection_and_through_the_server(serving: Any, client: Any) -> None:
    steps = []

    class Noting(GreenServer):
        def finish_request(self, request: Any, client_address: Any) -> None:
            steps.append("finish_request")
            super().finish_request(request, client_address)

        def handle_error(self, request: Any, client_address: Any) -> None:
            steps.append(f"handle_error {sys.exception()!r}")

        def shutdown_request(self, request: Any) -> None:
            assert request.fileno() >= 0
            super().shutdown_request(request)
            steps.append("shutdown_request")

    class Fail(srvkit.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1)
            raise ValueError("a mistake")

    server = serving(Noting(ANY, Fail))
    with client(server.server_address) as sock:
        assert ask(sock, b"x") == b""
    server.shutdown()
    server.server_close()
    assert steps == ["finish_request", "handle_error ValueError('a mistake')", "shutdown_request"]


def test_the_sockets_of_somebody_elses_get_request_are_made_cooperative(serving: Any, client: Any) -> None:
    class Own(GreenServer):
        def get_request(self) -> Any:
            sock, address = self.socket.accept()
            sock.settimeout(PATIENCE)
            return sock, address

    class Timeout(srvkit.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"%d\n" % self.request.gettimeout())

    server = serving(Own(ANY, Timeout))
    with client(server.server_address) as silent, client(server.server_address) as sock:
        assert ask(sock, b"x\n") == b"%d\n" % PATIENCE
        assert ask(silent, b"x\n") == b"%d\n" % PATIENCE


def test_a_request_without_a_loop_is_handled_at_once(client: Any) -> None:
    with GreenServer(ANY, Echo) as server, client(server.server_address) as sock:
        sock.sendall(b"hello\n")
        sock.shutdown(socket.SHUT_WR)
        server.handle_request()
        assert sock.recv(10) == b"hello\n"
        assert sock.recv(10) == b""


def test_so_it_is_when_the_loop_has_ended(client: Any) -> None:
    kinds = []

    class Kind(srvkit.BaseRequestHandler):
        def handle(self) -> None:
            kinds.append(type(self.request))

    with GreenServer(ANY, Kind) as server:
        loop = threading.Thread(target=server.serve_forever)
        loop.start()
        with client(server.server_address) as sock:
            assert sock.recv(10) == b""
        server.shutdown()
        loop.join(PATIENCE)
        with client(server.server_address):
            server.handle_request()
    assert [kind is socket.socket for kind in kinds] == [False, True]


def test_in_front_of_a_server_of_the_standard_library_it_serves_one_after_the_other(client: Any) -> None:
    class Server(srvkit.GreenletMixIn, socketserver.TCPServer):
        pass

    with Server(ANY, Echo) as server:
        loop = threading.Thread(target=server.serve_forever, args=(0.01,))
        loop.start()
        try:
            for _ in range(2):
                with client(server.server_address) as sock:
                    assert ask(sock, b"hello\n") == b"hello\n"
        finally:
            server.shutdown()
            loop.join(PATIENCE)


# ---- datagrams


def test_a_datagram_that_takes_its_time_does_not_hold_up_others(serving: Any, client: Any) -> None:
    release = []

    class Hold(srvkit.DatagramRequestHandler):
        def handle(self) -> None:
            line = self.rfile.read()
            if line == b"wait":
                release.append(event.AsyncResult())
                line = release[0].get()
            elif line == b"release":
                release[0].set(b"released")
            self.wfile.write(line)

    server = serving(GreenDatagrams(ANY, Hold))
    address = f"udp://127.0.0.1:{server.server_address[1]}"
    with client(address) as one, client(address) as two:
        one.send(b"wait")
        for word in (b"hello", b"release"):
            two.send(word)
            assert two.recv(100) == word
        assert one.recv(100) == b"released"


def test_a_peer_that_takes_no_datagrams_holds_up_nobody_else(
    serving: Any, client: Any, eventually: Any, tmp_path: Path
) -> None:
    """The handler waits as it would on a thread; the socket itself blocks for nobody."""

    class Server(srvkit.GreenletMixIn, srvkit.UnixDatagramServer):
        pass

    class Many(srvkit.BaseRequestHandler):
        def handle(self) -> None:
            data, sock = self.request
            assert sock.fileno() == self.server.socket.fileno()
            for number in range(int(data)):
                sock.sendto(b"%d" % number, self.client_address)
            done.append(int(data))

    done: list[int] = []
    server = serving(Server(str(tmp_path / "sock"), Many))
    many = 2_000  # more than any queue of Unix datagrams holds
    with (
        client(f"unixgram:{server.server_address}") as slow,
        client(f"unixgram:{server.server_address}") as other,
    ):
        slow.send(b"%d" % many)
        assert slow.recv(10) == b"0"
        other.send(b"0")
        eventually(lambda: done == [0])
        assert [int(slow.recv(10)) for _ in range(many - 1)] == list(range(1, many))
        eventually(lambda: done == [0, many])


def test_a_handler_may_choose_not_to_wait(serving: Any, client: Any, tmp_path: Path) -> None:
    class Server(srvkit.GreenletMixIn, srvkit.UnixDatagramServer):
        pass

    class Flood(srvkit.BaseRequestHandler):
        def handle(self) -> None:
            try:
                while True:
                    self.request[1].sendto(b"x", socket.MSG_DONTWAIT, self.client_address)
            except BlockingIOError:
                full.set()

    full = threading.Event()
    server = serving(Server(str(tmp_path / "sock"), Flood))
    with client(f"unixgram:{server.server_address}") as sock:
        sock.send(b"flood")
        assert full.wait(PATIENCE)


# ---- conversations


def test_a_peer_that_does_not_read_holds_up_nobody_who_writes_to_it(embedded: Any, client: Any) -> None:
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


def test_messages_are_sent_from_other_threads_whole_and_in_order(embedded: Any, client: Any) -> None:
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


def test_what_a_thread_has_sent_is_out_before_the_end(embedded: Any, client: Any) -> None:
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


def test_sending_when_the_server_has_ended_is_nothing(embedded: Any, client: Any) -> None:
    server = embedded(Talk)
    with client(server.address) as sock:
        ask(sock, b"name one\n")
        server.stop()
        Talk.NAMED[b"one"].send(b"is anybody there?")
        Talk.NAMED[b"one"].close()
        assert sock.recv(10) == b""


@pytest.mark.parametrize("by", ["a thread", "a greenlet"])
def test_a_conversation_is_ended_by_others(by: str, embedded: Any, client: Any) -> None:
    server = embedded(Talk)
    with client(server.address) as sock, client(server.address) as other:
        ask(sock, b"name one\n")
        if by == "a thread":
            Talk.NAMED[b"one"].close()
        else:
            assert ask(other, b"dismiss one\n") == b"dismissed\n"
        assert sock.recv(10) == b""
    assert Talk.REASONS[0] == "closed"


def test_writing_to_a_peer_that_has_gone_does_not_concern_who_writes(embedded: Any, client: Any) -> None:
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
    kind: str, outcome: str, embedded: Any, client: Any, caplog: pytest.LogCaptureFixture, eventually: Any
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


def test_a_timeout_that_the_handler_sets_holds(serving: Any, client: Any) -> None:
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


def test_connections_are_accounted_for(embedded: Any, client: Any, eventually: Any, tmp_path: Path) -> None:
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
    handler: Any, how: Any, embedded: Any, client: Any, eventually: Any
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


# ---- the end


def test_requests_at_hand_are_seen_through(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`shutdown` returns as soon as the loop is out, `server_close` when the last of them has ended."""
    monkeypatch.setattr(greenlets, "GRACE", 0.0)
    server = GreenServer(ANY, Echo)
    loop = threading.Thread(target=server.serve_forever)
    loop.start()
    with client(server.server_address) as sock:
        assert ask(sock, b"one\n") == b"one\n"
        server.shutdown()
        closing = threading.Thread(target=server.server_close)
        closing.start()
        assert ask(sock, b"two\n") == b"two\n"
        assert closing.is_alive()
    for thread in (closing, loop):
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_with_block_on_close_off_they_are_ended(client: Any) -> None:
    ended = []

    class Noting(Echo):
        def finish(self) -> None:
            ended.append(True)
            super().finish()

    class Impatient(GreenServer):
        block_on_close = False

    with Impatient(ANY, Noting) as server:
        loop = threading.Thread(target=server.serve_forever)
        loop.start()
        with client(server.server_address) as sock:
            assert ask(sock, b"one\n") == b"one\n"
            server.shutdown()
            loop.join(PATIENCE)
            assert not loop.is_alive()
            assert sock.recv(10) == b""
    assert ended == [True]


def test_a_handler_may_shut_its_server_down(client: Any) -> None:
    class Stop(srvkit.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.server.shutdown()
            self.server.server_close()
            self.wfile.write(b"stopped\n")

    server = GreenServer(ANY, Stop)
    loop = threading.Thread(target=server.serve_forever)
    loop.start()
    with client(server.server_address) as sock:
        assert ask(sock, b"stop\n") == b"stopped\n"
    loop.join(PATIENCE)
    assert not loop.is_alive()


def test_a_shutdown_before_the_loop_is_remembered_once(client: Any) -> None:
    with GreenServer(ANY, Echo) as server:
        server.shutdown()
        server.serve_forever()
        loop = threading.Thread(target=server.serve_forever)
        loop.start()
        with client(server.server_address) as sock:
            assert ask(sock, b"hello\n") == b"hello\n"
        server.shutdown()
        loop.join(PATIENCE)


def test_a_server_serves_in_a_greenlet_beside_others(client: Any) -> None:
    """The thread's hub is its owner's: it goes on when the server has ended."""
    with GreenServer(ANY, Echo) as server:
        loop = gevent.spawn(server.serve_forever)
        sock = green.create_connection(server.server_address)
        sock.sendall(b"hello\n")
        with gevent.Timeout(PATIENCE):
            assert sock.recv(10) == b"hello\n"
            sock.close()
            server.stop_serving()
            loop.get()
            gevent.sleep(0)


def test_an_overridden_service_actions_is_called_on_its_clock(serving: Any) -> None:
    called = threading.Event()

    class Server(GreenServer):
        def service_actions(self) -> None:
            called.set()

        def serve_forever(self, poll_interval: float = 0.01) -> None:
            super().serve_forever(poll_interval)

    serving(Server(ANY, Echo))
    assert called.wait(PATIENCE)


def test_draining_ends_idle_conversations_and_lets_others_finish(embedded: Any, client: Any) -> None:
    waiting = []

    class Slow(Talk):
        def wait(self, rest: bytes) -> bytes:
            waiting.append(event.AsyncResult())
            return waiting[0].get()

        def release(self, rest: bytes) -> bytes:
            waiting[0].set(b"released")
            gevent.sleep(0)
            return b"done"

    server = embedded(Slow)
    with client(server.address) as idle, client(server.address) as busy, client(server.address) as other:
        for sock in (idle, busy, other):
            ask(sock, b"echo hello\n")
        busy.sendall(b"wait\n")
        other.sendall(b"echo ")
        while not waiting:
            ask(idle, b"echo hello\n")
        stopping = threading.Thread(target=server.stop, args=(PATIENCE,))
        stopping.start()
        assert idle.recv(10) == b""
        other.sendall(b"x\nrelease\n")
        assert read_line(busy) == b"released\n"
        stopping.join(PATIENCE)
        assert not stopping.is_alive()
    assert set(Slow.REASONS) == {"stopped"}


@pytest.mark.parametrize("address", [TCP, "udp://127.0.0.1:0"])
def test_handlers_that_do_not_end_are_cut_off(
    address: str, embedded: Any, client: Any, caplog: pytest.LogCaptureFixture, eventually: Any
) -> None:
    """Their cleaning up is done, and nothing is logged as their error."""
    cleaned = []

    class Sleepy(Talk):
        def sleep(self, rest: bytes) -> bytes:
            try:
                return super().sleep(rest)
            finally:
                cleaned.append(True)

    server = embedded(Sleepy, address)
    with client(f"{address[:3]}://127.0.0.1:{server.address[1]}") as sock:
        sock.send(b"sleep\n")
        eventually(lambda: Talk.NAMED)
        assert server.stop(0) is False
        assert cleaned == [True]
        assert not server._thread.is_alive()
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_a_handler_that_cannot_be_ended_does_not_keep_the_server(embedded: Any, client: Any) -> None:
    class Stubborn(srvkit.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"begun\n")
            while True:
                with contextlib.suppress(gevent.GreenletExit):
                    gevent.sleep(PATIENCE)

    server = embedded(Stubborn)
    with client(server.address) as sock:
        assert read_line(sock) == b"begun\n"
        assert server.stop(0) is False
        server._thread.join(PATIENCE)
        assert not server._thread.is_alive()


def test_a_handler_may_drain_its_server(embedded: Any, client: Any, tmp_path: Path, eventually: Any) -> None:
    class Last(srvkit.StreamRequestHandler):
        def handle(self) -> None:
            self.server.drain()
            self.wfile.write(self.rfile.readline())
            self.rfile.read()

    server = embedded(Last, f"unix:{tmp_path}/s")  # nobody else gets this address when it is free again
    with client(server.address) as sock:
        assert ask(sock, b"goodbye\n") == b"goodbye\n"
        with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
            eventually(lambda: client(server.address).close())
    server._thread.join(PATIENCE)
    assert not server._thread.is_alive()


# ---- what handlers raise


class Leave(srvkit.StreamRequestHandler):
    """Raise what the client names."""

    def handle(self) -> None:
        name = self.rfile.readline().strip().decode()
        raise {"exit": SystemExit, "kill": gevent.GreenletExit, "interrupt": KeyboardInterrupt}[name]


@pytest.mark.parametrize("what", [b"exit\n", b"kill\n", b"interrupt\n"])
def test_from_the_configuration_nothing_that_is_raised_ends_more_than_its_connection(
    what: bytes, embedded: Any, client: Any, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    server = embedded(Leave)
    for _ in range(2):
        with client(server.address) as sock:
            assert ask(sock, what) == b""
    assert server.stop()
    assert [r.levelname for r in caplog.records] == ["ERROR", "ERROR"]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("what", "error"), [(b"exit\n", SystemExit), (b"interrupt\n", KeyboardInterrupt)])
def test_of_a_plain_server_what_is_no_exception_leaves_serve_forever(
    what: bytes, error: type[BaseException], client: Any, capfd: Any, eventually: Any
) -> None:
    """As it does where no thread is between; other connections are ended."""
    raised = []

    def serve() -> None:
        try:
            server.serve_forever()
        except BaseException as escaped:
            raised.append(type(escaped))

    with GreenServer(ANY, Leave) as server:
        loop = threading.Thread(target=serve)
        loop.start()
        with client(server.server_address) as sock, client(server.server_address) as other:
            eventually(lambda: server._greenlets and len(server._greenlets) == 2)
            assert ask(sock, what) == b""
            assert other.recv(10) == b""
        loop.join(PATIENCE)
        assert not loop.is_alive()
    assert raised == [error]
    assert capfd.readouterr().err == ""


def test_a_greenlet_that_is_killed_just_ends(serving: Any, client: Any, capfd: Any) -> None:
    server = serving(GreenServer(ANY, Leave))
    for _ in range(2):
        with client(server.server_address) as sock:
            assert ask(sock, b"kill\n") == b""
    assert capfd.readouterr().err == ""


def test_ctrl_c_is_raised_in_the_program_and_nothing_is_printed_besides(run_code: Any) -> None:
    program = run_code(
        "import socket, threading, srvkit\n"
        "class Echo(srvkit.BaseRequestHandler):\n"
        "    def handle(self): self.request.sendall(self.request.recv(10)); self.request.recv(10)\n"
        "class Server(srvkit.GreenletMixIn, srvkit.TCPServer): pass\n"
        "with Server(('127.0.0.1', 0), Echo) as server:\n"
        "    sock = socket.create_connection(server.server_address)\n"
        "    sock.sendall(b'hello')\n"
        "    threading.Thread(target=lambda: print(sock.recv(10)), daemon=True).start()\n"
        "    try:\n"
        "        server.serve_forever()\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted')\n"
    )
    program.wait_for("hello")
    assert program.end(2) == 0
    assert program.log == "b'hello'\ninterrupted\n"


# ---- the socket


@pytest.fixture
def pair() -> Iterator[tuple[Any, socket.socket]]:
    """A cooperative socket, used in the test's own greenlet, and its plain peer."""
    from srvkit.concurrency.gevent.sockets import CooperativeSocket

    one, two = socket.socketpair()
    one = CooperativeSocket.of(one)
    two.settimeout(PATIENCE)
    with one, two:
        yield one, two


def later(call: Callable[..., Any], *arguments: Any) -> None:
    gevent.get_hub().loop.run_callback(call, *arguments)


@pytest.mark.parametrize(
    ("read", "result"),
    [
        (lambda sock: sock.recv(10), b"hello"),
        (lambda sock: sock.recv_into(bytearray(10)), 5),
        (lambda sock: sock.recvfrom(10)[0], b"hello"),
        (lambda sock: sock.recvfrom_into(bytearray(10))[0], 5),
        (lambda sock: sock.recvmsg(10)[0], b"hello"),
        (lambda sock: sock.recvmsg_into([bytearray(10)])[0], 5),
        (lambda sock: sock.makefile("rb").read(5), b"hello"),
    ],
)
def test_every_way_of_reading_lets_others_run(read: Any, result: Any, pair: Any) -> None:
    one, two = pair
    for _ in range(2):
        later(two.sendall, b"hello")
        assert read(one) == result


@pytest.mark.parametrize(
    "write",
    [
        lambda sock, data: sock.sendall(data),
        lambda sock, data: sock.sendall(memoryview(data)),
        lambda sock, data: send_by(sock.send, data),
        lambda sock, data: send_by(lambda rest: sock.sendmsg([rest]), data),
    ],
)
def test_every_way_of_writing_lets_others_run(write: Any, pair: Any) -> None:
    one, two = pair
    data = os.urandom(1 << 20)
    writing = gevent.spawn(write, one, data)
    received = bytearray()
    gevent.sleep(0)
    assert not writing.ready()
    while len(received) < len(data):
        green.wait_read(two.fileno(), PATIENCE)
        received += two.recv(1 << 16)
    writing.get(timeout=PATIENCE)
    assert received == data


def send_by(send: Callable[[memoryview], int], data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[send(rest) :]


def test_a_file_is_sent_cooperatively(pair: Any, tmp_path: Path) -> None:
    one, two = pair
    (tmp_path / "file").write_bytes(os.urandom(1 << 20))
    with (tmp_path / "file").open("rb") as file:
        sending = gevent.spawn(one.sendfile, file)
        received = bytearray()
        while len(received) < 1 << 20:
            green.wait_read(two.fileno(), PATIENCE)
            received += two.recv(1 << 16)
        assert sending.get(timeout=PATIENCE) == 1 << 20
    assert received == (tmp_path / "file").read_bytes()


def test_timeouts_are_the_sockets_own(pair: Any) -> None:
    one, two = pair
    assert (one.gettimeout(), one.timeout, one.getblocking()) == (None, None, True)
    one.settimeout(0.01)
    assert (one.gettimeout(), one.timeout, one.getblocking()) == (0.01, 0.01, True)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            one.recv(10)
    with pytest.raises(TimeoutError):
        one.sendall(bytes(BIG))
    one.setblocking(False)
    assert (one.gettimeout(), one.getblocking()) == (0.0, False)
    with pytest.raises(BlockingIOError):
        one.recv(10)
    two.sendall(b"hello")
    assert one.recv(10) == b"hello"
    one.settimeout(None)
    with pytest.raises(BlockingIOError):
        one.recv(10, socket.MSG_DONTWAIT)
    with pytest.raises(ValueError, match="out of range"):
        one.settimeout(-1)


def test_a_timeout_is_counted_anew_for_each_wait(pair: Any) -> None:
    """The timer of the first wait must not end a later one, nor one that has no limit any more."""
    one, two = pair
    one.settimeout(0.05)
    later(two.sendall, b"a")
    assert one.recv(10) == b"a"
    gevent.sleep(0.03)
    one.settimeout(PATIENCE)
    gevent.spawn_later(0.06, two.sendall, b"b")
    assert one.recv(10) == b"b"
    one.settimeout(0.05)
    later(two.sendall, b"c")
    assert one.recv(10) == b"c"
    one.settimeout(None)
    gevent.spawn_later(0.1, two.sendall, b"d")
    assert one.recv(10) == b"d"


def test_a_shorter_timeout_than_the_last_one_holds(pair: Any) -> None:
    one, two = pair
    one.settimeout(PATIENCE)
    later(two.sendall, b"a")
    assert one.recv(10) == b"a"
    one.settimeout(0.01)
    with gevent.Timeout(PATIENCE / 2), pytest.raises(TimeoutError):
        one.recv(10)


def test_who_waits_for_a_socket_that_is_closed_gets_an_error(pair: Any) -> None:
    one, _ = pair
    later(one.close)
    with pytest.raises(OSError, match="closed by another greenlet") as caught:
        one.recv(10)
    assert caught.value.errno == errno.EBADF


def test_two_greenlets_do_not_read_one_socket(pair: Any) -> None:
    one, two = pair
    reading = gevent.spawn(one.recv, 10)
    gevent.sleep(0)
    with pytest.raises(gevent.exceptions.ConcurrentObjectUseError):
        one.recv(10)
    two.sendall(b"hello")
    assert reading.get(timeout=PATIENCE) == b"hello"


def test_shutdown_from_another_thread_wakes_who_waits(pair: Any) -> None:
    one, _ = pair
    later(threading.Thread(target=one.shutdown, args=(socket.SHUT_RD,)).start)
    with gevent.Timeout(PATIENCE):
        assert one.recv(10) == b""


# ---- the loop


def test_a_loop_is_woken_by_other_greenlets_of_its_thread() -> None:
    from srvkit.concurrency.gevent.hub import HubLoop

    called: list[str] = []
    with gevent.Timeout(PATIENCE), HubLoop() as loop:
        later(loop.call_soon, lambda: called.append("soon"))
        while called != ["soon"]:
            loop.wait()
        later(loop.call_later, 0.001, lambda: called.append("later"))
        while called != ["soon", "later"]:
            loop.wait()
        one, two = socket.socketpair()
        with one, two:
            later(loop.watch, one.fileno(), lambda: called.append("readable"))
            two.sendall(b"x")
            while called[-1] != "readable":
                loop.wait()


def test_a_loop_that_need_not_wait_lets_others_run_all_the_same() -> None:
    from srvkit.concurrency.gevent.hub import HubLoop

    called: list[bool] = []
    with HubLoop() as loop:
        gevent.spawn(called.append, True)
        loop.wait(0)
        loop.wait(0.001)
        assert called
        gevent.spawn(called.clear)
        for _ in range(3):
            loop.wait(0)
        assert not called


# ---- without gevent


@pytest.fixture
def without_gevent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gevent", None)


CONFIG = """\
[server.echo]
listen = "tcp://127.0.0.1:0"
handler = "echo"

concurrency = "gevent"
"""


def test_without_the_package_the_configuration_is_wrong_and_says_what_to_install(
    without_gevent: None, tmp_path: Path
) -> None:
    from srvkit.config.assemble import assemble

    (tmp_path / "srvkit.toml").write_text(CONFIG)
    with pytest.raises(ConfigError) as caught:
        assemble(*loader.read(tmp_path / "srvkit.toml"))
    assert str(caught.value) == (
        f"{tmp_path}/srvkit.toml:5: server.echo.concurrency: "
        "'gevent' needs the package gevent: pip install 'srvkit[gevent]'"
    )


def test_without_the_package_it_is_not_suggested(without_gevent: None, tmp_path: Path) -> None:
    from srvkit.config.assemble import assemble

    text = CONFIG.replace('"gevent"', '"event"').replace('"echo"', '"http.server:SimpleHTTPRequestHandler"')
    (tmp_path / "srvkit.toml").write_text(text)
    with pytest.raises(ConfigError, match="cannot run SimpleHTTPRequestHandler") as caught:
        assemble(*loader.read(tmp_path / "srvkit.toml"))
    assert "threading" in str(caught.value)
    assert "gevent" not in str(caught.value)


@pytest.mark.parametrize("missing", [True, False])
def test_the_list_of_models_says_whether_the_package_is_there(
    missing: bool, request: Any, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from srvkit.cli.main import main

    if missing:
        request.getfixturevalue("without_gevent")
    monkeypatch.chdir(tmp_path)
    assert main(["plugins"]) == 0
    out = capsys.readouterr().out
    assert "  gevent     blocking, message" in out
    assert ("gevent is not installed: pip install 'srvkit[gevent]'" in out) is missing


def test_without_the_package_serving_says_what_is_missing(run_code: Any) -> None:
    program = run_code(
        "import sys\n"
        "sys.modules['gevent'] = None\n"
        "import srvkit\n"
        "class Server(srvkit.GreenletMixIn, srvkit.TCPServer): pass\n"
        "with Server(('127.0.0.1', 0), srvkit.BaseRequestHandler) as server:\n"
        "    server.serve_forever()\n"
    )
    assert program.ended() == 1
    assert program.log.endswith(
        "ImportError: GreenletMixIn needs the package gevent: pip install 'srvkit[gevent]'\n"
    )


def test_what_another_thread_sends_to_one_that_does_not_read_is_bounded(client: Any) -> None:
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
