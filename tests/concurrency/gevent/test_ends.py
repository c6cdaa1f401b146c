"""The end of a server of greenlets, and of what its handlers raise."""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path

import pytest

import srvkit
from srvkit.concurrency.gevent import model as greenlets
from tests.concurrency.gevent.conftest import Embedded
from tests.concurrency.gevent.greenlet_servers import (
    ANY,
    PATIENCE,
    TCP,
    Echo,
    GreenServer,
    Talk,
    ask,
    gevent,
    read_line,
)
from tests.conftest import Connect, Eventually, RunCode, Serving

event = pytest.importorskip("gevent.event")
green = pytest.importorskip("gevent.socket")

pytestmark = pytest.mark.usefixtures("nothing_is_patched")


# ---- the end


def test_requests_at_hand_are_seen_through(client: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_with_block_on_close_off_they_are_ended(client: Connect) -> None:
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


def test_a_handler_may_shut_its_server_down(client: Connect) -> None:
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


def test_a_shutdown_before_the_loop_is_remembered_once(client: Connect) -> None:
    with GreenServer(ANY, Echo) as server:
        server.shutdown()
        server.serve_forever()
        loop = threading.Thread(target=server.serve_forever)
        loop.start()
        with client(server.server_address) as sock:
            assert ask(sock, b"hello\n") == b"hello\n"
        server.shutdown()
        loop.join(PATIENCE)


def test_a_server_serves_in_a_greenlet_beside_others(client: Connect) -> None:
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


def test_an_overridden_service_actions_is_called_on_its_clock(serving: Serving) -> None:
    called = threading.Event()

    class Server(GreenServer):
        def service_actions(self) -> None:
            called.set()

        def serve_forever(self, poll_interval: float = 0.01) -> None:
            super().serve_forever(poll_interval)

    serving(Server(ANY, Echo))
    assert called.wait(PATIENCE)


def test_draining_ends_idle_conversations_and_lets_others_finish(embedded: Embedded, client: Connect) -> None:
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
    address: str,
    embedded: Embedded,
    client: Connect,
    caplog: pytest.LogCaptureFixture,
    eventually: Eventually,
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


def test_a_handler_that_cannot_be_ended_does_not_keep_the_server(embedded: Embedded, client: Connect) -> None:
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


def test_a_handler_may_drain_its_server(
    embedded: Embedded, client: Connect, tmp_path: Path, eventually: Eventually
) -> None:
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
    what: bytes,
    embedded: Embedded,
    client: Connect,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
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
    what: bytes,
    error: type[BaseException],
    client: Connect,
    capfd: pytest.CaptureFixture[str],
    eventually: Eventually,
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


def test_a_greenlet_that_is_killed_just_ends(
    serving: Serving, client: Connect, capfd: pytest.CaptureFixture[str]
) -> None:
    server = serving(GreenServer(ANY, Leave))
    for _ in range(2):
        with client(server.server_address) as sock:
            assert ask(sock, b"kill\n") == b""
    assert capfd.readouterr().err == ""


def test_ctrl_c_is_raised_in_the_program_and_nothing_is_printed_besides(run_code: RunCode) -> None:
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
