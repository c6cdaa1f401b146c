"""Greenlets: blocking handlers, unchanged, many at once in one thread, with nothing patched."""

from __future__ import annotations

import contextvars
import os
import socket
import socketserver
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import srvkit
from tests.concurrency.gevent.greenlet_servers import (
    ANY,
    PATIENCE,
    Echo,
    GreenDatagrams,
    GreenServer,
    ask,
    gevent,
    later,
)
from tests.conftest import Connect, Eventually, RunCode, Serving

event = pytest.importorskip("gevent.event")

pytestmark = pytest.mark.usefixtures("nothing_is_patched")


# ---- what it costs others: nothing


def test_importing_and_using_it_patches_nothing(run_code: RunCode) -> None:
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


def test_servers_of_other_threads_and_models_go_on_beside_it(serving: Serving, client: Connect) -> None:
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


def test_a_server_leaves_no_descriptor_and_no_thread_behind(client: Connect) -> None:
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


def test_handlers_that_block_do_not_hold_each_other_up_and_share_a_thread(
    serving: Serving, client: Connect
) -> None:
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


def test_each_connection_has_a_fresh_context(serving: Serving, client: Connect) -> None:
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


def test_steps_are_taken_once_per_connection_and_through_the_server(
    serving: Serving, client: Connect
) -> None:
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


def test_the_sockets_of_somebody_elses_get_request_are_made_cooperative(
    serving: Serving, client: Connect
) -> None:
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


def test_a_request_without_a_loop_is_handled_at_once(client: Connect) -> None:
    with GreenServer(ANY, Echo) as server, client(server.server_address) as sock:
        sock.sendall(b"hello\n")
        sock.shutdown(socket.SHUT_WR)
        server.handle_request()
        assert sock.recv(10) == b"hello\n"
        assert sock.recv(10) == b""


def test_so_it_is_when_the_loop_has_ended(client: Connect) -> None:
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


def test_in_front_of_a_server_of_the_standard_library_it_serves_one_after_the_other(client: Connect) -> None:
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


def test_a_datagram_that_takes_its_time_does_not_hold_up_others(serving: Serving, client: Connect) -> None:
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
    serving: Serving, client: Connect, eventually: Eventually, tmp_path: Path
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


def test_a_handler_may_choose_not_to_wait(serving: Serving, client: Connect, tmp_path: Path) -> None:
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
