"""Threads: kept and reused, waited for or not, and gone when nobody needs them."""

from __future__ import annotations

import contextvars
import gc
import re
import socket
import threading
import weakref
from typing import Any

import pytest

import srvkit
from srvkit.concurrency import executor

ANY = ("127.0.0.1", 0)
PATIENCE = 30
COLOUR: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")
KINDS = [srvkit.ThreadingTCPServer, srvkit.ThreadPoolTCPServer]


class Who(srvkit.StreamRequestHandler):
    """Answer each line with the number of the thread."""

    def handle(self) -> None:
        for _ in self.rfile:
            self.wfile.write(b"%d\n" % threading.get_ident())


def ask(sock: socket.socket, line: bytes = b"hello\n") -> bytes:
    sock.sendall(line)
    answer = b""
    while not answer.endswith(b"\n"):
        data = sock.recv(1000)
        if not data:
            break
        answer += data
    return answer.strip()


def closed(sock: socket.socket) -> None:
    """Say goodbye, and wait until the server has too."""
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(1) == b""
    sock.close()


@pytest.fixture(params=KINDS, ids=["threading", "pool"])
def kind(request: Any) -> Any:
    return request.param


def test_a_thread_is_used_again(kind: Any, serving: Any, client: Any, eventually: Any) -> None:
    """One after the other, clients are handled by the same thread; it is busy only meanwhile."""
    server = serving(kind(ANY, Who))
    seen = set()
    for _ in range(10):
        sock = client(server.server_address)
        seen.add(ask(sock))
        assert len(server._threads) == 1
        closed(sock)
        eventually(lambda: len(server._threads) == 0)
        eventually(lambda: len(server._srvkit_executor._idle) == 1)
    assert len(seen) == 1


def test_connections_at_once_have_threads_of_their_own(kind: Any, serving: Any, client: Any) -> None:
    server = serving(kind(ANY, Who))
    clients = [client(server.server_address) for _ in range(8)]
    assert len({ask(sock) for sock in clients}) == 8
    assert len(server._threads) == 8
    assert all(thread.is_alive() for thread in server._threads)
    for sock in clients:
        closed(sock)


def test_datagrams_go_to_kept_threads_too(serving: Any, client: Any) -> None:
    """A thousand of them do not mean a thousand threads."""
    names = set()

    class Note(srvkit.BaseRequestHandler):
        def handle(self) -> None:
            names.add(threading.get_ident())
            self.request[1].sendto(b"done", self.client_address)

    server = serving(srvkit.ThreadingUDPServer(ANY, Note))
    with client(f"udp://127.0.0.1:{server.server_address[1]}") as sock:
        for _ in range(1000):
            sock.send(b"x")
            assert sock.recv(10) == b"done"
    assert len(names) < 10


def test_each_connection_has_a_fresh_context(kind: Any, serving: Any, client: Any, eventually: Any) -> None:
    """What one leaves in a context variable, the next does not see, although the thread is the same."""

    class Remember(srvkit.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                before = COLOUR.get()
                COLOUR.set(line.strip().decode())
                self.wfile.write(f"{before} {threading.get_ident()}\n".encode())

    COLOUR.set("the test's")
    server = serving(kind(ANY, Remember))
    threads = set()
    for _ in range(3):
        sock = client(server.server_address)
        before, thread = ask(sock, b"red\n").split()
        assert before == b"none"
        assert ask(sock, b"blue\n").split()[0] == b"red"
        threads.add(thread)
        closed(sock)
        eventually(lambda: len(server._srvkit_executor._idle) == 1)
    assert len(threads) == 1


def test_server_close_waits_for_the_threads_at_work(kind: Any, serving: Any, client: Any) -> None:
    finished = threading.Event()
    may_finish = threading.Event()

    class Slow(srvkit.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"begun\n")
            may_finish.wait(PATIENCE)
            finished.set()

    server = serving(kind(ANY, Slow))
    with client(server.server_address) as sock:
        assert ask(sock) == b"begun"
        server.shutdown()
        closing = threading.Thread(target=server.server_close)
        closing.start()
        (busy,) = server._threads
        assert not busy.daemon
        may_finish.set()
        closing.join(PATIENCE)
        assert not closing.is_alive()
        assert finished.is_set()
        busy.join(PATIENCE)
        assert not busy.is_alive()


@pytest.mark.parametrize("settings", [{"block_on_close": False}, {"daemon_threads": True}])
def test_server_close_does_not_wait_where_it_should_not(
    settings: dict[str, bool], kind: Any, serving: Any, client: Any
) -> None:
    may_finish = threading.Event()
    threads = []

    class Slow(srvkit.BaseRequestHandler):
        def handle(self) -> None:
            threads.append(threading.current_thread())
            self.request.sendall(b"begun\n")
            may_finish.wait(PATIENCE)

    server = serving(type("Server", (kind,), settings)(ANY, Slow))
    try:
        with client(server.server_address) as sock:
            assert ask(sock) == b"begun"
            server.shutdown()
            server.server_close()
            assert threads[0].is_alive()
            assert len(server._threads) == 0
            assert threads[0].daemon == settings.get("daemon_threads", False)
    finally:
        may_finish.set()
        threads[0].join(PATIENCE)


@pytest.mark.parametrize("how", ["by serve_forever", "by handle_request", "by the standard library"])
def test_idle_threads_go_home_after_a_while(
    how: str, kind: Any, client: Any, eventually: Any, monkeypatch: Any
) -> None:
    """The server stays open; whoever comes later is served as before."""
    assert executor.PATIENCE == 2.0
    monkeypatch.setattr(executor, "PATIENCE", 0.1)
    before = threading.active_count()
    if how == "by the standard library":
        import socketserver

        mixin = kind.__mro__[1]
        kind = type("Server", (mixin, socketserver.TCPServer), {})
    server = kind(ANY, Who)
    try:
        if how == "by handle_request":
            for _ in range(2):
                serve_one(server, client)
                eventually(lambda: threading.active_count() == before)
                assert server._srvkit_executor.size == 0
            return
        loop = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        loop.start()
        for _ in range(2):
            clients = [client(server.server_address) for _ in range(3)]
            for sock in clients:
                ask(sock)
            for sock in clients[:2]:
                closed(sock)
            eventually(lambda: server._srvkit_executor.size == 1)  # the others had no work for two seconds
            assert ask(clients[2])
            closed(clients[2])
            eventually(lambda: threading.active_count() == before + 1)
        server.shutdown()
        loop.join(PATIENCE)
    finally:
        server.server_close()


def serve_one(server: Any, client: Any) -> None:
    sock = client(server.server_address)
    server.handle_request()
    assert ask(sock)
    closed(sock)


def test_threads_that_go_home_leave_no_connection_behind(
    kind: Any, serving: Any, client: Any, monkeypatch: Any
) -> None:
    """With no patience at all, threads are always on their way home when the next connection comes."""
    monkeypatch.setattr(executor, "PATIENCE", 0.0001)
    server = serving(type("Server", (kind,), {"threads": 3})(ANY, Who))

    def come_and_go() -> None:
        for _ in range(150):
            with socket.create_connection(server.server_address, PATIENCE) as sock:
                answers.append(ask(sock))
                sock.shutdown(socket.SHUT_WR)

    answers: list[bytes] = []
    visitors = [threading.Thread(target=come_and_go) for _ in range(4)]
    for one in visitors:
        one.start()
    for one in visitors:
        one.join()
    assert len(answers) == 600 and all(answers)
    assert server._srvkit_executor.size <= 3 or kind is srvkit.ThreadingTCPServer


def test_after_server_close_no_thread_is_left(kind: Any, serving: Any, client: Any) -> None:
    """Nor of those that had just been on their way home: programs compare what runs before and after."""
    before = set(threading.enumerate())
    server = serving(kind(ANY, Who))
    clients = [client(server.server_address) for _ in range(8)]
    for sock in clients:
        ask(sock)
    for sock in clients:
        closed(sock)
    server.shutdown()
    server.server_close()
    left = set(threading.enumerate()) - before
    assert not [one.name for one in left if "process_request_thread" in one.name]


def test_threads_are_called_as_the_standard_librarys(kind: Any, serving: Any, client: Any) -> None:
    server = serving(kind(ANY, Who))
    with client(server.server_address) as sock:
        ask(sock)
        (thread,) = server._threads
        assert re.fullmatch(r"Thread-\d+ \(process_request_thread\)", thread.name)


def test_idle_threads_end_when_the_server_is_closed(
    kind: Any, serving: Any, client: Any, eventually: Any
) -> None:
    before = threading.active_count()
    server = serving(kind(ANY, Who))
    clients = [client(server.server_address) for _ in range(5)]
    for sock in clients:
        ask(sock)
    for sock in clients:
        closed(sock)
    server.shutdown()
    server.server_close()
    eventually(lambda: threading.active_count() <= before)


def test_idle_threads_end_with_a_server_that_nobody_closed(kind: Any, client: Any, eventually: Any) -> None:
    before = threading.active_count()
    server = kind(ANY, Who)
    listening = server.socket
    loop = threading.Thread(target=server.serve_forever)
    loop.start()
    sock = client(server.server_address)
    ask(sock)
    closed(sock)
    server.shutdown()
    loop.join()
    busy = server._threads
    eventually(lambda: not list(busy))
    listening.close()
    gone = weakref.ref(server)
    del server, loop
    gc.collect()
    assert gone() is None
    eventually(lambda: threading.active_count() <= before)


@pytest.mark.parametrize("kind", ["ThreadingTCPServer", "ThreadPoolTCPServer"])
def test_idle_threads_do_not_keep_a_program_from_ending(kind: str, run_code: Any) -> None:
    """Whether or not somebody closes the server, and although the threads are no daemons."""
    program = run_code(
        "import socket, threading, srvkit\n"
        "from srvkit.concurrency import executor\n"
        "executor.PATIENCE = 3600\n"
        "class Echo(srvkit.StreamRequestHandler):\n"
        "    def handle(self):\n"
        "        self.wfile.write(self.rfile.readline())\n"
        f"server = srvkit.{kind}(('127.0.0.1', 0), Echo)\n"
        "with socket.create_connection(server.server_address) as sock:\n"
        "    sock.sendall(b'x\\n')\n"
        "    server.handle_request()\n"
        "    assert sock.recv(10) == b'x\\n' and sock.recv(1) == b''\n"
        "print('threads:', [thread.daemon for thread in threading.enumerate()])\n"
    )
    assert program.ended() == 0
    program.wait_for(r"threads: \[False, False\]")


def test_a_program_waits_for_threads_at_work_when_it_ends(run_code: Any, client: Any) -> None:
    """As the standard library's do, unless they are daemons."""
    program = run_code(
        "import threading, srvkit\n"
        "class Slow(srvkit.StreamRequestHandler):\n"
        "    def handle(self):\n"
        "        self.server.shutdown()\n"
        "        self.wfile.write(self.rfile.readline())\n"
        "        print('handled')\n"
        "server = srvkit.ThreadingTCPServer(('127.0.0.1', 0), Slow)\n"
        "print(f' test: listening on tcp://127.0.0.1:{server.server_address[1]}')\n"
        "server.serve_forever()\n"
        "print('at the end')\n"
    )
    with client(program.addresses("test")[0]) as sock:
        program.wait_for("at the end")
        assert ask(sock) == b"hello"
    assert program.ended() == 0
    program.wait_for("handled")


def fail_to_start(monkeypatch: Any, times: int) -> None:
    """Let the next threads not start, as where the machine has none left."""
    start = threading.Thread.start
    left = [None] * times

    def refuse(thread: threading.Thread) -> None:
        if left and type(thread) is not threading.Thread:
            left.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_a_thread_that_cannot_be_started_costs_one_client_only(
    kind: Any, serving: Any, client: Any, caplog: Any, capfd: Any, monkeypatch: Any
) -> None:
    """It is told by the end of its connection, the log says why, and nothing of it stays behind."""
    server = serving(kind(ANY, Who))
    fail_to_start(monkeypatch, 1)
    with client(server.server_address) as sock:
        assert sock.recv(1) == b""
    with client(server.server_address) as sock:
        assert ask(sock)
        assert len(server._threads) == 1
        closed(sock)
    server.shutdown()
    server.server_close()
    assert [record.getMessage() for record in caplog.records] == [
        f"{type(server).__name__}: cannot accept: can't start new thread; next try in 10 ms"
    ]


def test_a_thread_that_cannot_be_started_costs_nothing_where_others_come_free(
    serving: Any, client: Any, monkeypatch: Any, eventually: Any
) -> None:
    """A connection that cannot have a thread of its own is refused or waits for one; it never hangs."""
    server = serving(srvkit.ThreadingTCPServer(ANY, Who))
    with client(server.server_address) as first:
        ask(first)
        fail_to_start(monkeypatch, 1)
        with client(server.server_address) as second:
            second.sendall(b"hello\n")
            closed(first)
            assert second.recv(100) in (b"", *[b"%d\n" % thread.ident for thread in server._threads])
    with client(server.server_address) as third:
        assert ask(third)


def test_the_end_of_a_thread_by_its_handler_is_silent(run_code: Any, client: Any) -> None:
    """SystemExit in a thread of a bare class, as in the standard library; the next client has another."""
    program = run_code(
        "import signal, srvkit\n"
        "class Exit(srvkit.StreamRequestHandler):\n"
        "    def handle(self):\n"
        "        if self.rfile.readline() == b'exit\\n':\n"
        "            raise SystemExit\n"
        "        self.wfile.write(b'hello\\n')\n"
        "with srvkit.ThreadingTCPServer(('127.0.0.1', 0), Exit) as server:\n"
        "    signal.signal(signal.SIGTERM, lambda *_: server.shutdown())\n"
        "    print(f' test: listening on tcp://127.0.0.1:{server.server_address[1]}')\n"
        "    server.serve_forever()\n"
    )
    (address,) = program.addresses("test")
    for _ in range(3):
        with client(address) as sock:
            assert ask(sock, b"exit\n") == b""
    with client(address) as sock:
        assert ask(sock) == b"hello"
    assert program.end() == 0
    assert len(program.log.splitlines()) == 1
