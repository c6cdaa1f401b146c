"""The pool: so many at once and no more; the others wait where they cost nothing."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

import srvkit

ANY = ("127.0.0.1", 0)
PATIENCE = 30


class Small(srvkit.ThreadPoolTCPServer):
    threads = 2


class Who(srvkit.StreamRequestHandler):
    """Answer each line with the number of the thread."""

    def handle(self) -> None:
        for line in self.rfile:
            if line == b"exit\n":
                raise SystemExit
            self.wfile.write(b"%d\n" % threading.get_ident())


def ask(sock: socket.socket, line: bytes = b"hello\n") -> bytes:
    sock.sendall(line)
    with sock.makefile("rb") as answers:
        return answers.readline()


def test_a_pool_never_has_more_threads_than_it_may(serving: Any, client: Any) -> None:
    server = serving(Small(ANY, Who))
    seen = set()
    for _ in range(5):
        clients = [client(server.server_address) for _ in range(6)]
        for sock in clients:
            sock.sendall(b"hello\n")
        for sock in clients:
            with sock.makefile("rb") as answers:
                seen.add(answers.readline())
            sock.close()
    assert len(seen) <= 2
    assert server._srvkit_executor.size <= 2


def test_while_all_threads_are_busy_clients_wait_in_the_kernel(
    serving: Any, client: Any, eventually: Any
) -> None:
    """They are not even accepted, so that another process could take them; then each gets its turn."""
    accepted = []

    class Noting(Small):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            accepted.append(client_address)
            return True

    server = serving(Noting(ANY, Who))
    with client(server.server_address) as one, client(server.server_address) as two:
        assert ask(one) != ask(two)
        with client(server.server_address) as three:
            three.sendall(b"hello\n")
            ask(one)
            ask(two)
            eventually(lambda: "paused by the pool" in repr(server))
            assert len(accepted) == 2
            one.close()
            assert three.recv(100)
            assert len(accepted) == 3


def test_a_full_pool_shuts_down_at_once(serving: Any, client: Any) -> None:
    server = serving(Small(ANY, Who))
    with client(server.server_address) as one, client(server.server_address) as two:
        ask(one)
        ask(two)
        server.shutdown()
        assert ask(one)  # `server_close` is who waits for it


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_its_handler_ended_is_replaced(serving: Any, client: Any) -> None:
    server = serving(Small(ANY, Who))
    for _ in range(6):
        with client(server.server_address) as sock:
            assert ask(sock, b"exit\n") == b""
    with client(server.server_address) as one, client(server.server_address) as two:
        assert ask(one) != ask(two)


def test_datagrams_beyond_the_pool_wait(serving: Any, client: Any) -> None:
    release = threading.Semaphore(0)
    busy = []

    class Hold(srvkit.BaseRequestHandler):
        def handle(self) -> None:
            busy.append(self.request[0])
            release.acquire(timeout=PATIENCE)
            busy.remove(self.request[0])
            self.request[1].sendto(self.request[0], self.client_address)

    server = serving(type("Server", (srvkit.ThreadPoolUDPServer,), {"threads": 2})(ANY, Hold))
    with client(f"udp://127.0.0.1:{server.server_address[1]}") as sock:
        for number in range(10):
            sock.send(b"%d" % number)
        answers = set()
        for _ in range(10):
            assert len(busy) <= 2
            release.release()
            answers.add(sock.recv(10))
    assert len(answers) == 10


def test_in_front_of_a_server_that_cannot_pause_requests_wait_for_a_thread(client: Any) -> None:
    """The standard library's own servers have no such step."""
    import socketserver

    class Server(srvkit.ThreadPoolMixIn, socketserver.TCPServer):
        threads = 2

    with Server(ANY, Who) as server:
        loop = threading.Thread(target=server.serve_forever, args=(0.01,))
        loop.start()
        try:
            clients = [client(server.server_address) for _ in range(5)]
            for sock in clients:
                sock.sendall(b"hello\n")
            seen = set()
            for sock in clients:
                with sock.makefile("rb") as answers:
                    seen.add(answers.readline())
                sock.close()
            assert 1 <= len(seen) <= 2
        finally:
            server.shutdown()
            loop.join()


@pytest.mark.parametrize("threads", [1, 3])
def test_the_configuration_says_how_many(threads: int, client: Any) -> None:
    with srvkit.serve(Who, "tcp://127.0.0.1:0", concurrency={"name": "pool", "threads": threads}) as server:
        clients = [client(server.address) for _ in range(threads)]
        assert len({ask(sock) for sock in clients}) == threads
        with client(server.address) as late:
            late.sendall(b"hello\n")
            assert f"{threads} of 1024 seats taken" in repr(server.server)
            clients[0].close()
            assert late.recv(100)
        for sock in clients:
            sock.close()
